//! Executes the plans of one queue's requests on a `Storage`: fixed slots, each a state machine from pre-flush to post-flush.

mod mutants;

use core::fmt;

use crate::mutant::{Mutant, active};
use crate::op::{Op, Segment};
use crate::order::plan::{GuestCache, Plan, Request, plan};
use crate::storage::{Busy, Completion, IoError, Storage};
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

/// Stage of a slot in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
enum Stage {
    /// Unused.
    Free,
    /// The flush before the operation is in flight.
    PreFlush,
    /// The operation can be submitted once the owner supplies its segments.
    NeedsSegments,
    /// The operation is in flight.
    Data,
    /// The operation is done. The storage was too busy for the flush after it, which is tried again.
    PostFlushRetry,
    /// The flush after the operation is in flight.
    PostFlush,
    /// Reported; the owner decides what comes next.
    Ended,
    /// Only under a mutant: to be reported without waiting for the storage.
    AckEarly,
}

impl Stage {
    /// Whether the storage has an operation of the slot.
    const fn is_in_flight(self) -> bool {
        matches!(self, Self::PreFlush | Self::Data | Self::PostFlush)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
struct Slot<T> {
    stage: Stage,
    generation: u16,
    plan: Plan,
    payload: Option<T>,
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
/// let slot = submit(&mut sequencer, &zero)?;
/// // A barrier waits for what is older; its owner keeps it and offers it again.
/// assert_eq!(submit(&mut sequencer, &barrier), Err(Deferred::Barrier));
/// let done = sequencer.poll(&memory, &mut disk).unwrap();
/// assert_eq!((done.slot, done.result), (slot, Ok(())));
/// sequencer.release(slot);
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
    /// Bit n: slot n is in use.
    used: u128,
    /// Bit n: slot n is `NeedsSegments`.
    needs_segments: u128,
    /// Bit n: slot n is `PostFlushRetry`.
    refused: u128,
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
    /// One bit for each slot.
    const ALL: u128 = {
        assert!(N > 0 && N <= 128, "a sequencer has 1 to 128 slots");
        u128::MAX >> (128 - N)
    };

    /// An idle sequencer.
    #[must_use]
    pub fn new() -> Self {
        let empty = Plan { exclusive: false, flush_before: false, op: Op::Flush, flush_after: false };
        Self {
            slots: core::array::from_fn(|_| Slot {
                stage: Stage::Free,
                generation: 0,
                plan: empty,
                payload: None,
            }),
            used: 0,
            needs_segments: 0,
            refused: 0,
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
        self.used.count_ones()
    }

    /// Whether no request has a slot.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        self.used == 0
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
        let free = !self.used & Self::ALL;
        if free == 0 { None } else { u16::try_from(free.trailing_zeros()).ok() }
    }

    /// Whether every slot is in use.
    #[must_use]
    #[inline]
    pub const fn is_full(&self) -> bool {
        self.used == Self::ALL
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
    /// If the plan begins with a flush, the segments are not used now: the slot turns up in [`Self::needs_segments`] when the
    /// flush is done, and the owner supplies them again with [`Self::supply_segments`].
    ///
    /// # Errors
    /// [`Deferred`] if it cannot be taken now; `payload` is then dropped and nothing has changed.
    #[inline(always)]
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
    ) -> Result<u16, Deferred> {
        if self.resetting {
            return Err(Deferred::Resetting);
        }
        if self.barrier.is_some() && !active(Mutant::BarrierAdmitsYounger) {
            return Err(Deferred::Barrier);
        }
        let slot = self.next_slot().ok_or(Deferred::Full)?;
        let plan = plan(request, cache, storage.info());
        let drains = plan.exclusive && !Self::drain_dropped(request);
        if drains && self.used != 0 {
            return Err(Deferred::Barrier);
        }
        let stage = self.start(memory, storage, slot, &plan, segments)?;
        self.used |= bit(slot);
        if plan.exclusive {
            self.barrier = Some(slot);
        }
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.stage = stage;
            s.plan = plan;
            s.payload = Some(payload);
        }
        Ok(slot)
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
    ) {
        if self.stage(slot) != Some(Stage::Ended) {
            return;
        }
        let plan = plan(request, cache, storage.info());
        let stage = self.start(memory, storage, slot, &plan, segments).unwrap_or(Stage::NeedsSegments);
        self.set(slot, stage, plan);
    }

    /// The lowest slot whose segments the owner has to supply again, with its operation.
    #[must_use]
    #[inline]
    pub fn needs_segments(&self) -> Option<(u16, Op)> {
        if self.needs_segments == 0 {
            return None;
        }
        let slot = u16::try_from(self.needs_segments.trailing_zeros()).ok()?;
        self.slots.get(usize::from(slot)).map(|s| (slot, s.plan.op))
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
    ) -> Result<(), Busy> {
        let Some(s) = self.slots.get(usize::from(slot)).filter(|s| s.stage == Stage::NeedsSegments) else {
            return Ok(());
        };
        let plan = s.plan;
        let stage = self.start(memory, storage, slot, &plan, segments).map_err(|_| Busy)?;
        self.set(slot, stage, plan);
        Ok(())
    }

    /// Frees a slot that [`Done`] reported or [`Self::needs_segments`] named, and returns its payload. `None`, without effect, in
    /// any other stage.
    #[inline]
    pub fn release(&mut self, slot: u16) -> Option<T> {
        let s = self.slots.get_mut(usize::from(slot))?;
        if !matches!(s.stage, Stage::Ended | Stage::NeedsSegments) {
            return None;
        }
        #[cfg(feature = "mutants")]
        if s.plan.op.mutates() {
            self.dirty = true;
        }
        let payload = s.payload.take();
        self.free(slot);
        payload
    }

    /// The next request that has ended.
    ///
    /// Bounded: takes completions until one ends a request. A call takes two per slot at most: the operation's and that of the
    /// flush after it.
    #[inline]
    pub fn poll<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> Option<Done> {
        if self.refused != 0 {
            self.retry_refused(memory, storage);
        }
        if cfg!(feature = "mutants")
            && let Some(done) = self.acked_early()
        {
            return Some(done);
        }
        while let Some(completion) = storage.poll(memory) {
            let Completion { tag: Tag { slot, generation }, result } = completion;
            let s = self.slots.get_mut(usize::from(slot));
            let Some(s) = s.filter(|s| s.generation == generation && s.stage.is_in_flight()) else {
                self.stray();
                continue;
            };
            // Nearly always: a request of one operation.
            if s.stage == Stage::Data && !s.plan.flush_after && !self.resetting && !cfg!(feature = "mutants")
            {
                s.stage = Stage::Ended;
                return Some(Done { slot, result });
            }
            if let Some(done) = self.step(memory, storage, slot, result) {
                return Some(done);
            }
        }
        None
    }

    /// Starts the next step of the plan of a slot whose operation has completed. Returns the slot if that was the last step.
    #[inline(never)]
    fn step<M: ?Sized, S: Storage<M> + ?Sized>(
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
        let Slot { stage, mut plan, .. } = *self.slots.get(usize::from(slot))?;
        let flushed = stage != Stage::Data || plan.op == Op::Flush;
        let result = match result {
            Err(_) if flushed && active(Mutant::FlushErrorSwallowed) => Ok(()),
            result => result,
        };
        let next = match (stage, result) {
            (Stage::PreFlush, Ok(())) => {
                // `start` must not flush before it again.
                plan.flush_before = false;
                Stage::NeedsSegments
            }
            (Stage::Data, Ok(())) if plan.flush_after && !self.skips_flush() => {
                self.start_flush(memory, storage, slot).map_or(Stage::PostFlushRetry, |()| Stage::PostFlush)
            }
            _ => Stage::Ended,
        };
        self.set(slot, next, plan);
        (next == Stage::Ended).then_some(Done { slot, result })
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
    /// reset is under way. While it returns false, the device stays in reset, and shows that to the guest.
    pub fn finish_reset<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, storage: &mut S) -> bool {
        if self.resetting && self.used != 0 && storage.cancel_in_flight() {
            for slot in (0_u16..).take(N) {
                self.free(slot);
            }
        }
        if self.used == 0 {
            self.resetting = false;
        }
        !self.resetting
    }

    /// Submits the first operation of `plan`, and says in which stage that leaves the slot.
    #[inline]
    fn start<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        plan: &Plan,
        segments: &[Segment],
    ) -> Result<Stage, Busy> {
        if plan.flush_before {
            self.start_flush(memory, storage, slot)?;
            return Ok(Stage::PreFlush);
        }
        if plan.op == Op::Flush && self.drops_flush(plan.exclusive) {
            return Ok(Stage::AckEarly);
        }
        let tag = self.next_tag(slot);
        if cfg!(feature = "mutants") && active(Mutant::HalfWrite) {
            let (op, half) = Self::first_half(plan.op, segments);
            storage.submit(memory, tag, op, half.as_ref().map_or(segments, core::slice::from_ref))?;
        } else {
            storage.submit(memory, tag, plan.op, segments)?;
        }
        self.accept(tag);
        if plan.flush_after && active(Mutant::FuaFlushBesideWrite) {
            let beside = Tag { slot, generation: u16::MAX };
            // The mutant's flush runs beside its write; its completion is a stray.
            let _ = storage.submit(memory, beside, Op::Flush, &[]);
        }
        let early = active(Mutant::WriteAckedAtSubmission) && matches!(plan.op, Op::Write { .. })
            || active(Mutant::RangeAckedEarly)
                && matches!(plan.op, Op::WriteZeroes { .. } | Op::Discard { .. });
        Ok(if early { Stage::AckEarly } else { Stage::Data })
    }

