//! Limits of a command: blocks, bytes, and its place on the disk.

use blk_core::storage::{Info, Storage};
use blk_core::units::Extent;
use zerocopy::FromBytes;

use crate::command::Blocks;
use crate::sense::Sense;
use crate::wire::data::UnmapDescriptor;

/// Most block descriptors of an UNMAP, whatever the storage.
pub(super) const UNMAP_DESCRIPTORS_MAX: u8 = 8;

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT: descriptors are copied and checked before one is done, and wait in the staging
/// buffer, if there is one.
pub(super) const fn unmap_descriptors_max(info: &Info) -> u8 {
    if info.staging_bytes == 0 { 1 } else { UNMAP_DESCRIPTORS_MAX }
}

/// The sectors of the `index`th block descriptor in the staging buffer of `slot`.
pub(super) fn unmapped<M, S>(storage: &mut S, slot: u16, index: u8) -> Result<Extent, Sense>
where
    M: ?Sized,
    S: Storage<M> + ?Sized,
{
    let at = usize::from(index).saturating_mul(size_of::<UnmapDescriptor>());
    let descriptor =
        storage.staging(slot).get(at..).and_then(|rest| UnmapDescriptor::read_from_prefix(rest).ok());
    let (UnmapDescriptor { lba, blocks, .. }, _) = descriptor.ok_or(Sense::DATA_PHASE)?;
    extent(Blocks { lba: lba.get(), count: blocks.get().into() }, storage.info())
}

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
