//! Conversion between the kernel's values and those of the models.

use blk_core::storage::{IoError, IoErrorKind};
use blk_core::units::{Extent, Lba, SECTOR_BYTES};
use rustix::io::Errno;

/// Offset and length in bytes of an extent that was checked against the capacity.
pub(super) fn bytes_of(extent: Extent) -> Result<(u64, u64), IoError> {
    let outside = IoError::new(IoErrorKind::OutOfRange);
    Ok((extent.offset_bytes().ok_or(outside)?, extent.bytes().ok_or(outside)?))
}

pub(super) const fn sector(offset: u64) -> Lba {
    Lba(offset / SECTOR_BYTES as u64)
}

/// What an error of the kernel is to the models.
pub(super) fn kind(errno: Errno) -> IoErrorKind {
    match errno {
        Errno::NOSPC | Errno::DQUOT => IoErrorKind::NoSpace,
        Errno::ROFS => IoErrorKind::ReadOnly,
        Errno::FAULT => IoErrorKind::Memory,
        Errno::OPNOTSUPP => IoErrorKind::Unsupported,
        _ => IoErrorKind::Medium,
    }
}
