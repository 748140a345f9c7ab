//! Pages of logs: how one is summed up, and the directory of the general purpose logs.

use zerocopy::little_endian::U16;
use zerocopy::{FromZeros, IntoBytes};

use crate::command::Interface;
use crate::wire::{LogDirectory, QueueErrorLog};

/// The single page of the general purpose log at `address` (READ LOG EXT): the directory, which lists no other but, of a
/// drive that queues, the queued error log.
#[must_use]
pub(super) fn general_log(address: u8, interface: Interface) -> Option<[u8; 512]> {
    if address != 0 {
        return None;
    }
    let mut directory = LogDirectory::new_zeroed();
    directory.version = U16::new(1);
    for (address, blocks) in (1..=u8::MAX).zip(directory.blocks.iter_mut()) {
        *blocks = U16::new(u16::from(address == QueueErrorLog::ADDRESS && interface == Interface::Serial));
    }
    page(directory.as_bytes())
}

/// The bytes of a layout that is one page long.
pub(super) fn page(bytes: &[u8]) -> Option<[u8; 512]> {
    bytes.try_into().ok()
}

/// The page with its last byte such that all bytes add up to zero.
pub(super) fn summed(bytes: &[u8]) -> [u8; 512] {
    let mut page = [0; 512];
    for (to, from) in page.iter_mut().zip(bytes) {
        *to = *from;
    }
    let [rest @ .., checksum] = &mut page;
    *checksum = rest.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte));
    page
}
