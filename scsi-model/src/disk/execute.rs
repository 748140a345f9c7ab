//! The poll of a logical unit.

use blk_core::memory::GuestMemory;
use blk_core::order::{Deferred, Done};
use blk_core::storage::Storage;

use super::io::{Io, Refusal};
use super::job::Begun;
use super::logical_unit::LogicalUnit;
use super::outcome::{Ended, Outcome};
use super::started::{Stage, Standing, Started, Step};
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
        self.unit.notice_capacity(storage.info());
        if self.sequencer.is_resetting() {
            while self.sequencer.poll(memory, storage).is_some() {}
            if !self.sequencer.finish_reset(storage) {
                return Polled::Idle;
            }
        }
        if self.tasks.is_empty() {
            // Nothing runs; a storage may take over another size when it is polled.
            let _ = self.sequencer.poll(memory, storage);
            return Polled::Idle;
        }
        if let Some(tag) = self.tasks.next_aborted() {
            return Polled::Ended(Ended { tag, outcome: Outcome::Aborted, transferred_bytes: 0 });
        }
        let mut list = SegmentList::new();
        self.work(&mut Io { guest: Guest { memory, transport, list: &mut list }, storage })
    }

    #[inline(always)]
    fn work<M, S, T>(&mut self, io: &mut Io<'_, M, S, T>) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        // One of the tasks that are due has a turn, and then the others have theirs.
        if let Some(slot) = self.due.pop_front() {
            let mut turn = TURN;
            if let ended @ Polled::Ended(_) = self.step(slot, Step::Next, &mut turn, io) {
                return ended;
            }
        }
        let turn = &mut N.saturating_add(TURN);
        while *turn != 0 {
            *turn = turn.saturating_sub(1);
            let polled = match self.sequencer.poll(io.guest.memory, io.storage) {
                Some(done) => self.completed(done, turn, io),
                None => match self.supply_segments(turn, io) {
                    Polled::Idle => self.start(turn, io),
                    polled => polled,
                },
            };
            match polled {
                ended @ Polled::Ended(_) => return ended,
                Polled::Again => {}
                Polled::Idle if self.due.is_empty() => return Polled::Idle,
                Polled::Idle => return Polled::Again,
            }
        }
        Polled::Again
    }

    /// Gives slots the segments that they need again.
    #[inline]
    fn supply_segments<M, S, T>(&mut self, turn: &mut usize, io: &mut Io<'_, M, S, T>) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let mut polled = Polled::Idle;
        while let Some((slot, _)) = self.sequencer.needs_segments() {
            match self.step(slot, Step::Again, turn, io) {
                Polled::Again => polled = Polled::Again,
                Polled::Idle => break,
                ended @ Polled::Ended(_) => return ended,
            }
        }
        polled
    }

    /// An operation has ended.
    #[inline]
    fn completed<M, S, T>(&mut self, done: Done, turn: &mut usize, io: &mut Io<'_, M, S, T>) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Self { unit, sequencer, started, .. } = self;
        let Some(started) = started.get_mut(usize::from(done.slot)).and_then(Option::as_mut) else {
            return Polled::Again;
        };
        let stage = &mut Stage { unit, sequencer, slot: done.slot, turn };
        let standing = started.ended(done.result, stage, io);
        self.settle(done.slot, standing)
    }

    /// Lets the task in a slot submit an operation.
    #[inline(never)]
    fn step<M, S, T>(&mut self, slot: u16, step: Step, turn: &mut usize, io: &mut Io<'_, M, S, T>) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Self { unit, sequencer, started, .. } = self;
        let Some(started) = started.get_mut(usize::from(slot)).and_then(Option::as_mut) else {
            return Polled::Idle;
        };
        let standing = started.go_on(step, &mut Stage { unit, sequencer, slot, turn }, io);
        self.settle(slot, standing)
    }

    #[inline(never)]
    fn settle(&mut self, slot: u16, standing: Result<Standing, Deferred>) -> Polled {
        match standing {
            Err(_) => Polled::Idle,
            Ok(Standing::InFlight) => Polled::Again,
            Ok(Standing::Due) => {
                // Every slot is in it once at most.
                let _ = self.due.push_back(slot);
                Polled::Again
            }
            Ok(Standing::Ended(outcome, transferred_bytes)) => {
                self.sequencer.release(slot);
                let Some(started) = self.started.get_mut(usize::from(slot)).and_then(Option::take) else {
                    return Polled::Again;
                };
                self.tasks.ended(started.gate);
                Polled::Ended(Ended { tag: started.tag, outcome, transferred_bytes })
            }
        }
    }

    /// Starts what the task set admits, until a command ends at once.
    fn start<M, S, T>(&mut self, turn: &mut usize, io: &mut Io<'_, M, S, T>) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Self { unit, tasks, sequencer, started: table, due } = self;
        let mut polled = Polled::Idle;
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
                    match started.go_on(Step::First, &mut Stage { unit, sequencer, slot, turn }, io) {
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
                            tasks.started(gate);
                            polled = Polled::Again;
                            continue;
                        }
                        Err(_) => break,
                    }
                }
            };
            tasks.ended_at_once();
            return Polled::Ended(Ended { tag, outcome, transferred_bytes });
        }
        polled
    }
}
