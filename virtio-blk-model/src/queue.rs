//! Request queue: a ring and its requests in flight. It is separate from the device, so that each can have its own thread.

use blk_core::log;
use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment, total_bytes};
use blk_core::order::{Deferred, Done, GuestCache, Order, Request, Sequencer, Started};
use blk_core::storage::{IoError, IoErrorKind, Storage};
use blk_core::units::GuestAddr;
use blk_core::virtq::{self, InflightTracker, QueueError};
use heapless::Vec;

use crate::chain::{Chain, Segments, copy_in, copy_out};
use crate::command::{self, Command, RANGES_MAX};
use crate::wire::{Features, RangeSegment, Status};

/// Snapshot of the device state that a queue needs to take a request. It is copied for each.
///
/// Where queues have threads of their own, the device publishes a new snapshot with a higher epoch. The change is complete when
/// every queue [is quiet](Queue::is_quiet) in that epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DeviceView {
    /// The negotiated features.
    #[cfg_attr(feature = "defmt", defmt(Debug2Format))]
    pub features: Features,
    /// What the driver was told about the write cache.
    pub cache: GuestCache,
    /// Whether changes are refused, by configuration.
    pub read_only: bool,
    /// Requests may be taken: the driver is ready and no change is under way.
    pub open: bool,
    /// Counts the changes.
    pub epoch: u32,
}

/// Result of a poll of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct QueueProgress {
    /// The driver wants a used-buffer interrupt.
    pub interrupt: bool,
    /// The budget ran out: poll again. Otherwise poll when the driver notifies or the storage has a completion.
    pub again: bool,
}

/// Receives a queue's events, for statistics. `()` ignores them.
pub trait Observer {
    /// A request was taken that moves `bytes` bytes of data. `None` if it was refused before it was decoded: its header is too
    /// short, or it is a change of a read-only disk.
    fn began(&mut self, _command: Option<Command>, _bytes: u64) {}

    /// A request was answered.
    fn ended(&mut self, _status: Status) {}
}

impl Observer for () {}

/// A ring and its requests in flight, at most `N`.
///
/// It is polled by whoever owns it, with the storage handle that is its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub struct Queue<const N: usize> {
    ring: virtq::Queue,
    slots: Sequencer<Owner, N>,
    /// One request of several ranges at a time; the next one waits in the ring.
    ranges: Option<Ranges>,
    /// The epoch of the view seen last.
    epoch: u32,
    /// How the flush that turns the cache off ended, until it is asked for.
    flushed: Option<bool>,
    /// The device's serial, for GET_ID.
    id: [u8; 20],
    #[cfg(feature = "mutants")]
    again: Vec<(Op, Segment), 4>,
}

impl<const N: usize> Queue<N> {
    /// An idle queue of at most `size_max` entries, for a device that calls itself `id`.
    #[must_use]
    pub const fn new(size_max: u16, id: [u8; 20]) -> Self {
        Self {
            ring: virtq::Queue::new(size_max),
            slots: Sequencer::new(),
            ranges: None,
            epoch: 0,
            flushed: None,
            id,
            #[cfg(feature = "mutants")]
            again: Vec::new(),
        }
    }

    /// Makes an idle queue one of at most `size_max` entries, for a device that calls itself `id`.
    pub(crate) const fn configure(&mut self, size_max: u16, id: [u8; 20]) {
        self.ring = virtq::Queue::new(size_max);
        self.id = id;
    }

    /// The ring and its registers.
    #[must_use]
    pub const fn ring(&self) -> &virtq::Queue {
        &self.ring
    }

    /// The ring, for a front that sets it up.
    pub const fn ring_mut(&mut self) -> &mut virtq::Queue {
        &mut self.ring
    }

