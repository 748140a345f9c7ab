//! The one way in for storage that works synchronously: RAM, flash, anything behind `embedded-io`.

use crate::memory::{GuestMemory, MemoryError};
use crate::op::{Op, Segment, total_bytes};
use crate::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use crate::units::{Extent, Lba, Tag};

/// A disk that does what it is asked before it returns. [`Synchronous`] makes a [`Storage`] of it.
///
/// Offsets are in bytes and, like lengths, multiples of 512 that [`Synchronous`] has checked against
/// [`Info::sectors`]. Data moves through closures, so that memory is copied once where the medium is memory.
pub trait Medium {
    /// What this disk is. [`Synchronous`] sets what it decides itself: `fua`, which the sequencer emulates, `holds`, `state_bytes` and
    /// `staging_bytes`.
    fn info(&self) -> &Info;

    /// Reads `len` bytes at `offset`, handing them to `sink` piece by piece, in order.
    ///
    /// # Errors
    /// What the medium reports, or [`IoErrorKind::Memory`] where `sink` fails.
    fn read(
        &mut self,
        offset: u64,
        len: usize,
        sink: impl FnMut(&[u8]) -> Result<(), MemoryError>,
    ) -> Result<(), IoError>;

    /// Writes `len` bytes at `offset`, obtaining them from `source` piece by piece, in order.
    ///
    /// # Errors
    /// What the medium reports, or [`IoErrorKind::Memory`] where `source` fails.
    fn write(
        &mut self,
        offset: u64,
        len: usize,
        source: impl FnMut(&mut [u8]) -> Result<(), MemoryError>,
    ) -> Result<(), IoError>;

    /// Makes everything written so far stable.
    ///
    /// # Errors
    /// What the medium reports.
    fn flush(&mut self) -> Result<(), IoError>;
}

impl From<MemoryError> for IoError {
    fn from(MemoryError: MemoryError) -> Self {
        Self::new(IoErrorKind::Memory)
    }
}

/// A [`Storage`] over a [`Medium`]: operations are done inside `submit`, and `poll` has nothing to deliver.
///
/// It is never [`Busy`]. The staging memory is divided evenly among the slots. The latch of the
/// storage contract is here: after a failed flush, or a failed write where writes are stable at once, nothing is promised
/// any more.
#[derive(Debug)]
pub struct Synchronous<'a, D, const N: usize> {
    medium: D,
    staging: &'a mut [u8],
    info: Info,
    latched: bool,
}

impl<'a, D: Medium, const N: usize> Synchronous<'a, D, N> {
    /// Puts `medium` behind the storage contract. `staging` serves PIO, VERIFY and WRITE SAME, and is divided into `N`
    /// buffers, one for each slot of the model: `N` times 4096 bytes suit every command. It may be
    /// empty for a front that needs none, which is virtio-blk.
    ///
    /// # Panics
    /// If `staging` is neither empty nor large enough for a logical block in each slot. No slot,
    /// `N` = 0, does not compile.
    pub fn new(medium: D, staging: &'a mut [u8]) -> Self {
        const { assert!(N > 0, "Synchronous<D, N>: N is 1 at least, or no operation could be taken") }
        let mut info = *medium.info();
        info.fua = false;
        // The one handle to the medium: nobody else writes.
        info.holds = true;
        info.state_bytes = 0;
        info.staging_bytes = u32::try_from(slot_bytes(staging.len(), N)).unwrap_or(u32::MAX) & !0x1ff;
        assert!(
            staging.is_empty() || info.staging_bytes >= info.logical_block_bytes,
            "a RAM disk or other synchronous storage of {N} slots has {} bytes of staging and needs {}, a \
             logical block for each slot; give it as many, or none if its front needs none",
            staging.len(),
            (N as u64).saturating_mul(info.logical_block_bytes.into()),
        );
        Self { medium, staging, info, latched: false }
    }

    /// The medium.
    pub const fn medium(&self) -> &D {
        &self.medium
    }

    /// Gives the medium back.
    pub fn into_medium(self) -> D {
        self.medium
    }

