//! The bytes of an operation, and the memory that its segments name.

use crate::memory::{GuestMemory, MemoryError};
use crate::op::Segment;
use crate::storage::{IoError, IoErrorKind};
use crate::units::GuestAddr;

/// Copies between the bytes of an operation and its segments. `copy` gets the guest address and the bytes.
fn each_segment(
    segments: &[Segment],
    staging: &mut [u8],
    data: &mut [u8],
    mut guest: impl FnMut(GuestAddr, &mut [u8]) -> Result<(), MemoryError>,
    to_staging: bool,
) -> Result<(), IoError> {
    let mut rest = data;
    for segment in segments {
        let (piece, after) =
            rest.split_at_mut_checked(segment.len() as usize).ok_or(IoErrorKind::OutOfRange)?;
        rest = after;
        match *segment {
            Segment::Guest { addr, .. } => guest(addr, piece).map_err(|_| IoErrorKind::Memory)?,
            Segment::Staging { offset, len } => {
                let at = offset as usize..(offset as usize).saturating_add(len as usize);
                let staging = staging.get_mut(at).ok_or(IoErrorKind::OutOfRange)?;
                if to_staging {
                    staging.copy_from_slice(piece);
                } else {
                    piece.copy_from_slice(staging);
                }
            }
        }
    }
    Ok(())
}

/// Reads the data of a write out of its segments.
pub(super) fn gather<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    staging: &mut [u8],
    data: &mut [u8],
) -> Result<(), IoError> {
    each_segment(segments, staging, data, |addr, piece| memory.read(addr, piece), false)
}

/// Writes the data of a read into its segments.
pub(super) fn scatter<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    staging: &mut [u8],
    data: &mut [u8],
) -> Result<(), IoError> {
    each_segment(segments, staging, data, |addr, piece| memory.write(addr, piece), true)
}