    /// Requests in flight.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.slots.in_use()
    }

    /// Whether the queue has seen `epoch` and has nothing in flight.
    #[must_use]
    pub const fn is_quiet(&self, epoch: u32) -> bool {
        self.epoch == epoch && self.slots.is_idle()
    }

    /// Whether a reset of the queue still waits for operations in flight.
    #[must_use]
    pub const fn is_resetting(&self) -> bool {
        self.slots.is_resetting()
    }

    /// Takes completions and requests until there are no more, or as many as the ring has entries.
    ///
    /// `view` is called after each read of the available index, so that a request made after a change is taken under it.
    #[inline]
    pub fn poll<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: impl Fn() -> DeviceView,
    ) -> QueueProgress {
        self.poll_logged(memory, storage, view, &mut ())
    }

    /// [`Self::poll`] with a tracker of the chains in flight, from which a successor can resume, and an observer.
    #[inline]
    pub fn poll_logged<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: impl Fn() -> DeviceView,
        log: &mut (impl InflightTracker + Observer),
    ) -> QueueProgress {
        if self.slots.is_resetting() {
            // When the reset is over, poll again: a change may wait until every queue has seen the present epoch.
            return QueueProgress { interrupt: false, again: self.finish_reset(memory, storage) };
        }
        // A driver may set a size of 0; the ring is off or broken then.
        let mut budget = self.ring.setup().size.max(1);
        // An error has broken the ring, which `ring().error()` reports. Later polls still take the completions.
        let drained = self.run(memory, storage, &view, &mut budget, log).unwrap_or(true);
        let interrupt = self.ring.publish(memory, log).unwrap_or(false);
        QueueProgress { interrupt, again: !drained }
    }

    /// Submits the flush that turns the cache off. Call it when this and every other queue [is quiet](Self::is_quiet).
    ///
    /// # Errors
    /// [`Deferred`] if it cannot be taken now.
    pub fn flush<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> Result<(), Deferred> {
        let request = Request::new(Op::Flush).ordered(Order::Barrier);
        let cache = GuestCache::WriteBack;
        let started = self.slots.submit(memory, storage, &request, cache, &[], Owner::CacheOff)?;
        if let Some(Done { slot, result }) = started.done() {
            self.slots.release(slot);
            self.flushed = Some(result.is_ok());
        }
        Ok(())
    }

    /// Result of the flush that [`Self::flush`] submitted, once it has ended.
    pub const fn take_flushed(&mut self) -> Option<bool> {
        self.flushed.take()
    }

    /// Begins a reset: the ring is forgotten, and no guest memory of it is touched any more; what the storage has is
    /// awaited by [`Self::poll`] while [`Self::is_resetting`].
    pub fn reset(&mut self) {
        #[cfg(feature = "mutants")]
        if blk_core::mutant::active(blk_core::mutant::Mutant::ResetReexecutes) {
            let owners = self.slots.payloads().filter_map(|(_, owner)| match owner {
                Owner::Driver { again, .. } => *again,
                Owner::CacheOff => None,
            });
            self.again = owners.take(4).collect();
        }
        self.ring.reset();
        self.slots.reset();
        self.ranges = None;
        self.flushed = None;
    }

    /// Goes on with a reset, and returns whether it is over. Bounded by what is in flight.
    pub fn finish_reset<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> bool {
        // Completions are swallowed: their requests are gone.
        while self.slots.poll(memory, storage).is_some() {}
        let over = self.slots.finish_reset(storage);
        #[cfg(feature = "mutants")]
        if over {
            for (op, segment) in core::mem::take(&mut self.again) {
                let stray = blk_core::units::Tag { slot: 0, generation: u16::MAX };
                let _ = storage.submit(memory, stray, op, &[segment]);
            }
        }
        over
    }

    /// Only under a mutant: forgets what is in flight instead of awaiting it.
    pub(crate) fn forget_in_flight(&mut self) {
        self.slots = Sequencer::new();
    }

    /// Takes completions and requests. Returns true if the ring is empty or its next request waits for a completion or for the
    /// device; false if the budget ran out.
    #[inline]
    fn run<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &impl Fn() -> DeviceView,
        budget: &mut u16,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<bool, QueueError> {
        self.ring.fetch_avail_idx(memory)?;
        loop {
            let before = *budget;
            while let Some(done) = self.slots.poll(memory, storage) {
                self.end(memory, storage, done, log)?;
            }
            let supplied =
                self.slots.needs_segments().is_some() && self.supply_segments(memory, storage, log)?;
            let waits = self.process_available(memory, storage, &view(), budget, log)?;
            if *budget == 0 {
                return Ok(false);
            }
            if (*budget != before || supplied) && !self.slots.is_idle() {
                // The storage may have completed it by now.
                continue;
            }
            if waits || !self.ring.enable_notification(memory)? {
                return Ok(true);
            }
        }
    }

    /// Takes requests until none is left, the budget is used up, or one has to wait. Returns whether one has to wait.
    #[inline]
    fn process_available<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        budget: &mut u16,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<bool, QueueError> {
        self.epoch = view.epoch;
        while *budget != 0 && self.ring.has_fetched(log) {
            let Some(head) = self.ring.peek(memory, log)? else { return Ok(false) };
            if !view.open || self.slots.is_full() {
                return Ok(true);
            }
            let mut segments = Segments::new();
            let mut chain = Chain::new(&mut segments);
            self.ring.walk(memory, head, |buffer| chain.add(memory, buffer))?;
            let Some(status) = chain.finish() else {
                return Err(self.ring.break_with(QueueError::Unanswerable));
            };
            let mut seen = Seen::default();
            match self.take(memory, storage, view, &chain, &mut seen, (head, status)) {
                Ok(Taken::Submitted) => {
                    self.ring.pop(log, head);
                    log.began(seen.command, seen.bytes);
                }
                Ok(Taken::Ended(done)) => {
                    self.ring.pop(log, head);
                    log.began(seen.command, seen.bytes);
                    self.end(memory, storage, done, log)?;
                }
                Ok(Taken::Answered(answer, written)) => {
                    if answer != Status::Ok {
                        log!(debug, "virtio-blk: request {} answered {}", seen.command, answer);
                    }
                    self.ring.pop(log, head);
                    log.began(seen.command, seen.bytes);
                    self.answer(memory, log, head, status, answer, written)?;
                }
                Err(_) => return Ok(true),
            }
            *budget = budget.saturating_sub(1);
        }
        Ok(false)
    }

    /// Decodes a request and starts it.
    #[inline]
    fn take<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        chain: &Chain<'_>,
        seen: &mut Seen,
        (head, status): (u16, GuestAddr),
    ) -> Result<Taken, Deferred> {
        let refuse = |status| Ok(Taken::Answered(status, 1));
        let info = storage.info();
        // A header that is too short ends with IOERR (host-std/tests/defects.md, 5).
        let Some(header) = chain.header() else { return refuse(Status::IoErr) };
        let read_only = view.read_only || info.read_only;
        let (command, order) = match command::decode(&header, view.features, info, read_only) {
            Ok(decoded) => decoded,
            Err(status) => return refuse(status),
        };
        seen.command = Some(command);
        let ((segments, bytes), written) = match command {
            Command::Read { .. } => (chain.writable(), chain.writable().1),
            Command::Write { .. } => (chain.readable(), 0),
            // Also if it brings data, or none: host-std/tests/defects.md, 6.
            Command::Flush => ((&[][..], 0), 0),
            Command::Discard | Command::WriteZeroes => {
                return self.take_ranges(memory, storage, view, (command, order), chain, (head, status));
            }
            Command::GetId => return Ok(self.identify(memory, chain)),
            Command::Unknown { .. } => return refuse(Status::Unsupported),
        };
        seen.bytes = bytes;
        let (op, fua) = match command::operation(command, bytes, info) {
            Ok(operation) => operation,
            Err(status) => return refuse(status),
        };
        if segments.len() > usize::from(info.segments_max) {
            return refuse(Status::IoErr);
        }
        let request = Request::new(op).with_fua(fua).ordered(order);
        let written = u32::try_from(written).unwrap_or(0).saturating_add(1);
        self.submit(memory, storage, view, &request, segments, driver(head, status, written))
    }

    #[inline(always)]
    fn submit<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        request: &Request,
        segments: &[Segment],
        owner: Owner,
    ) -> Result<Taken, Deferred> {
        #[cfg(feature = "mutants")]
        let owner = match (owner, segments) {
            (Owner::Driver { head, status, written, .. }, &[segment]) => {
                Owner::Driver { head, status, written, again: Some((request.op, segment)) }
            }
            (owner, _) => owner,
        };
        match self.slots.start(memory, storage, request, view.cache, segments)? {
            Started::InFlight(slot) => {
                self.slots.attach(slot, owner);
                Ok(Taken::Submitted)
            }
            Started::Ended(Done { slot, result }) => {
                self.slots.release(slot);
                log_failure(result);
                Ok(owner.answer(result))
            }
        }
    }

    /// Starts a discard or write-zeroes. All segments are copied and checked before any is done.
    #[inline(never)]
    fn take_ranges<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: &DeviceView,
        (command, order): (Command, Order),
        chain: &Chain<'_>,
        (head, status): (u16, GuestAddr),
    ) -> Result<Taken, Deferred> {
        let (segments, bytes) = chain.readable();
        let mut buffer = [0; RANGES_MAX * size_of::<RangeSegment>()];
        let copied = usize::try_from(bytes).ok().and_then(|bytes| {
            let into = buffer.get_mut(..bytes)?;
            copy_out(memory, segments, into)?;
            Some(&*into)
        });
        let Some(copied) = copied else { return Ok(Taken::Answered(Status::IoErr, 1)) };
        let ops = match command::ranges(command, copied, storage.info()) {
            Ok(ops) => ops,
            Err(status) => return Ok(Taken::Answered(status, 1)),
        };
        if ops.len() > 1 && self.ranges.is_some() {
            return Err(Deferred::Full);
        }
        let Some(&first) = ops.first() else { return Ok(Taken::Answered(Status::IoErr, 1)) };
        let request = Request::new(first).ordered(order);
        let owner = driver(head, status, 1);
        let started = self.slots.submit(memory, storage, &request, view.cache, &[], owner)?;
        if ops.len() > 1 {
            self.ranges = Some(Ranges { slot: started.slot(), order, cache: view.cache, ops, next: 1 });
        }
        Ok(started.done().map_or(Taken::Submitted, Taken::Ended))
    }

    /// GET_ID: 20 bytes, padded with zeroes (5.2.6), or as many as there is room for.
    fn identify<M: GuestMemory + ?Sized>(&self, memory: &M, chain: &Chain<'_>) -> Taken {
        let (segments, _) = chain.writable();
        match copy_in(memory, segments, &self.id) {
            Some(written) => Taken::Answered(Status::Ok, written.saturating_add(1)),
            None => Taken::Answered(Status::IoErr, 1),
        }
    }

    /// Handles the end of a slot's operation: starts the next range, or answers the request.
    #[inline]
    fn end<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        done: Done,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<(), QueueError> {
        let mut done = done;
        while self.ranges.as_ref().is_some_and(|ranges| ranges.slot == done.slot) {
            match self.advance(memory, storage, done) {
                Some(Started::InFlight(_)) => return Ok(()),
                Some(Started::Ended(next)) => done = next,
                None => break,
            }
        }
        self.release(memory, done.slot, done.result, log)
    }

    /// Starts the next range of a request, if there is one and nothing failed.
    #[cold]
    fn advance<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        done: Done,
    ) -> Option<Started> {
        let next = self.ranges.as_mut().filter(|_| done.result.is_ok());
        let next =
            next.and_then(|ranges| Some((Request::new(ranges.take()?).ordered(ranges.order), ranges.cache)));
        let Some((request, cache)) = next else {
            self.ranges = None;
            return None;
        };
        Some(self.slots.advance(memory, storage, done.slot, &request, cache, &[]))
    }

    /// Supplies the segments of operations that waited for a flush or for the storage. Returns whether anything moved.
    ///
    /// The sequencer keeps none, so the chain is walked again. If the driver has changed it so that the data no longer fits, the
    /// request fails. The operation itself stays as it was decoded.
    #[cold]
    #[inline(never)]
    fn supply_segments<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<bool, QueueError> {
        let mut moved = false;
        while let Some((slot, op)) = self.slots.needs_segments() {
            let head = match self.slots.payload(slot) {
                Some(&mut Owner::Driver { head, .. }) => head,
                _ => return Ok(moved),
            };
            let mut found = Segments::new();
            let mut chain = Chain::new(&mut found);
            let segments = match op {
                Op::Read { .. } | Op::Write { .. } => {
                    self.ring.walk(memory, head, |buffer| chain.add(memory, buffer))?;
                    chain.finish();
                    if op.mutates() { chain.readable().0 } else { chain.writable().0 }
                }
                _ => &[],
            };
            let fits = match op {
                Op::Read { extent } | Op::Write { extent, .. } => {
                    let segments_max = usize::from(storage.info().segments_max);
                    segments.len() <= segments_max && total_bytes(segments) == extent.bytes()
                }
                _ => true,
            };
            if !fits {
                self.release(memory, slot, Err(IoErrorKind::Memory.into()), log)?;
            } else {
                let supplied = self.slots.supply_segments(memory, storage, slot, segments);
                let Ok(started) = supplied else { return Ok(moved) };
                if let Some(done) = started.done() {
                    self.end(memory, storage, done, log)?;
                }
            }
            moved = true;
        }
        Ok(moved)
    }

    /// Frees a slot and answers its request.
    #[inline(always)]
    fn release<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        slot: u16,
        result: Result<(), IoError>,
        log: &mut (impl InflightTracker + Observer),
    ) -> Result<(), QueueError> {
        match self.slots.release(slot) {
            Some(Owner::Driver { head, status, written, .. }) => {
                log_failure(result);
                let written = written_on(result, written);
                self.answer(memory, log, head, status, Status::from(result), written)
            }
            Some(Owner::CacheOff) => {
                self.flushed = Some(result.is_ok());
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Writes the status byte and returns the chain.
    #[inline(always)]
    fn answer<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        log: &mut (impl InflightTracker + Observer),
        head: u16,
        at: GuestAddr,
        status: Status,
        written: u32,
    ) -> Result<(), QueueError> {
        if !self.ring.is_running() {
            return Ok(());
        }
        log.ended(status);
        if memory.write(at, &[status as u8]).is_err() {
            return Err(self.ring.break_with(QueueError::Memory));
        }
        self.ring.add_used(memory, log, head, written)
    }
}

#[inline(always)]
fn log_failure(result: Result<(), IoError>) {
    if let Err(error) = result {
        log!(warn, "virtio-blk: operation failed: {}", error);
    }
}

/// A request in flight: what is left to do once the storage is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
enum Owner {
    /// The driver's, in a chain.
    Driver {
        /// The chain's head.
        head: u16,
        /// Where the status byte goes.
        status: GuestAddr,
        /// Bytes written into the chain on success, the status byte among them.
        written: u32,
        /// Only under a mutant: what a reset executes once more.
        #[cfg(feature = "mutants")]
        again: Option<(Op, Segment)>,
    },
    /// The device's own flush, as the cache is turned off.
    CacheOff,
}

impl Owner {
    /// The answer to a request that has ended with `result`.
    #[inline(always)]
    fn answer(&self, result: Result<(), IoError>) -> Taken {
        let &Self::Driver { written, .. } = self else { return Taken::Submitted };
        Taken::Answered(Status::from(result), written_on(result, written))
    }
}

/// Bytes written into a chain. On an error only the status byte is known to be (CVE-2024-8612).
#[inline(always)]
const fn written_on(result: Result<(), IoError>, written: u32) -> u32 {
    if result.is_ok() { written } else { 1 }
}

/// Rest of a discard or write-zeroes of several segments.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
struct Ranges {
    slot: u16,
    /// The request's order, for each range: in a barrier every range has to be stable.
    order: Order,
    cache: GuestCache,
    ops: Vec<Op, RANGES_MAX>,
    /// The place of the operation that is submitted next.
    next: u8,
}

impl Ranges {
    fn take(&mut self) -> Option<Op> {
        let op = *self.ops.get(usize::from(self.next))?;
        self.next = self.next.saturating_add(1);
        Some(op)
    }
}

/// Request of a chain, as far as it was decoded.
#[derive(Default)]
struct Seen {
    command: Option<Command>,
    bytes: u64,
}

/// Result of taking a request.
enum Taken {
    /// It has a slot, and is answered when the storage completes it.
    Submitted,
    /// It has a slot, and its first range is done already.
    Ended(Done),
    /// It is to be answered now: the status, and the bytes written into the chain.
    Answered(Status, u32),
}

const fn driver(head: u16, status: GuestAddr, written: u32) -> Owner {
    Owner::Driver {
        head,
        status,
        written,
        #[cfg(feature = "mutants")]
        again: None,
    }
}
