//! Requests of a queue, from the chain to the answer.

use blk_core::log;
use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment, total_bytes};
use blk_core::order::{Deferred, Done, GuestCache, Order, Request, Sequencer};
use blk_core::storage::{IoError, IoErrorKind, Storage, Submission};
use blk_core::units::GuestAddr;
use blk_core::virtq::{InflightTracker, QueueError, RunningRing};

use super::noted::{Again, Noted};
use super::ranges::Ranges;
use super::view::{DeviceView, Observer, QueueProgress};
use crate::chain::{Chain, Segments, copy_in};
use crate::command::{self, Command};
use crate::wire::Status;

/// The requests in flight of a queue, at most `N`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Requests<const N: usize> {
    pub(super) slots: Sequencer<Owner, N>,
    /// One request of several ranges at a time; the next one waits in the ring.
    pub(super) ranges: Option<Ranges>,
    /// How the flush that turns the cache off ended, until it is asked for.
    pub(super) flushed: Option<bool>,
    /// The device's serial, for GET_ID.
    pub(super) id: [u8; 20],
    again: Again,
}

impl<const N: usize> Requests<N> {
    /// None, in a device that calls itself `id`.
    pub(super) const fn new(id: [u8; 20]) -> Self {
        Self { slots: Sequencer::new(), ranges: None, flushed: None, id, again: Again::NOTHING }
    }

    /// Takes completions and requests until the ring is empty, its next request has to wait, or as many were taken as it has
    /// entries.
    #[inline]
    pub(super) fn serve<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        ring: &mut RunningRing<'_>,
        memory: &M,
        storage: &mut S,
        view: &impl Fn() -> DeviceView,
        epoch: &mut u32,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<QueueProgress, QueueError> {
        let mut budget = ring.size();
        let mut segments = Segments::new();
        ring.fetch_avail_idx(memory)?;
        loop {
            let before = budget;
            while let Some(done) = self.slots.poll(memory, storage) {
                self.complete(ring, memory, storage, done, log)?;
            }
            let supplied = self.slots.needs_segments().is_some()
                && self.supply_segments(ring, memory, storage, &mut segments, log)?;
            let view = view();
            *epoch = view.epoch;
            let waits = self.take_available(ring, memory, storage, &view, &mut segments, &mut budget, log)?;
            if budget == 0 {
                break;
            }
            if (budget != before || supplied) && !self.slots.is_idle() {
                // The storage may have completed it by now.
                continue;
            }
            if waits || !ring.enable_notification(memory)? {
                break;
            }
        }
        Ok(QueueProgress { interrupt: ring.publish(memory, log)?, again: budget == 0 })
    }

