//! Limits of a command: blocks, bytes, and its place on the disk.

use blk_core::storage::Info;
use blk_core::units::Extent;

use crate::command::Blocks;
use crate::sense::Sense;

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT: descriptors are copied and checked before one is done, and kept in the slot.
pub(super) const UNMAP_DESCRIPTORS_MAX: usize = 8;

/// Blocks of 2 GiB at most: MAXIMUM WRITE SAME LENGTH. An operation of its own each, so that an abort is soon served.
const WRITE_SAME_MAX_BYTES: u64 = 1 << 31;

/// The sectors of a run of blocks, if they lie within the disk.
pub(super) fn extent(blocks: Blocks, info: &Info) -> Result<Extent, Sense> {
    let sectors_per_block = info.sectors_per_block();
    let start = blocks.lba.checked_mul(sectors_per_block);
    let sectors = blocks.count.checked_mul(sectors_per_block);
    let (Some(start), Some(sectors)) = (start, sectors) else { return Err(Sense::OUT_OF_RANGE) };
    let extent = Extent::new(start, sectors);
    if extent.fits(info.sectors) { Ok(extent) } else { Err(Sense::OUT_OF_RANGE) }
}

/// Most blocks of one transfer: MAXIMUM TRANSFER LENGTH.
pub(super) fn transfer_max_blocks(info: &Info) -> u32 {
    (info.transfer_max_bytes >> info.logical_block_bytes.trailing_zeros()).max(1)
}

/// Most blocks of a COMPARE AND WRITE, all of which are compared in the staging buffer before one is written.
pub(super) fn compare_max_blocks(info: &Info) -> u8 {
    let blocks = info.staging_bytes.min(info.transfer_max_bytes) >> info.logical_block_bytes.trailing_zeros();
    u8::try_from(blocks).unwrap_or(u8::MAX)
}

/// Most blocks of a WRITE SAME.
pub(super) fn write_same_max_blocks(info: &Info) -> u64 {
    WRITE_SAME_MAX_BYTES >> info.logical_block_bytes.trailing_zeros()
}

/// Logical blocks of the disk.
pub(super) fn capacity_blocks(info: &Info) -> u64 {
    info.sectors >> info.sectors_per_block().trailing_zeros()
}
