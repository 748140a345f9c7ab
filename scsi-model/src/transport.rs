//! Interface to the transport that carries a unit's commands: the guest memory of a task's data.

use core::fmt;
use core::ops::Range;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::Segment;
use blk_core::units::GuestAddr;
use heapless::Vec;

/// Most segments that are asked for at once.
pub const SEGMENTS_MAX: usize = 128;

/// Bytes of a sector that are looked at together: a buffer of more is dear where stacks are small.
pub(crate) const CHUNK_BYTES: usize = 128;

/// Pieces of guest memory, in order.
pub type SegmentList = Vec<Segment, SEGMENTS_MAX>;

/// Direction of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Direction {
    /// From the device to the guest.
    In,
    /// From the guest to the device.
    Out,
}

/// The guest's data memory could not be reached: the command ends in ABORTED COMMAND, DATA PHASE ERROR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DataError;

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the data buffer of the task cannot be accessed")
    }
}

impl core::error::Error for DataError {}

impl From<MemoryError> for DataError {
    fn from(MemoryError: MemoryError) -> Self {
        Self
    }
}

/// The side of a transport that a logical unit sees.
pub trait Transport {
    /// Appends to `list`, which is empty, the guest memory of the bytes `range` of task `tag`'s data-in or data-out
    /// buffer: guest segments that are not empty, in order, from `range.start` on, as many as find room. The unit asks
    /// again for what did not. `range` lies within the length that the task was enqueued with.
    ///
    /// # Errors
    /// [`DataError`] if the buffer cannot be found any more.
    fn segments(
        &mut self,
        tag: u64,
        direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError>;

    /// Whether [`Self::note_begun`] was called for task `tag`, be it in a process before this one.
    fn has_begun(&self, _tag: u64) -> bool {
        false
    }

    /// COMPARE AND WRITE `tag` has found its data equal and is about to write. Done once more it may find its own
    /// data, and must not fail for it: a transport whose requests outlive a killed device keeps this for [`Self::has_begun`].
    fn note_begun(&mut self, _tag: u64) {}

    /// The `index`th logical unit number of the target, for REPORT LUNS, in the eight-byte form of SAM-5, logical unit number;
    /// `None` after the last. A target with one unit has LUN 0.
    fn lun(&self, index: usize) -> Option<[u8; 8]> {
        (index == 0).then_some([0; 8])
    }
}

/// The guest, as a command sees it: its memory, and where the task's data is in it.
pub(crate) struct Guest<'a, M: ?Sized, T: ?Sized> {
    pub(crate) memory: &'a M,
    pub(crate) transport: &'a mut T,
    /// Room for the segments of one operation, which is filled anew for each: 2 KiB of stack, once.
    pub(crate) list: &'a mut SegmentList,
}

impl<M: GuestMemory + ?Sized, T: Transport + ?Sized> Guest<'_, M, T> {
    /// Copies the start of `bytes` to the task's data-in buffer, which is `room` bytes long, and returns how many fitted.
    pub(crate) fn put(&mut self, tag: u64, bytes: &[u8], room: u64) -> Result<u64, DataError> {
        let len = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        let mut left = bytes.get(..len).unwrap_or_default();
        self.each_segment(tag, Direction::In, 0..len as u64, |memory, addr, len| {
            let (now, later) = left.split_at_checked(len).ok_or(DataError)?;
            left = later;
            Ok(memory.write(addr, now)?)
        })?;
        Ok(len as u64)
    }

    /// Fills `into` from the task's data-out buffer, from byte `offset` on.
    pub(crate) fn take(&mut self, tag: u64, offset: u64, into: &mut [u8]) -> Result<(), DataError> {
        let end = offset.checked_add(into.len() as u64).ok_or(DataError)?;
        let mut left = into;
        self.each_segment(tag, Direction::Out, offset..end, |memory, addr, len| {
            let (now, later) = core::mem::take(&mut left).split_at_mut_checked(len).ok_or(DataError)?;
            left = later;
            Ok(memory.read(addr, now)?)
        })
    }

    /// Compares `with` to the task's data-out buffer from byte `offset` on, and returns the first byte that differs,
    /// counted from the start of `with`.
    pub(crate) fn differs(&mut self, tag: u64, offset: u64, with: &[u8]) -> Result<Option<u64>, DataError> {
        let end = offset.checked_add(with.len() as u64).ok_or(DataError)?;
        let mut left = with;
        let mut differs = None;
        self.each_segment(tag, Direction::Out, offset..end, |memory, addr, len| {
            let (now, later) = left.split_at_checked(len).ok_or(DataError)?;
            let before = with.len().saturating_sub(left.len()) as u64;
            left = later;
            if differs.is_none() {
                differs = differs_at(memory, addr, now)?.map(|place| before.saturating_add(place));
            }
            Ok(())
        })?;
        Ok(differs)
    }

    /// Calls `each` with every piece of guest memory of `range`. Bounded by the length of the range: a list that
    /// brings nothing forward is an error.
    fn each_segment(
        &mut self,
        tag: u64,
        direction: Direction,
        range: Range<u64>,
        mut each: impl FnMut(&M, GuestAddr, usize) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let mut at = range.start;
        while at < range.end {
            let before = at;
            self.list.clear();
            self.transport.segments(tag, direction, at..range.end, self.list)?;
            for segment in self.list.iter() {
                let Segment::Guest { addr, len } = *segment else { return Err(DataError) };
                let len = u64::from(len).min(range.end.saturating_sub(at));
                each(self.memory, addr, usize::try_from(len).map_err(|_| DataError)?)?;
                at = at.saturating_add(len);
            }
            if at == before {
                return Err(DataError);
            }
        }
        Ok(())
    }
}

/// The first byte of `with` that differs from the guest memory at `addr`.
fn differs_at<M: GuestMemory + ?Sized>(
    memory: &M,
    addr: GuestAddr,
    with: &[u8],
) -> Result<Option<u64>, DataError> {
    let mut buffer = [0; CHUNK_BYTES];
    let mut done = 0_u64;
    for ours in with.chunks(CHUNK_BYTES) {
        let theirs = buffer.get_mut(..ours.len()).ok_or(DataError)?;
        memory.read(addr.checked_add(done).ok_or(DataError)?, theirs)?;
        if let Some(place) = ours.iter().zip(theirs.iter()).position(|(a, b)| a != b) {
            return Ok(Some(done.saturating_add(place as u64)));
        }
        done = done.saturating_add(ours.len() as u64);
    }
    Ok(None)
}