    fn start_flush<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
    ) -> Result<(), Busy> {
        let tag = self.next_tag(slot);
        storage.submit(memory, tag, Op::Flush, &[])?;
        self.accept(tag);
        Ok(())
    }

    /// Submits again the flushes that the storage refused as busy.
    #[cold]
    fn retry_refused<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) {
        while self.refused != 0 {
            let Ok(slot) = u16::try_from(self.refused.trailing_zeros()) else { return };
            let Some(plan) = self.slots.get(usize::from(slot)).map(|s| s.plan) else { return };
            if self.start_flush(memory, storage, slot).is_err() {
                return;
            }
            self.set(slot, Stage::PostFlush, plan);
        }
    }

    #[inline]
    fn next_tag(&self, slot: u16) -> Tag {
        Tag { slot, generation: self.generation.wrapping_add(1) & 0x7fff }
    }

    #[inline]
    fn accept(&mut self, tag: Tag) {
        self.generation = tag.generation;
        if let Some(s) = self.slots.get_mut(usize::from(tag.slot)) {
            s.generation = tag.generation;
        }
    }

    fn stage(&self, slot: u16) -> Option<Stage> {
        self.slots.get(usize::from(slot)).map(|s| s.stage)
    }

    #[inline]
    fn set(&mut self, slot: u16, stage: Stage, plan: Plan) {
        let bit = bit(slot);
        self.needs_segments = if stage == Stage::NeedsSegments {
            self.needs_segments | bit
        } else {
            self.needs_segments & !bit
        };
        self.refused = if stage == Stage::PostFlushRetry { self.refused | bit } else { self.refused & !bit };
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.stage = stage;
            s.plan = plan;
        }
    }

    #[inline]
    fn free(&mut self, slot: u16) {
        let bit = bit(slot);
        self.used &= !bit;
        if self.needs_segments | self.refused != 0 {
            self.needs_segments &= !bit;
            self.refused &= !bit;
        }
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
        self.strays = self.strays.saturating_add(1);
        if cfg!(not(feature = "mutants")) {
            debug_assert!(false, "a completion that names no operation in flight");
        }
    }
}

#[inline]
fn bit(slot: u16) -> u128 {
    1_u128.checked_shl(u32::from(slot)).unwrap_or(0)
}
