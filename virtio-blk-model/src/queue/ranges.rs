//! Segments of a discard or write-zeroes.

use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment};
use blk_core::order::{GuestCache, Order};
use blk_core::storage::Info;

use crate::chain::copy_out;
use crate::command::{self, Command, RANGES_MAX};
use crate::wire::{RangeSegment, Status};

const SEGMENT_BYTES: usize = size_of::<RangeSegment>();

/// A discard or write-zeroes of several segments, of which some are left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Ranges {
    pub(super) slot: u16,
    /// The request's order, for each range: in a barrier every range has to be stable.
    pub(super) order: Order,
    pub(super) cache: GuestCache,
    discard: bool,
    /// The segments, as the driver wrote them.
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    segments: [u8; RANGES_MAX * SEGMENT_BYTES],
    /// How many there are.
    count: u8,
    /// The place of the one that is submitted next.
    next: u8,
}

impl Ranges {
    /// None yet.
    #[inline]
    pub(super) fn new(command: Command, order: Order, cache: GuestCache) -> Self {
        let segments = [0; RANGES_MAX * SEGMENT_BYTES];
        Self { slot: 0, order, cache, discard: command == Command::Discard, segments, count: 0, next: 0 }
    }

    /// Copies `bytes` bytes of guest segments, and checks all of the ranges in them.
    pub(super) fn read<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        (guest, bytes): (&[Segment], u64),
        info: &Info,
    ) -> Result<(), Status> {
        let command = self.command();
        let into = usize::try_from(bytes).ok().and_then(|bytes| self.segments.get_mut(..bytes));
        let copied = into.and_then(|into| copy_out(memory, guest, into).map(|()| &*into));
        let checked = command::ranges(command, copied.ok_or(Status::IoErr)?, info)?;
        self.count = u8::try_from(checked.len()).unwrap_or(0);
        Ok(())
    }

    const fn command(&self) -> Command {
        if self.discard { Command::Discard } else { Command::WriteZeroes }
    }

    /// Whether there are several.
    pub(super) const fn are_several(&self) -> bool {
        self.count > 1
    }

    /// The next operation. An error if the disk is smaller than when all of them were checked.
    pub(super) fn take(&mut self, info: &Info) -> Option<Result<Op, Status>> {
        let (segments, _) = self.segments.as_chunks::<SEGMENT_BYTES>();
        let segment = segments.get(..usize::from(self.count))?.get(usize::from(self.next))?;
        self.next = self.next.saturating_add(1);
        Some(command::range(self.command(), &zerocopy::transmute!(*segment), info))
    }
}