    fn run<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        slot: u16,
        op: Op,
        segments: &[Segment],
    ) -> Result<(), IoError> {
        if let Some(extent) = op.extent() {
            check(&self.info, op, extent, segments)?;
        }
        if self.latched && op.fails_when_latched() {
            return Err(IoErrorKind::Latched.into());
        }
        let result = match op {
            Op::Read { extent } => self.read(memory, slot, extent, segments),
            Op::Write { extent, .. } => self.write(memory, slot, extent, segments),
            Op::WriteZeroes { extent, .. } => self.zero(extent),
            // Keeping the data is allowed, and is all that a plain medium can do.
            Op::Discard { .. } => Ok(()),
            Op::Flush => self.medium.flush(),
            Op::Hold { .. } => Ok(()),
            Op::LoadState { .. } | Op::StoreState { .. } => Err(IoErrorKind::Unsupported.into()),
        };
        let durable = op == Op::Flush || op.mutates() && self.info.cache == Cache::WriteThrough;
        if let Err(IoError { kind: IoErrorKind::Medium | IoErrorKind::NoSpace, .. }) = result {
            if durable && !self.latched {
                log!(error, "disk latched: a durable operation failed: {}", result.err());
            }
            self.latched |= durable;
        }
        result
    }

    fn read<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        slot: u16,
        extent: Extent,
        segments: &[Segment],
    ) -> Result<(), IoError> {
        let mut offset = extent.offset_bytes().ok_or(IoErrorKind::OutOfRange)?;
        for segment in segments {
            let len = to_usize(segment.len());
            match *segment {
                Segment::Guest { mut addr, .. } => self.medium.read(offset, len, |piece| {
                    memory.write(addr, piece)?;
                    addr = addr.checked_add(len_u64(piece)).ok_or(MemoryError)?;
                    Ok(())
                })?,
                Segment::Staging { offset: at, .. } => {
                    let into = slot_buffer(self.staging, slot, N, at, len).ok_or(IoErrorKind::Memory)?;
                    let mut rest = into;
                    self.medium.read(offset, len, |piece| {
                        let (head, tail) = core::mem::take(&mut rest)
                            .split_at_mut_checked(piece.len())
                            .ok_or(MemoryError)?;
                        head.copy_from_slice(piece);
                        rest = tail;
                        Ok(())
                    })?;
                }
            }
            offset = offset.saturating_add(u64::from(segment.len()));
        }
        Ok(())
    }

    fn write<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        slot: u16,
        extent: Extent,
        segments: &[Segment],
    ) -> Result<(), IoError> {
        let mut offset = extent.offset_bytes().ok_or(IoErrorKind::OutOfRange)?;
        for segment in segments {
            let len = to_usize(segment.len());
            match *segment {
                Segment::Guest { mut addr, .. } => self.medium.write(offset, len, |piece| {
                    memory.read(addr, piece)?;
                    addr = addr.checked_add(len_u64(piece)).ok_or(MemoryError)?;
                    Ok(())
                })?,
                Segment::Staging { offset: at, .. } => {
                    let from = slot_buffer(self.staging, slot, N, at, len).ok_or(IoErrorKind::Memory)?;
                    let mut rest: &[u8] = from;
                    self.medium.write(offset, len, |piece| {
                        let (head, tail) = rest.split_at_checked(piece.len()).ok_or(MemoryError)?;
                        piece.copy_from_slice(head);
                        rest = tail;
                        Ok(())
                    })?;
                }
            }
            offset = offset.saturating_add(u64::from(segment.len()));
        }
        Ok(())
    }

    fn zero(&mut self, extent: Extent) -> Result<(), IoError> {
        let offset = extent.offset_bytes().ok_or(IoErrorKind::OutOfRange)?;
        let len =
            extent.bytes().and_then(|bytes| usize::try_from(bytes).ok()).ok_or(IoErrorKind::OutOfRange)?;
        self.medium.write(offset, len, |piece| {
            piece.fill(0);
            Ok(())
        })
    }
}

impl<M: GuestMemory + ?Sized, D: Medium, const N: usize> Storage<M> for Synchronous<'_, D, N> {
    fn info(&self) -> &Info {
        &self.info
    }

    #[inline]
    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        Ok(Submission::Done(self.run(memory, tag.slot, op, segments)))
    }

    fn poll(&mut self, _memory: &M) -> Option<Completion> {
        None
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        slot_buffer(self.staging, slot, N, 0, to_usize(self.info.staging_bytes)).unwrap_or_default()
    }
}

/// Checks an operation as every storage must: range, read-only, and segments that add up.
///
/// # Errors
/// [`IoErrorKind::OutOfRange`] or [`IoErrorKind::ReadOnly`].
pub fn check(info: &Info, op: Op, extent: Extent, segments: &[Segment]) -> Result<(), IoError> {
    if !extent.fits(info.sectors) {
        return Err(IoError {
            kind: IoErrorKind::OutOfRange,
            lba: Some(Lba(extent.start.0.max(info.sectors))),
        });
    }
    if op.mutates() && info.read_only {
        return Err(IoErrorKind::ReadOnly.into());
    }
    let has_data = matches!(op, Op::Read { .. } | Op::Write { .. });
    if has_data && total_bytes(segments) != op.segment_bytes() {
        return Err(IoErrorKind::OutOfRange.into());
    }
    Ok(())
}

const fn slot_bytes(staging: usize, slots: usize) -> usize {
    match staging.checked_div(slots) {
        Some(bytes) => bytes,
        None => 0,
    }
}

/// `len` bytes at `at` of the buffer of `slot`.
fn slot_buffer(staging: &mut [u8], slot: u16, slots: usize, at: u32, len: usize) -> Option<&mut [u8]> {
    let bytes = slot_bytes(staging.len(), slots);
    let start = bytes.checked_mul(usize::from(slot))?;
    let buffer = staging.get_mut(start..start.checked_add(bytes)?)?;
    let at = to_usize(at);
    buffer.get_mut(at..at.checked_add(len)?)
}

#[allow(clippy::cast_possible_truncation, reason = "usize has 32 bits at least on every target with a disk")]
const fn to_usize(value: u32) -> usize {
    value as usize
}

fn len_u64(piece: &[u8]) -> u64 {
    u64::try_from(piece.len()).unwrap_or(u64::MAX)
}
