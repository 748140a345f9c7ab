//! Discard and write-zeroes, whose segments are operations that follow each other in one slot.

use blk_core::memory::GuestMemory;
use blk_core::op::Segment;
use blk_core::order::{Deferred, Done, Order, Request};
use blk_core::storage::{IoErrorKind, Storage};
use blk_core::units::GuestAddr;

use super::noted::Noted;
use super::ranges::Ranges;
use super::requests::{Owner, Requests};
use super::view::DeviceView;
use crate::command::Command;
use crate::wire::Status;

impl<const N: usize> Requests<N> {
    /// Starts a discard or write-zeroes. All segments are copied and checked before any is done.
    #[cold]
    #[inline(never)]
    pub(super) fn take_ranges<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        (command, order): (Command, Order),
        guest: (&[Segment], u64),
        (head, at): (u16, GuestAddr),
    ) -> Result<Option<(Status, u32)>, Deferred> {
        let refuse = |status| Ok(Some((status, 1)));
        let info = storage.info();
        let mut ranges = Ranges::new(command, order, view.cache);
        if let Err(status) = ranges.read(memory, guest, info) {
            return refuse(status);
        }
        if ranges.are_several() && self.ranges.is_some() {
            return Err(Deferred::Full);
        }
        let Some(Ok(first)) = ranges.take(info) else { return refuse(Status::IoErr) };
        let request = Request::new(first).ordered(order);
        let owner = Owner::Driver { head, status: at, written: 1, noted: Noted::NOTHING };
        let started = self.slots.submit(memory, storage, &request, view.cache, &[], owner)?;
        if ranges.are_several() {
            ranges.slot = started.slot();
            self.ranges = Some(ranges);
        }
        let answer = started.done().and_then(|done| self.end(memory, storage, done));
        Ok(answer.map(|answer| (answer.status, answer.written)))
    }

    /// Starts the ranges that follow one that has ended, as far as the storage does them at once. Returns how the last one ended, or
    /// `None` if one is in flight.
    #[cold]
    #[inline(never)]
    pub(super) fn run_ranges<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        mut done: Done,
    ) -> Option<Done> {
        while done.result.is_ok()
            && let Some(ranges) = &mut self.ranges
            && let Some(op) = ranges.take(storage.info())
        {
            let Ok(op) = op else {
                done.result = Err(IoErrorKind::OutOfRange.into());
                break;
            };
            let (request, cache) = (Request::new(op).ordered(ranges.order), ranges.cache);
            done = self.slots.advance(memory, storage, done.slot, &request, cache, &[]).done()?;
        }
        self.ranges = None;
        Some(done)
    }
}
