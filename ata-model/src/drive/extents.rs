//! Logical blocks as guests name them, and sectors as storages do.

use blk_core::storage::Info;
use blk_core::units::{Extent, Lba};

use super::failure::Failure;
use crate::command::Blocks;

/// What is left of `extent` after its first `sectors`; `None` if nothing is.
pub(super) fn after(extent: Extent, sectors: u64) -> Option<Extent> {
    let left = extent.sectors.checked_sub(sectors).filter(|&left| left > 0)?;
    Some(Extent { start: Lba(extent.start.0.saturating_add(sectors)), sectors: left })
}

/// Sectors, in whole logical blocks and one block at least, that `bytes_max` bytes hold: `left` at most.
pub(crate) fn chunk_sectors(left: u64, bytes_max: u32, info: &Info) -> u64 {
    let block = info.sectors_per_block();
    let fit = u64::from(bytes_max >> 9);
    let whole = fit.saturating_sub(fit.checked_rem(block).unwrap_or(0));
    left.min(whole.max(block))
}

/// The sectors of a run of logical blocks, if the disk has them all.
pub(super) fn extent(blocks: Blocks, info: &Info) -> Result<Extent, Failure> {
    let per_block = info.sectors_per_block();
    let start = blocks.lba.checked_mul(per_block);
    let sectors = u64::from(blocks.count).checked_mul(per_block);
    match (start, sectors) {
        (Some(start), Some(sectors)) if Extent::new(start, sectors).fits(info.sectors) => {
            Ok(Extent::new(start, sectors))
        }
        _ => Err(Failure::NoSuchAddress),
    }
}

/// Entry `index` of a TRIM's list: 48 bits of LBA, 16 bits of count, of which 0 means nothing (ACS-3, DATA SET MANAGEMENT).
pub(super) fn range(staging: &[u8], index: u32) -> Option<Blocks> {
    let at = usize::try_from(index).ok()?.checked_mul(8)?;
    let entry = staging.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)?;
    Some(Blocks { lba: entry & 0xffff_ffff_ffff, count: u32::try_from(entry >> 48).ok()? })
}
