//! Defects of the sequencer that tests switch on. Without the feature `mutants` all of it is constant.

use super::slot::{Slot, Stage};
use super::{Done, Sequencer};
use crate::mutant::{Mutant, active};
use crate::op::{Op, Segment};
use crate::order::plan::{Order, Plan, Request};
use crate::storage::{Busy, IoError, Storage, Submission};
use crate::units::{Extent, SECTOR_BYTES, Tag};

impl<T> Slot<T> {
    /// Notes what the storage was given, and what it said about it.
    #[inline(always)]
    pub(super) fn given(&mut self, _op: Op, submission: Submission) -> Submission {
        #[cfg(feature = "mutants")]
        {
            // A flush belongs to the operation that it follows.
            let op = &mut self.noted.op;
            *op = if _op == Op::Flush && self.stage != Stage::Free { op.or(Some(_op)) } else { Some(_op) };
            if _op == Op::Flush
                && matches!(submission, Submission::Done(Err(_)))
                && active(Mutant::FlushErrorSwallowed)
            {
                return Submission::Done(Ok(()));
            }
        }
        submission
    }

    /// The result of the operation in flight, as it is reported.
    #[inline(always)]
    pub(super) fn reported(&self, result: Result<(), IoError>) -> Result<(), IoError> {
        #[cfg(feature = "mutants")]
        {
            let flush = !matches!(self.stage, Stage::Data { .. }) || self.noted.op == Some(Op::Flush);
            if flush && active(Mutant::FlushErrorSwallowed) {
                return Ok(());
            }
        }
        result
    }
}

impl<T, const N: usize> Sequencer<T, N> {
    /// Whether a plan is nothing but its operation, and no mutant has other plans with it.
    #[inline(always)]
    pub(super) fn is_one_operation(plan: &Plan) -> bool {
        let flush = cfg!(feature = "mutants") && plan.op == Op::Flush;
        !plan.flush_before && !plan.flush_after && !flush
    }

    pub(super) fn drops_flush(&mut self, exclusive: bool) -> bool {
        active(Mutant::FlushWithoutHostFlush)
            || exclusive && active(Mutant::CacheOffWithoutFlush)
            || active(Mutant::FlushSkippedByGeneration) && self.skips_flush(false)
    }

    /// Whether a mutant leaves out the flush after a write that was done `at_once`, or was in flight. Among others QEMU's defect
    /// (host-std/tests/defects.md, 16): the counter that says "something is dirty" is advanced after it was looked at.
    #[inline(always)]
    pub(super) fn skips_flush(&mut self, at_once: bool) -> bool {
        if at_once && active(Mutant::AtOnceTakenAsStable) {
            return true;
        }
        #[cfg(feature = "mutants")]
        {
            if active(Mutant::FuaFlushBesideWrite) {
                // It ran beside its write.
                return true;
            }
            if active(Mutant::FlushSkippedByGeneration) {
                return !core::mem::take(&mut self.defects.dirty);
            }
        }
        false
    }

    /// The stage of a slot whose operation is in flight.
    #[inline(always)]
    pub(super) fn acked_at_submission(op: Op, flush_after: bool) -> Stage {
        let early = active(Mutant::WriteAckedAtSubmission) && matches!(op, Op::Write { .. })
            || active(Mutant::RangeAckedEarly) && matches!(op, Op::WriteZeroes { .. } | Op::Discard { .. });
        if early { Stage::AckEarly } else { Stage::Data { flush_after } }
    }

    /// The mutant's flush runs beside its write; its completion is a stray.
    #[inline(always)]
    pub(super) fn flush_beside<M: ?Sized, S: Storage<M> + ?Sized>(memory: &M, storage: &mut S, slot: u16) {
        if active(Mutant::FuaFlushBesideWrite) {
            let beside = Tag { slot, generation: u16::MAX };
            let _ = storage.submit(memory, beside, Op::Flush, &[]);
        }
    }

    pub(super) fn acked_early(&mut self) -> Option<Done> {
        let slot = self.slots.iter().position(|s| s.stage == Stage::AckEarly)?;
        let slot = u16::try_from(slot).ok()?;
        self.ended(slot, Ok(())).done()
    }

    /// Whether a mutant lets an exclusive request start beside older ones.
    pub(super) fn drain_dropped(request: &Request) -> bool {
        match (request.op, request.order) {
            (Op::Flush, Order::Barrier) => active(Mutant::CacheSwitchInFlight),
            _ => active(Mutant::BarrierIgnoresOlder),
        }
    }

    /// Gives the storage an operation, or the mutant's half of it.
    #[inline(always)]
    pub(super) fn hand_over<M: ?Sized, S: Storage<M> + ?Sized>(
        memory: &M,
        storage: &mut S,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        if cfg!(feature = "mutants") && active(Mutant::HalfWrite) {
            let (op, half) = Self::first_half(op, segments);
            return storage.submit(memory, tag, op, half.as_ref().map_or(segments, core::slice::from_ref));
        }
        storage.submit(memory, tag, op, segments)
    }

    /// The mutant's write: the first of two sectors, and the segment that holds it.
    fn first_half(op: Op, segments: &[Segment]) -> (Op, Option<Segment>) {
        match (op, segments.first()) {
            (Op::Write { extent, fua }, Some(&first)) if extent.sectors == 2 => {
                let half = match first {
                    Segment::Guest { addr, .. } => Segment::Guest { addr, len: SECTOR_BYTES },
                    Segment::Staging { offset, .. } => Segment::Staging { offset, len: SECTOR_BYTES },
                };
                (Op::Write { extent: Extent { sectors: 1, ..extent }, fua }, Some(half))
            }
            _ => (op, None),
        }
    }
}
