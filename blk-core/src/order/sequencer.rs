//! Executes the plans of one queue's requests on a `Storage`: fixed slots, each a state machine from pre-flush to post-flush.

mod mutants;
mod noted;
mod outcome;
mod run;
mod slot;

pub use self::outcome::{Deferred, Done, Started};

use self::noted::Defects;
use self::slot::{Rest, Slot, Stage};
use super::slot_set::SlotSet;
use crate::mutant::{Mutant, active};
use crate::op::{Op, Segment};
use crate::order::plan::{GuestCache, Request, plan};
use crate::storage::{Busy, Completion, Storage, Submission};
use crate::units::Tag;

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
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
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
    defects: Defects,
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
            defects: Defects::NONE,
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
            self.begin(memory, storage, slot, &plan, segments)?
        };
        self.used.insert(slot);
        if plan.exclusive {
            self.barrier = Some(slot);
        }
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.payload = Some(payload);
        }
        Ok(started)
    }

    /// [`Self::submit`] for an owner to whom the end of a request is all: one that ends at once has no slot and no payload any more.
    /// One that is [`Submission::Pending`] is named by [`Self::poll`] or [`Self::needs_segments`] later.
    ///
    /// # Errors
    /// [`Deferred`] if it cannot be taken now; `payload` is then dropped and nothing has changed.
    #[inline(always)]
    #[allow(
        clippy::too_many_arguments,
        reason = "memory and storage come in with each call; the rest is the request"
    )]
    pub fn start<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        request: Request,
        cache: GuestCache,
        segments: &[Segment],
        payload: T,
    ) -> Result<Submission, Deferred> {
        let plan = plan(&request, cache, storage.info());
        let alone = Self::is_one_operation(&plan) && !plan.exclusive;
        let slot = self.next_slot().filter(|_| alone && self.barrier.is_none() && !self.resetting);
        let Some(slot) = slot else {
            return self.start_in_slot(memory, storage, request, cache, segments, payload);
        };
        // Nearly always. The storage is asked before the slot is touched.
        let tag = self.next_tag(slot);
        let submission = Self::hand_over(memory, storage, tag, plan.op, segments)?;
        self.generation = tag.generation;
        match submission {
            Submission::Pending => self.occupy(tag, plan.op, payload),
            Submission::Done(_) => self.defects.done(plan.op),
        }
        Ok(submission)
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
        self.advance_later(storage, slot, request, cache);
        self.supply_segments(memory, storage, slot, segments).unwrap_or(Started::InFlight(slot))
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
        if let Some(Stage::Ended) = self.stage(slot) {
            let plan = plan(request, cache, storage.info());
            let _ = self.wait(slot, Stage::NeedsSegments(Rest::of(&plan)));
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
        self.run(memory, storage, slot, rest.next(), Some(segments))
    }

    /// Frees a slot that [`Done`] reported or [`Self::needs_segments`] named, and returns its payload. `None`, without effect, in
    /// any other stage.
    #[inline]
    pub fn release(&mut self, slot: u16) -> Option<T> {
        let s = self.slots.get_mut(usize::from(slot))?;
        if !matches!(s.stage, Stage::Ended | Stage::NeedsSegments(_)) {
            return None;
        }
        self.defects.released(s.noted);
        let payload = s.payload.take();
        let needs_segments = !matches!(s.stage, Stage::Ended);
        s.clear();
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

    /// [`Self::start`], in general.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "as for `start`")]
    fn start_in_slot<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        request: Request,
        cache: GuestCache,
        segments: &[Segment],
        payload: T,
    ) -> Result<Submission, Deferred> {
        let started = self.submit(memory, storage, &request, cache, segments, payload)?;
        Ok(match started {
            Started::InFlight(_) => Submission::Pending,
            Started::Ended(Done { slot, result }) => {
                if let Some(s) = self.slots.get(usize::from(slot)) {
                    self.defects.released(s.noted);
                }
                self.free(slot);
                Submission::Done(result)
            }
        })
    }

    /// A request of one operation, which is in flight, has the slot of its tag.
    #[inline]
    fn occupy(&mut self, Tag { slot, generation }: Tag, op: Op, payload: T) {
        self.used.insert(slot);
        let Some(s) = self.slots.get_mut(usize::from(slot)) else { return };
        let _ = s.given(op, Submission::Pending);
        s.stage = Self::acked_at_submission(op, false);
        s.generation = generation;
        s.payload = Some(payload);
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
