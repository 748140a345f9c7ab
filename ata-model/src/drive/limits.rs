//! Limits of a command: sectors, operations, data blocks.

use blk_core::storage::Info;

/// Blocks that 28-bit commands reach.
pub(super) const LBA28_BLOCKS_MAX: u64 = (1 << 28) - 1;
/// Blocks that 48-bit commands reach.
pub(super) const LBA48_BLOCKS_MAX: u64 = 1 << 48;

/// Most 512-byte blocks of ranges that a DATA SET MANAGEMENT command may have.
pub(super) fn dsm_blocks_max(info: &Info) -> u16 {
    u16::try_from(info.staging_bytes >> 9).unwrap_or(u16::MAX).min(8)
}

/// Most blocks per DRQ of the MULTIPLE commands: a power of two, 16 at most; 0 without a staging buffer.
pub(super) fn multiple_max(info: &Info) -> u8 {
    let fit = info.staging_bytes.checked_div(info.logical_block_bytes).unwrap_or(0).min(16);
    fit.checked_ilog2().and_then(|log2| 1_u8.checked_shl(log2)).unwrap_or(0)
}
