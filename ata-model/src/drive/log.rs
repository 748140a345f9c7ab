//! Pages of logs: made in place, in the staging buffer that they are sent from.

use zerocopy::little_endian::U16;
use zerocopy::transmute_mut;

use crate::wire::LogDirectory;

/// A page of a log, or of what is as long as one. Whoever fills one in is given zeroes.
pub(super) type Page = [u8; 512];

/// Fills in a log directory: the logs at `addresses` have a page each, and there are no others.
pub(super) fn directory(page: &mut Page, addresses: &[u8]) {
    let directory: &mut LogDirectory = transmute_mut!(page);
    directory.version = U16::new(1);
    for &address in addresses {
        if let Some(blocks) = directory.blocks.get_mut(usize::from(address).wrapping_sub(1)) {
            *blocks = U16::new(1);
        }
    }
}

/// Sets the last byte of a page such that all bytes add up to zero.
pub(super) fn sum_up(page: &mut Page) {
    let [rest @ .., checksum] = page;
    *checksum = rest.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte));
}
