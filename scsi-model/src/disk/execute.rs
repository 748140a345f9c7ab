//! The poll of a logical unit.

use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;

use super::io::{Io, Refusal};
use super::job::Begun;
use super::logical_unit::LogicalUnit;
use super::outcome::{Ended, Outcome};
use super::started::{Stage, Standing, Started};
use crate::task_set::Front;
use crate::transport::{Guest, SegmentList, Transport};

/// Result of a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Polled {
    /// A task has ended. Poll again.
    Ended(Ended),
    /// Bounded work was done and more is left that needs no completion. Poll again.
    Again,
    /// Nothing more until a task is enqueued or the storage has a completion.
    Idle,
}

/// What a piece of a poll led to.
enum Step {
    Ended(Ended),
    /// Something was submitted: the storage may have completed it already.
    Moved,
    Stuck,
}

/// Operations that a task may start at a time where the storage does them at once: a long one must not keep the caller here.
const TURN: usize = 16;

impl<const N: usize> LogicalUnit<N> {
    /// Makes bounded progress: takes completions, starts tasks, reports one that ended.
    pub fn poll<M, S, T>(&mut self, memory: &M, storage: &mut S, transport: &mut T) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let guest = Guest { memory, transport, list: &mut SegmentList::new() };
        let io = &mut Io { guest, storage };
        self.unit.notice_capacity(io.storage.info());
        if self.sequencer.is_resetting() {
            while self.sequencer.poll(io.guest.memory, io.storage).is_some() {}
            if !self.sequencer.finish_reset(io.storage) {
                return Polled::Idle;
            }
        }
        if let Some(tag) = self.tasks.next_aborted() {
            return Polled::Ended(Ended { tag, outcome: Outcome::Aborted, transferred_bytes: 0 });
        }
        // One of the tasks that are due has a turn, and then the others have theirs.
        if let Some(slot) = self.due.pop_front() {
            let mut turn = TURN;
            let step = self.go_on(slot, &mut turn, io, |started, stage, io| Some(started.resume(stage, io)));
            if let Step::Ended(ended) = step {
                return Polled::Ended(ended);
            }
        }
        let turn = &mut N.saturating_add(TURN);
        while *turn != 0 {
            *turn = turn.saturating_sub(1);
            let step = match self.sequencer.poll(io.guest.memory, io.storage) {
                Some(done) => self.go_on(done.slot, turn, io, |started, stage, io| {
                    Some(started.completed(done.result, stage, io))
                }),
                None => match self.supply_segments(turn, io) {
                    Step::Stuck => self.start(turn, io),
                    step => step,
                },
            };
            match step {
                Step::Ended(ended) => return Polled::Ended(ended),
                Step::Moved => {}
                Step::Stuck if self.due.is_empty() => return Polled::Idle,
                Step::Stuck => return Polled::Again,
            }
        }
        Polled::Again
    }

    /// Gives slots the segments that they need again.
    fn supply_segments<M, S, T>(&mut self, turn: &mut usize, io: &mut Io<'_, M, S, T>) -> Step
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let mut step = Step::Stuck;
        while let Some((slot, _)) = self.sequencer.needs_segments() {
            match self.go_on(slot, turn, io, Started::supply_segments) {
                Step::Moved => step = Step::Moved,
                Step::Stuck => break,
                ended @ Step::Ended(_) => return ended,
            }
        }
        step
    }

    /// Lets the task in a slot go on, by `how`. It is stuck if that leads to nothing.
    #[inline]
    fn go_on<M, S, T>(
        &mut self,
        slot: u16,
        turn: &mut usize,
        io: &mut Io<'_, M, S, T>,
        how: impl FnOnce(&mut Started, &mut Stage<'_, N>, &mut Io<'_, M, S, T>) -> Option<Standing>,
    ) -> Step
    where
        M: ?Sized,
        S: ?Sized,
        T: ?Sized,
    {
        let Self { unit, tasks, sequencer, started, due } = self;
        let Some(place) = started.get_mut(usize::from(slot)) else { return Step::Stuck };
        let Some(started) = place else { return Step::Stuck };
        let Some(standing) = how(started, &mut Stage { unit, sequencer, slot, turn }, io) else {
            return Step::Stuck;
        };
        match standing {
            Standing::InFlight => Step::Moved,
            Standing::Due => {
                // Every slot is in it once at most.
                let _ = due.push_back(slot);
                Step::Moved
            }
            Standing::Ended(outcome, transferred_bytes) => {
                let (tag, gate) = (started.tag, started.gate);
                *place = None;
                sequencer.release(slot);
                tasks.ended(gate);
                Step::Ended(Ended { tag, outcome, transferred_bytes })
            }
        }
    }

    /// Starts what the task set admits, until a command ends at once.
    fn start<M, S, T>(&mut self, turn: &mut usize, io: &mut Io<'_, M, S, T>) -> Step
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Self { unit, tasks, sequencer, started: table, due } = self;
        let mut step = Step::Stuck;
        while let Some(Front { task, row, gate }) = tasks.front() {
            // There is one: a task that waits is in the set beside those that have slots.
            let Some(slot) = sequencer.next_slot() else { break };
            let tag = task.tag;
            let (outcome, transferred_bytes) = match unit.start_command((task, row), slot, io) {
                Err(Refusal::Check(sense)) => (unit.check_condition(sense), 0),
                Err(Refusal::Overrun) => (Outcome::Overrun, 0),
                Ok(Begun { moved_bytes, job: None }) => (Outcome::Good, moved_bytes),
                Ok(Begun { moved_bytes, job: Some(job) }) => {
                    let cache = unit.guest_cache();
                    let mut started = Started {
                        tag,
                        nexus: task.nexus,
                        gate,
                        cache,
                        aborted: false,
                        parameter_bytes: moved_bytes,
                        job,
                        #[cfg(feature = "mutants")]
                        task: *task,
                    };
                    match started.begin(&mut Stage { unit, sequencer, slot, turn }, io) {
                        Ok(Standing::Ended(outcome, bytes)) => {
                            sequencer.release(slot);
                            (outcome, bytes)
                        }
                        Ok(standing) => {
                            if matches!(standing, Standing::Due) {
                                let _ = due.push_back(slot);
                            }
                            if let Some(place) = table.get_mut(usize::from(slot)) {
                                *place = Some(started);
                            }
                            tasks.pop(Some(gate));
                            step = Step::Moved;
                            continue;
                        }
                        Err(_) => break,
                    }
                }
            };
            tasks.pop(None);
            return Step::Ended(Ended { tag, outcome, transferred_bytes });
        }
        step
    }
}
