//! Executes the plans of one queue's requests on a `Storage`: fixed slots, each a state machine from pre-flush to post-flush.

mod mutants;
mod slot;

use core::fmt;

use self::slot::{Next, Reached, Rest, Slot, Stage};
use super::slot_set::SlotSet;
use crate::mutant::{Mutant, active};
use crate::op::{Op, Segment};
use crate::order::plan::{GuestCache, Plan, Request, plan};
use crate::storage::{Busy, Completion, IoError, Storage, Submission};
use crate::units::Tag;

/// Why a request was not taken. Its owner keeps it and offers it again after the next completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Deferred {
    /// The storage is busy.
    Busy,
    /// Every slot is in use.
    Full,
    /// A barrier runs, or this is one and older requests are in flight.
    Barrier,
    /// A reset waits for what was submitted.
    Resetting,
}

impl fmt::Display for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the storage is busy",
            Self::Full => "every slot is in use",
            Self::Barrier => "a barrier is in flight, or the request is one and older requests are in flight",
            Self::Resetting => "a reset waits for what was submitted",
        })
    }
}

impl core::error::Error for Deferred {}

impl From<Busy> for Deferred {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

/// A request has ended. Its slot and payload stay until [`Sequencer::release`] or [`Sequencer::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Done {
    /// The slot.
    pub slot: u16,
    /// How the last of its operations ended.
    pub result: Result<(), IoError>,
}

/// Where a request stands once the storage has been given what can be given now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Started {
    /// It goes on in this slot: [`Sequencer::poll`] or [`Sequencer::needs_segments`] names it.
    InFlight(u16),
    /// The storage did all of it at once. It is as if [`Sequencer::poll`] had reported it.
    Ended(Done),
}

impl Started {
    /// The request's slot.
    #[must_use]
    #[inline]
    pub const fn slot(self) -> u16 {
        match self {
            Self::InFlight(slot) | Self::Ended(Done { slot, .. }) => slot,
        }
    }

    /// The end of the request, if it has ended.
    #[must_use]
    pub const fn done(self) -> Option<Done> {
        match self {
            Self::Ended(done) => Some(done),
            Self::InFlight(_) => None,
        }
    }
}

/// The requests in flight of one queue, at most `N` (128 at most), each with its owner's payload `T`.
///
/// The sequencer owns durability and barriers, and nothing else: it keeps no segments and no guest addresses. A request that it
/// cannot take is refused with [`Deferred`]; the owner leaves it where the guest put it.
///
/// ```text
/// submit -> Busy/Full/Barrier/Resetting: leave the request unpopped, try again after the next completion
///        -> slot: [flush] -> (needs_segments) -> operation -> [flush] -> Done -> release | advance to another operation
/// ```
///
/// A storage may do an operation at once ([`Submission::Done`]). The plan then goes on within the same call, as far as that
/// holds, and the end of a request is returned by the call that brought it about.
///
/// ```
/// use blk_core::memory::CellMemory;
/// use blk_core::op::Op;
/// use blk_core::order::{GuestCache, Deferred, Order, Request, Sequencer};
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::units::{Extent, GuestAddr};
///
/// let (mut ram, mut image) = ([0; 512], [0; 1 << 16]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disk = RamDisk::<2>::new(Ram::new(&mut image), &mut []);
/// let mut sequencer = Sequencer::<(), 2>::new();
///
/// let zero = Request::new(Op::WriteZeroes { extent: Extent::new(0, 8), may_unmap: false });
/// let barrier = zero.ordered(Order::Barrier);
/// let mut submit = |sequencer: &mut Sequencer<(), 2>, request| {
///     sequencer.submit(&memory, &mut disk, request, GuestCache::WriteBack, &[], ())
/// };
/// // A RAM disk does it at once; a file would have it in flight, and `poll` would report its end.
/// let done = submit(&mut sequencer, &zero)?.done().unwrap();
/// assert_eq!(done.result, Ok(()));
/// // A barrier waits for what is older; its owner keeps it and offers it again.
/// assert_eq!(submit(&mut sequencer, &barrier), Err(Deferred::Barrier));
/// sequencer.release(done.slot);
/// assert!(submit(&mut sequencer, &barrier).is_ok());
/// # Ok::<(), Deferred>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "snapshot",
    serde(bound(serialize = "T: serde::Serialize", deserialize = "T: serde::de::DeserializeOwned"))
)]
pub struct Sequencer<T, const N: usize> {
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    slots: [Slot<T>; N],
    used: SlotSet<N>,
    /// The slots that are `NeedsSegments`.
    needs_segments: SlotSet<N>,
    /// The slots that are `PostFlushRetry`.
    refused: SlotSet<N>,
    /// The slot of the barrier that runs.
    barrier: Option<u16>,
    resetting: bool,
    generation: u16,
    /// Completions that named no operation in flight: a defect of the storage.
    strays: u32,
    #[cfg(feature = "mutants")]
    dirty: bool,
}