    /// Takes completions of a ring that is off or broken: there is nobody to answer, and nothing goes on.
    #[cold]
    #[inline(never)]
    pub(super) fn drain<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) {
        self.ranges = None;
        while let Some(Done { slot, result }) = self.slots.poll(memory, storage) {
            let _ = self.release(slot, result);
        }
        while let Some((slot, _)) = self.slots.needs_segments() {
            let _ = self.release(slot, Err(IoErrorKind::Memory.into()));
        }
    }

    /// Submits the flush that turns the cache off.
    pub(super) fn flush<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> Result<(), Deferred> {
        let request = Request::new(Op::Flush).ordered(Order::Barrier);
        let cache = GuestCache::WriteBack;
        let started = self.slots.submit(memory, storage, &request, cache, &[], Owner::CacheOff)?;
        if let Some(Done { slot, result }) = started.done() {
            let _ = self.release(slot, result);
        }
        Ok(())
    }

    /// Begins a reset: what the storage does not have is dropped.
    pub(super) fn reset(&mut self) {
        self.again.note(self.slots.payloads().filter_map(|(_, owner)| match owner {
            Owner::Driver { noted, .. } => Some(*noted),
            Owner::CacheOff => None,
        }));
        self.slots.reset();
        self.ranges = None;
        self.flushed = None;
    }

    /// Goes on with a reset, and returns whether it is over.
    pub(super) fn finish_reset<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> bool {
        // Completions are swallowed: their requests are gone.
        while self.slots.poll(memory, storage).is_some() {}
        let over = self.slots.finish_reset(storage);
        if over {
            self.again.execute(memory, storage);
        }
        over
    }

    /// Takes requests until none is left, the budget is used up, or one has to wait. Returns whether one has to wait.
    #[inline]
    #[allow(clippy::too_many_arguments, reason = "ring, memory, storage and log come in with each call")]
    fn take_available<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        ring: &mut RunningRing<'_>,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        segments: &mut Segments,
        budget: &mut u16,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<bool, QueueError> {
        while *budget != 0 {
            let Some(head) = ring.next_fetched(memory, log)? else { return Ok(false) };
            if !view.open || self.slots.is_full() {
                return Ok(true);
            }
            let chain = match Chain::usual(ring, memory, head, segments) {
                Some(chain) => chain,
                None => {
                    let mut chain = Chain::default();
                    chain.sort(ring, memory, head, segments)?;
                    chain
                }
            };
            let at = chain.status().ok_or(QueueError::Unanswerable)?;
            let mut seen = Seen::default();
            let taken = self.take(memory, storage, view, (&chain, segments), &mut seen, (head, at));
            let Ok(answer) = taken else { return Ok(true) };
            ring.pop(log, head);
            log.began(seen.command, seen.bytes);
            if let Some((status, written)) = answer {
                if status != Status::Ok {
                    log!(debug, "virtio-blk: request {} answered {}", seen.command, status);
                }
                Answer { head, at, status, written }.give(ring, memory, log)?;
            }
            *budget = budget.wrapping_sub(1);
        }
        Ok(false)
    }

    /// Decodes a request and starts it. Returns its status and the bytes written into the chain if it has ended already.
    #[inline]
    fn take<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        (chain, segments): (&Chain, &Segments),
        seen: &mut Seen,
        (head, at): (u16, GuestAddr),
    ) -> Result<Option<(Status, u32)>, Deferred> {
        let refuse = |status| Ok(Some((status, 1)));
        let info = storage.info();
        // Also for a header that is too short (host-std/tests/defects.md, 5).
        if !chain.is_usable() {
            return refuse(Status::IoErr);
        }
        let read_only = view.read_only || info.read_only;
        let (command, order) = match command::decode(&chain.header(), view.features, info, read_only) {
            Ok(decoded) => decoded,
            Err(status) => return refuse(status),
        };
        seen.command = Some(command);
        let ((data, bytes), written) = match command {
            Command::Read { .. } => (chain.writable(segments), chain.writable(segments).1),
            Command::Write { .. } => (chain.readable(segments), 0),
            // Also if it brings data, or none: host-std/tests/defects.md, 6.
            Command::Flush => ((&[][..], 0), 0),
            _ => {
                return self.take_other(
                    memory,
                    storage,
                    view,
                    (command, order),
                    (*chain, segments),
                    (head, at),
                );
            }
        };
        seen.bytes = bytes;
        let (op, fua) = match command::operation(command, bytes, info) {
            Ok(operation) => operation,
            Err(status) => return refuse(status),
        };
        if data.len() > usize::from(info.segments_max) {
            return refuse(Status::IoErr);
        }
        let request = Request::new(op).with_fua(fua).ordered(order);
        let written = u32::try_from(written).unwrap_or(0).saturating_add(1);
        let owner = Owner::Driver { head, status: at, written, noted: Noted::of(op, data) };
        match self.slots.start(memory, storage, request, view.cache, data, owner)? {
            Submission::Pending => Ok(None),
            Submission::Done(result) => Ok(Some(answer(result, written))),
        }
    }

    /// Starts a request that is no read, write or flush. All of the common ones are in [`Self::take`].
    #[cold]
    #[inline(never)]
    fn take_other<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        (command, order): (Command, Order),
        (chain, segments): (Chain, &Segments),
        (head, at): (u16, GuestAddr),
    ) -> Result<Option<(Status, u32)>, Deferred> {
        match command {
            Command::Discard | Command::WriteZeroes => {
                let ranges = chain.readable(segments);
                self.take_ranges(memory, storage, view, (command, order), ranges, (head, at))
            }
            Command::GetId => Ok(Some(self.identify(memory, chain.writable(segments).0))),
            _ => Ok(Some((Status::Unsupported, 1))),
        }
    }

    /// GET_ID: 20 bytes, padded with zeroes (5.2.6), or as many as there is room for.
    fn identify<M: GuestMemory + ?Sized>(&self, memory: &M, into: &[Segment]) -> (Status, u32) {
        match copy_in(memory, into, &self.id) {
            Some(written) => (Status::Ok, written.saturating_add(1)),
            None => (Status::IoErr, 1),
        }
    }

    /// Handles the end of a slot's operation, and answers its request if that was the last one.
    fn complete<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        ring: &mut RunningRing<'_>,
        memory: &M,
        storage: &mut S,
        done: Done,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<(), QueueError> {
        match self.end(memory, storage, done) {
            Some(answer) => answer.give(ring, memory, log),
            None => Ok(()),
        }
    }

    /// Handles the end of a slot's operation: starts the next range, or returns the answer to the request.
    pub(super) fn end<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        done: Done,
    ) -> Option<Answer> {
        let ranges = self.ranges.as_ref().is_some_and(|ranges| ranges.slot == done.slot);
        let done = if ranges { self.run_ranges(memory, storage, done)? } else { done };
        self.release(done.slot, done.result)
    }

    /// Supplies the segments of operations that waited for a flush or for the storage. Returns whether anything moved.
    ///
    /// The sequencer keeps none, so the chain is walked again. If the driver has changed it so that the data no longer fits, the
    /// request fails. The operation itself stays as it was decoded.
    #[cold]
    #[inline(never)]
    fn supply_segments<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        ring: &mut RunningRing<'_>,
        memory: &M,
        storage: &mut S,
        segments: &mut Segments,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<bool, QueueError> {
        let mut moved = false;
        while let Some((slot, op)) = self.slots.needs_segments() {
            let head = match self.slots.payload(slot) {
                Some(&mut Owner::Driver { head, .. }) => head,
                _ => return Ok(moved),
            };
            let (data, bytes) = match op {
                Op::Read { extent } | Op::Write { extent, .. } => {
                    let mut chain = Chain::default();
                    chain.sort(ring, memory, head, segments)?;
                    let (data, _) =
                        if op.mutates() { chain.readable(segments) } else { chain.writable(segments) };
                    (data, extent.bytes())
                }
                _ => (&[][..], Some(0)),
            };
            let fits = data.len() <= usize::from(storage.info().segments_max) && total_bytes(data) == bytes;
            let done = if fits {
                let supplied = self.slots.supply_segments(memory, storage, slot, data);
                let Ok(started) = supplied else { return Ok(moved) };
                started.done()
            } else {
                Some(Done { slot, result: Err(IoErrorKind::Memory.into()) })
            };
            if let Some(done) = done {
                self.complete(ring, memory, storage, done, log)?;
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Frees a slot, and returns the answer to its request.
    #[inline(never)]
    fn release(&mut self, slot: u16, result: Result<(), IoError>) -> Option<Answer> {
        match self.slots.release(slot)? {
            Owner::Driver { head, status: at, written, .. } => {
                let (status, written) = answer(result, written);
                Some(Answer { head, at, status, written })
            }
            Owner::CacheOff => {
                self.flushed = Some(result.is_ok());
                None
            }
        }
    }
}

/// A request in flight: what is left to do once the storage is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Owner {
    /// The driver's, in a chain.
    Driver {
        /// The chain's head.
        head: u16,
        /// Where the status byte goes.
        status: GuestAddr,
        /// Bytes written into the chain on success, the status byte among them.
        written: u32,
        noted: Noted,
    },
    /// The device's own flush, as the cache is turned off.
    CacheOff,
}

/// Answer to a request.
pub(super) struct Answer {
    /// The chain's head.
    pub(super) head: u16,
    /// Where the status byte goes.
    pub(super) at: GuestAddr,
    pub(super) status: Status,
    /// Bytes written into the chain, the status byte among them.
    pub(super) written: u32,
}

impl Answer {
    /// Writes the status byte and returns the chain.
    #[inline(always)]
    fn give<M: GuestMemory + ?Sized>(
        self,
        ring: &mut RunningRing<'_>,
        memory: &M,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<(), QueueError> {
        log.ended(self.status);
        memory.write(self.at, &[self.status as u8])?;
        ring.add_used(memory, log, self.head, self.written)
    }
}

/// The status of a request that has ended with `result`, and the bytes written into its chain: on success `written`. On an error
/// only the status byte is known to be (CVE-2024-8612).
#[inline]
pub(super) fn answer(result: Result<(), IoError>, written: u32) -> (Status, u32) {
    if let Err(error) = result {
        log!(warn, "virtio-blk: operation failed: {}", error);
    }
    (Status::from(result), if result.is_ok() { written } else { 1 })
}

/// Request of a chain, as far as it was decoded.
#[derive(Default)]
struct Seen {
    command: Option<Command>,
    bytes: u64,
}
