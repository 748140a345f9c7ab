//! Runs the plan of a slot: what the storage is given next, and where the request stands then.

use super::slot::{Next, Rest, Stage};
use super::{Done, Sequencer, Started};
use crate::op::{Op, Segment};
use crate::order::plan::Plan;
use crate::storage::{Busy, IoError, Storage, Submission};
use crate::units::Tag;

impl<T, const N: usize> Sequencer<T, N> {
    /// The only operation of a new slot was submitted.
    #[inline(always)]
    pub(super) fn first(&mut self, slot: u16, op: Op, submission: Submission) -> Started {
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
    pub(super) fn begin<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        plan: &Plan,
        segments: &[Segment],
    ) -> Result<Started, Busy> {
        if plan.op == Op::Flush && self.drops_flush(plan.exclusive) {
            return Ok(self.wait(slot, Stage::AckEarly));
        }
        self.run(memory, storage, slot, Rest::of(plan).next(), Some(segments))
    }

    /// Goes on with a plan from `next` on, as far as the storage does its operations at once. Busy means that it took nothing.
    #[inline(never)]
    pub(super) fn run<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        mut next: Next,
        segments: Option<&[Segment]>,
    ) -> Result<Started, Busy> {
        let mut began = false;
        loop {
            let (op, with) = match (&next, segments) {
                (Next::Data(rest), None) => return Ok(self.wait(slot, Stage::NeedsSegments(*rest))),
                (Next::Data(rest), Some(segments)) => (rest.op, segments),
                (Next::PreFlush(_) | Next::PostFlush, _) => (Op::Flush, &[][..]),
            };
            let Ok(submission) = self.give(memory, storage, slot, op, with) else {
                return match next {
                    Next::PostFlush => Ok(self.wait(slot, Stage::PostFlushRetry)),
                    Next::Data(rest) if began => Ok(self.wait(slot, Stage::NeedsSegments(rest))),
                    _ => Err(Busy),
                };
            };
            if let Next::Data(Rest { flush_after: true, .. }) = next {
                Self::flush_beside(memory, storage, slot);
            }
            let Submission::Done(result) = submission else {
                return Ok(self.wait(
                    slot,
                    match next {
                        Next::PreFlush(rest) => Stage::PreFlush(rest),
                        Next::Data(rest) => Self::acked_at_submission(rest.op, rest.flush_after),
                        Next::PostFlush => Stage::PostFlush,
                    },
                ));
            };
            next = match (next, result) {
                (Next::PreFlush(rest), Ok(())) => Next::Data(Rest { flush_before: false, ..rest }),
                (Next::Data(Rest { flush_after: true, .. }), Ok(())) if !self.skips_flush(true) => {
                    Next::PostFlush
                }
                _ => return Ok(self.ended(slot, result)),
            };
            began = true;
        }
    }

    /// Goes on with the plan of a slot whose operation has completed. Returns the slot if that was the last one.
    #[inline(never)]
    pub(super) fn completed<M: ?Sized, S: Storage<M> + ?Sized>(
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
            _ => return self.ended(slot, result).done(),
        };
        // Of these two neither is refused: one waits for segments, the other to be tried again.
        self.run(memory, storage, slot, next, None).ok()?.done()
    }

    /// Submits again the flushes that the storage refused as busy, until one of them ends a request.
    #[cold]
    pub(super) fn retry_refused<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> Option<Done> {
        while let Some(slot) = self.refused.lowest() {
            if let Ok(Started::Ended(done)) = self.run(memory, storage, slot, Next::PostFlush, None) {
                return Some(done);
            }
            if self.refused.lowest() == Some(slot) {
                return None;
            }
        }
        None
    }

    /// Submits one operation of a slot.
    #[inline]
    pub(super) fn give<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        slot: u16,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let tag = self.next_tag(slot);
        let submission = Self::hand_over(memory, storage, tag, op, segments)?;
        self.generation = tag.generation;
        let Some(s) = self.slots.get_mut(usize::from(slot)) else { return Ok(submission) };
        s.generation = tag.generation;
        Ok(s.given(op, submission))
    }

    /// The tag of the next operation of a slot.
    #[inline(always)]
    pub(super) fn next_tag(&self, slot: u16) -> Tag {
        Tag { slot, generation: self.generation.wrapping_add(1) & 0x7fff }
    }

    pub(super) fn stage(&self, slot: u16) -> Option<Stage> {
        self.slots.get(usize::from(slot)).map(|s| s.stage)
    }

    /// The request in a slot has ended.
    pub(super) fn ended(&mut self, slot: u16, result: Result<(), IoError>) -> Started {
        let _ = self.wait(slot, Stage::Ended);
        Started::Ended(Done { slot, result })
    }

    /// The request in a slot waits in `stage`.
    pub(super) fn wait(&mut self, slot: u16, stage: Stage) -> Started {
        self.settle(slot);
        match stage {
            Stage::NeedsSegments(_) => self.needs_segments.insert(slot),
            Stage::PostFlushRetry => self.refused.insert(slot),
            _ => {}
        }
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.stage = stage;
        }
        Started::InFlight(slot)
    }

    /// The slot needs nothing for the moment.
    #[inline]
    pub(super) fn settle(&mut self, slot: u16) {
        if !(self.needs_segments.is_empty() && self.refused.is_empty()) {
            self.needs_nothing(slot);
        }
    }

    #[cold]
    fn needs_nothing(&mut self, slot: u16) {
        self.needs_segments.remove(slot);
        self.refused.remove(slot);
    }

    /// Frees a slot in whatever stage.
    pub(super) fn free(&mut self, slot: u16) {
        self.used.remove(slot);
        self.settle(slot);
        if self.barrier == Some(slot) {
            self.barrier = None;
        }
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            s.clear();
            s.payload = None;
        }
    }
}