impl<T, const N: usize> Default for Sequencer<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const N: usize> Sequencer<T, N> {
    /// An idle sequencer.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: [const { Slot::FREE }; N],
            used: SlotSet::EMPTY,
            needs_segments: SlotSet::EMPTY,
            refused: SlotSet::EMPTY,
            barrier: None,
            resetting: false,
            generation: 0,
            strays: 0,
            #[cfg(feature = "mutants")]
            dirty: false,
        }
    }

    /// Requests that have a slot.
    #[must_use]
    pub const fn in_use(&self) -> u32 {
        self.used.len()
    }

    /// Whether no request has a slot.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.used.is_empty()
    }

    /// Whether a reset still waits for operations in flight.
    #[must_use]
    pub const fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Completions that named no operation in flight. Always 0 with a storage that keeps the contract.
    #[must_use]
    pub const fn strays(&self) -> u32 {
        self.strays
    }

    /// The slot that the next [`submit`](Self::submit) will use, so that its staging buffer can be filled beforehand.
    #[must_use]
    #[inline]
    pub fn next_slot(&self) -> Option<u16> {
        self.used.lowest_absent()
    }

    /// Whether every slot is in use.
    #[must_use]
    #[inline]
    pub const fn is_full(&self) -> bool {
        self.used.is_full()
    }

    /// The payload of a slot in use.
    #[inline]
    pub fn payload(&mut self, slot: u16) -> Option<&mut T> {
        self.slots.get_mut(usize::from(slot))?.payload.as_mut()
    }

    /// The slots in use with their payloads, lowest slot first.
    pub fn payloads(&self) -> impl Iterator<Item = (u16, &T)> {
        (0..).zip(self.slots.iter()).filter_map(|(slot, s)| Some((slot, s.payload.as_ref()?)))
    }

    /// Takes a request: plans it for a guest that was told `cache`, and starts it.
    ///
    /// If the plan begins with a flush that the storage does not do at once, the segments are not used now: the slot turns up in
    /// [`Self::needs_segments`] when the flush is done, and the owner supplies them again with [`Self::supply_segments`].
    ///
    /// # Errors
    /// [`Deferred`] if it cannot be taken now; `payload` is then dropped and nothing has changed.
    #[inline]
    #[allow(
        clippy::too_many_arguments,
        reason = "memory and storage come in with each call; the rest is the request"
    )]
    pub fn submit<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        request: &Request,
        cache: GuestCache,
        segments: &[Segment],
        payload: T,
    ) -> Result<Started, Deferred> {
        let started = self.start(memory, storage, request, cache, segments)?;
        self.attach(started.slot(), payload);
        Ok(started)
    }

    /// [`Self::submit`] without a payload, for an owner that [attaches](Self::attach) one only to what is in flight: a request that
    /// has ended at once needs none.
    ///
    /// # Errors
    /// [`Deferred`] if it cannot be taken now; nothing has changed.
    #[inline(always)]
    pub fn start<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        request: &Request,
        cache: GuestCache,
        segments: &[Segment],
    ) -> Result<Started, Deferred> {
        if self.resetting {
            return Err(Deferred::Resetting);
        }
        if self.barrier.is_some() && !active(Mutant::BarrierAdmitsYounger) {
            return Err(Deferred::Barrier);
        }
        let slot = self.next_slot().ok_or(Deferred::Full)?;
        let plan = plan(request, cache, storage.info());
        if plan.exclusive && !self.is_idle() && !Self::drain_dropped(request) {
            return Err(Deferred::Barrier);
        }
        let started = if Self::is_one_operation(&plan) {
            // Nearly always. The slot is new: there is nothing of it to be forgotten.
            let submission = self.give(memory, storage, slot, plan.op, segments)?;
            self.first(slot, plan.op, submission)
        } else {
            let (stage, result) = self.begin(memory, storage, slot, &plan, segments)?;
            self.reach(slot, stage, result)
        };
        self.used.insert(slot);
        if plan.exclusive {
            self.barrier = Some(slot);
        }
        Ok(started)
    }

    /// Gives the request in `slot` its payload.
    #[inline]
    pub fn attach(&mut self, slot: u16, payload: T) {
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.payload = Some(payload);
        }
    }

    /// Lets a slot that [`Done`] named go on with another operation, keeping its payload and its barrier.
    ///
    /// If the storage is busy the slot turns up in [`Self::needs_segments`] later, and the owner supplies the segments then.
    pub fn advance<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        request: &Request,
        cache: GuestCache,
        segments: &[Segment],
    ) -> Started {
        if self.stage(slot) != Some(Stage::Ended) {
            return Started::InFlight(slot);
        }
        let plan = plan(request, cache, storage.info());
        let waits = (Stage::NeedsSegments(Rest::of(&plan)), Ok(()));
        let (stage, result) = self.begin(memory, storage, slot, &plan, segments).unwrap_or(waits);
        self.reach(slot, stage, result)
    }

    /// As [`Self::advance`], but nothing is submitted before the owner supplies the segments: for an owner that has done enough
    /// for now.
    pub fn advance_later<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        storage: &S,
        slot: u16,
        request: &Request,
        cache: GuestCache,
    ) {
        if self.stage(slot) == Some(Stage::Ended) {
            let plan = plan(request, cache, storage.info());
            let _ = self.reach(slot, Stage::NeedsSegments(Rest::of(&plan)), Ok(()));
        }
    }

    /// The lowest slot whose segments the owner has to supply again, with its operation.
    #[must_use]
    #[inline]
    pub fn needs_segments(&self) -> Option<(u16, Op)> {
        let slot = self.needs_segments.lowest()?;
        match self.stage(slot)? {
            Stage::NeedsSegments(rest) => Some((slot, rest.op)),
            _ => None,
        }
    }

    /// Supplies the segments of a slot that [`Self::needs_segments`] named.
    ///
    /// # Errors
    /// [`Busy`] if the storage is busy; the slot still needs them.
    pub fn supply_segments<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        segments: &[Segment],
    ) -> Result<Started, Busy> {
        let Some(Stage::NeedsSegments(rest)) = self.stage(slot) else { return Ok(Started::InFlight(slot)) };
        let (stage, result) = self.run(memory, storage, slot, rest.next(), Some(segments))?;
        Ok(self.reach(slot, stage, result))
    }

    /// Frees a slot that [`Done`] reported or [`Self::needs_segments`] named, and returns its payload. `None`, without effect, in
    /// any other stage.
    #[inline]
    pub fn release(&mut self, slot: u16) -> Option<T> {
        let s = self.slots.get_mut(usize::from(slot))?;
        if !matches!(s.stage, Stage::Ended | Stage::NeedsSegments(_)) {
            return None;
        }
        #[cfg(feature = "mutants")]
        {
            self.dirty |= s.op.is_some_and(|op| op.mutates());
        }
        let payload = s.payload.take();
        let needs_segments = s.stage != Stage::Ended;
        s.stage = Stage::Free;
        self.used.remove(slot);
        if needs_segments {
            self.settle(slot);
        }
        if self.barrier == Some(slot) {
            self.barrier = None;
        }
        payload
    }

    /// The next request that has ended.
    ///
    /// Bounded: takes completions until one ends a request. A call takes two per slot at most: the operation's and that of the
    /// flush after it.
    #[inline]
    pub fn poll<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> Option<Done> {
        if !self.refused.is_empty()
            && let Some(done) = self.retry_refused(memory, storage)
        {
            return Some(done);
        }
        if cfg!(feature = "mutants")
            && let Some(done) = self.acked_early()
        {
            return Some(done);
        }
        while let Some(Completion { tag: Tag { slot, generation }, result }) = storage.poll(memory) {
            let s = self.slots.get_mut(usize::from(slot));
            let Some(s) = s.filter(|s| s.generation == generation && s.stage.is_in_flight()) else {
                self.stray();
                continue;
            };
            let result = s.reported(result);
            // Nearly always: a request of one operation.
            if matches!(s.stage, Stage::Data { flush_after: false }) && !self.resetting {
                s.stage = Stage::Ended;
                return Some(Done { slot, result });
            }
            if let Some(done) = self.completed(memory, storage, slot, result) {
                return Some(done);
            }
        }
        None
    }

    /// Begins a reset. Requests that the storage does not have are dropped now. [`Self::poll`] waits for the others and does not
    /// report them. The reset is over when [`Self::finish_reset`] returns true.
    pub fn reset(&mut self) {
        self.resetting = true;
        self.barrier = None;
        let without_drain = active(Mutant::ResetWithoutDrain);
        for slot in (0_u16..).take(N) {
            let in_flight = self.stage(slot).is_some_and(Stage::is_in_flight);
            if !in_flight || without_drain {
                self.free(slot);
            }
        }
    }

    /// Ends a reset once nothing is in flight, or once the storage promises that nothing of it will land. Returns whether no
    /// reset is under way; what slots held is then held no more. While it returns false, the device stays in reset, and shows that to the guest.
    pub fn finish_reset<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, storage: &mut S) -> bool {
        if self.resetting && !self.is_idle() && storage.cancel_in_flight() {
            for slot in (0_u16..).take(N) {
                self.free(slot);
            }
        }
        if self.resetting && self.is_idle() {
            (0_u16..).take(N).for_each(|slot| storage.release_hold(slot));
            self.resetting = false;
        }
        !self.resetting
    }

    /// The only operation of a new slot was submitted.
    #[inline(always)]
    fn first(&mut self, slot: u16, op: Op, submission: Submission) -> Started {
        let (stage, started) = match submission {
            Submission::Pending => (Self::acked_at_submission(op, false), Started::InFlight(slot)),
            Submission::Done(result) => (Stage::Ended, Started::Ended(Done { slot, result })),
        };
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.stage = stage;
        }
        started
    }

    /// Begins a plan. Busy means that the storage took nothing of it.
    #[inline(never)]
    fn begin<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        plan: &Plan,
        segments: &[Segment],
    ) -> Result<Reached, Busy> {
        let op = plan.op;
        if op == Op::Flush && self.drops_flush(plan.exclusive) {
            return Ok((Stage::AckEarly, Ok(())));
        }
        self.run(memory, storage, slot, Rest::of(plan).next(), Some(segments))
    }

    /// Goes on with a plan from `next` on, as far as the storage does its operations at once. Busy means that it took nothing.
    #[inline(never)]
    fn run<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        mut next: Next,
        segments: Option<&[Segment]>,
    ) -> Result<Reached, Busy> {
        let mut began = false;
        loop {
            let (op, with, in_flight) = match (&next, segments) {
                (Next::PreFlush(rest), _) => (Op::Flush, &[][..], Stage::PreFlush(*rest)),
                (Next::Data(rest), None) => return Ok((Stage::NeedsSegments(*rest), Ok(()))),
                (Next::Data(rest), Some(segments)) => {
                    (rest.op, segments, Self::acked_at_submission(rest.op, rest.flush_after))
                }
                (Next::PostFlush, _) => (Op::Flush, &[][..], Stage::PostFlush),
            };
            let submission = match (self.give(memory, storage, slot, op, with), &next) {
                (Ok(submission), _) => submission,
                (Err(Busy), Next::PostFlush) => return Ok((Stage::PostFlushRetry, Ok(()))),
                (Err(Busy), Next::Data(rest)) if began => return Ok((Stage::NeedsSegments(*rest), Ok(()))),
                (Err(Busy), _) => return Err(Busy),
            };
            if let Next::Data(Rest { flush_after: true, .. }) = next {
                Self::flush_beside(memory, storage, slot);
            }
            let result = match submission {
                Submission::Pending => return Ok((in_flight, Ok(()))),
                Submission::Done(result) => result,
            };
            next = match (next, result) {
                (Next::PreFlush(rest), Ok(())) => Next::Data(Rest { flush_before: false, ..rest }),
                (Next::Data(Rest { flush_after: true, .. }), Ok(())) if !self.skips_flush(true) => {
                    Next::PostFlush
                }
                _ => return Ok((Stage::Ended, result)),
            };
            began = true;
        }
    }

    /// Goes on with the plan of a slot whose operation has completed. Returns the slot if that was the last one.
    #[inline(never)]
    fn completed<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        result: Result<(), IoError>,
    ) -> Option<Done> {
        if self.resetting {
            self.free(slot);
            return None;
        }
        let stage = self.stage(slot)?;
        let next = match (stage, result) {
            (Stage::PreFlush(rest), Ok(())) => Next::Data(Rest { flush_before: false, ..rest }),
            (Stage::Data { flush_after: true }, Ok(())) if !self.skips_flush(false) => Next::PostFlush,
            _ => return self.reach(slot, Stage::Ended, result).done(),
        };
        // Of these two neither is refused: one waits for segments, the other to be tried again.
        let (stage, result) = self.run(memory, storage, slot, next, None).ok()?;
        self.reach(slot, stage, result).done()
    }

    /// Submits again the flushes that the storage refused as busy, until one of them ends a request.
    #[cold]
    fn retry_refused<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> Option<Done> {
        while let Some(slot) = self.refused.lowest() {
            let (stage, result) = self.run(memory, storage, slot, Next::PostFlush, None).ok()?;
            if stage == Stage::PostFlushRetry {
                return None;
            }
            if let Some(done) = self.reach(slot, stage, result).done() {
                return Some(done);
            }
        }
        None
    }

    /// Submits one operation of a slot.
    #[inline(always)]
    fn give<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let tag = Tag { slot, generation: self.generation.wrapping_add(1) & 0x7fff };
        let submission = if cfg!(feature = "mutants") && active(Mutant::HalfWrite) {
            let (op, half) = Self::first_half(op, segments);
            storage.submit(memory, tag, op, half.as_ref().map_or(segments, core::slice::from_ref))?
        } else {
            storage.submit(memory, tag, op, segments)?
        };
        self.generation = tag.generation;
        let Some(s) = self.slots.get_mut(usize::from(slot)) else { return Ok(submission) };
        s.generation = tag.generation;
        Ok(s.given(op, submission))
    }

    fn stage(&self, slot: u16) -> Option<Stage> {
        self.slots.get(usize::from(slot)).map(|s| s.stage)
    }

    /// A slot has come to `stage`.
    #[inline(always)]
    fn reach(&mut self, slot: u16, stage: Stage, result: Result<(), IoError>) -> Started {
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.stage = stage;
        }
        self.settle(slot);
        match stage {
            Stage::Ended => return Started::Ended(Done { slot, result }),
            Stage::NeedsSegments(_) => self.needs_segments.insert(slot),
            Stage::PostFlushRetry => self.refused.insert(slot),
            _ => {}
        }
        Started::InFlight(slot)
    }

    /// The slot needs nothing for the moment.
    #[inline]
    fn settle(&mut self, slot: u16) {
        if !(self.needs_segments.is_empty() && self.refused.is_empty()) {
            self.needs_segments.remove(slot);
            self.refused.remove(slot);
        }
    }

    #[inline]
    fn free(&mut self, slot: u16) {
        self.used.remove(slot);
        self.settle(slot);
        if self.barrier == Some(slot) {
            self.barrier = None;
        }
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.stage = Stage::Free;
            s.payload = None;
        }
    }

    #[cold]
    fn stray(&mut self) {
        log!(error, "storage: a completion names no operation in flight");
        self.strays = self.strays.saturating_add(1);
        if cfg!(not(feature = "mutants")) {
            debug_assert!(false, "a completion that names no operation in flight");
        }
    }
}
