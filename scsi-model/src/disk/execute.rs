//! The poll of a logical unit.

use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;

use super::io::Io;
use super::job::Begun;
use super::logical_unit::LogicalUnit;
use super::noted::Noted;
use super::outcome::{Ended, Outcome};
use super::started::{End, Stage, Standing, Started, Step};
use super::unit::Unit;
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

/// Effect of a part of a poll.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing could be done.
    None,
    Some,
    /// A task has ended.
    Ended,
}

impl<const N: usize> LogicalUnit<N> {
    /// Makes bounded progress: takes completions, starts tasks, reports one that ended.
    pub fn poll<M, S, T>(&mut self, memory: &M, storage: &mut S, transport: &mut T) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        self.unit.notice_capacity(storage.info());
        let mut polled = Polled::Idle;
        if self.has_work(memory, storage) {
            let mut list = SegmentList::new();
            let io = &mut Io { guest: Guest { memory, transport, list: &mut list }, storage };
            if self.next_end(&mut polled, io) == Progress::Some {
                polled = Polled::Again;
            }
        }
        polled
    }

    /// Polls, and gives every task that ends to `each`, until none ends any more. [`Progress::Ended`]: there are no more tasks,
    /// or the storage has another size, which is to be noticed before the next task starts.
    #[inline(always)]
    pub(crate) fn poll_each<M, S, T>(
        &mut self,
        memory: &M,
        storage: &mut S,
        transport: &mut T,
        mut each: impl FnMut(&mut T, &Ended),
    ) -> Progress
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if !self.has_work(memory, storage) {
            return Progress::None;
        }
        let mut list = SegmentList::new();
        let io = &mut Io { guest: Guest { memory, transport, list: &mut list }, storage };
        let mut polled = Polled::Idle;
        loop {
            let progress = self.next_end(&mut polled, io);
            let (Progress::Ended, Polled::Ended(ended)) = (progress, &polled) else { return progress };
            each(io.guest.transport, ended);
            if self.tasks.is_empty() || self.unit.is_resized(io.storage.info()) {
                return Progress::Ended;
            }
        }
    }

    /// Whether there are tasks, and no reset drains.
    #[inline]
    fn has_work<M, S>(&mut self, memory: &M, storage: &mut S) -> bool
    where
        M: ?Sized,
        S: Storage<M> + ?Sized,
    {
        if self.sequencer.is_resetting() && !self.drain(memory, storage) {
            return false;
        }
        if self.tasks.is_empty() {
            // Nothing runs; a storage may take over another size when it is polled.
            let _ = self.sequencer.poll(memory, storage);
            return false;
        }
        true
    }

    /// Goes on with a reset, and returns whether it is over.
    #[cold]
    fn drain<M, S>(&mut self, memory: &M, storage: &mut S) -> bool
    where
        M: ?Sized,
        S: Storage<M> + ?Sized,
    {
        while self.sequencer.poll(memory, storage).is_some() {}
        self.sequencer.finish_reset(storage)
    }

    /// Works until a task has ended, which is then in `polled`, or nothing more can be done now.
    #[inline(always)]
    fn next_end<M, S, T>(&mut self, polled: &mut Polled, io: &mut Io<'_, M, S, T>) -> Progress
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if let Some(tag) = self.tasks.next_aborted() {
            *polled = Polled::Ended(Ended { tag, outcome: Outcome::Aborted, transferred_bytes: 0 });
            return Progress::Ended;
        }
        // One of the tasks that are due has a turn, and then the others have theirs.
        if let Some(slot) = self.due.pop_front() {
            let turn = &mut Turn { left: TURN, polled };
            if self.step(slot, Step::Next, turn, io) == Progress::Ended {
                return Progress::Ended;
            }
        }
        let turn = &mut Turn { left: N.saturating_add(TURN), polled };
        while turn.left != 0 {
            turn.left = turn.left.saturating_sub(1);
            let progress = match self.sequencer.poll(io.guest.memory, io.storage) {
                Some(done) => self.step(done.slot, Step::Ended(done.result), turn, io),
                None => match self.supply_segments(turn, io) {
                    Progress::None => self.start(turn, io),
                    progress => progress,
                },
            };
            match progress {
                Progress::Ended => return Progress::Ended,
                Progress::Some => {}
                Progress::None if self.due.is_empty() => return Progress::None,
                Progress::None => return Progress::Some,
            }
        }
        Progress::Some
    }

    /// Gives slots the segments that they need again.
    #[inline]
    fn supply_segments<M, S, T>(&mut self, turn: &mut Turn<'_>, io: &mut Io<'_, M, S, T>) -> Progress
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let mut progress = Progress::None;
        while let Some((slot, _)) = self.sequencer.needs_segments() {
            match self.step(slot, Step::Again, turn, io) {
                Progress::None => break,
                Progress::Some => progress = Progress::Some,
                Progress::Ended => return Progress::Ended,
            }
        }
        progress
    }

    /// Starts what the task set admits, until a command ends at once.
    #[inline(always)]
    fn start<M, S, T>(&mut self, turn: &mut Turn<'_>, io: &mut Io<'_, M, S, T>) -> Progress
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let mut progress = Progress::None;
        loop {
            let Self { unit, tasks, sequencer, started, .. } = self;
            let Some(Front { task, row, gate }) = tasks.front() else { break };
            // There is one: a task that waits is in the set beside those that have slots.
            let Some(slot) = sequencer.next_slot() else { break };
            let Some(place) = started.get_mut(usize::from(slot)) else { break };
            let (end, transferred_bytes) = match unit.start_command((task, row), slot, io) {
                Ok(Begun { moved_bytes, job: Some(job) }) => {
                    *place = Some(Started {
                        tag: task.tag,
                        nexus: task.nexus,
                        gate,
                        cache: unit.guest_cache(),
                        aborted: false,
                        parameter_bytes: moved_bytes,
                        job,
                        noted: Noted::of(task),
                    });
                    match self.step(slot, Step::First, turn, io) {
                        Progress::None => break,
                        Progress::Some => progress = Progress::Some,
                        Progress::Ended => return Progress::Ended,
                    }
                    continue;
                }
                Ok(Begun { moved_bytes, job: None }) => (End::Good, moved_bytes),
                Err(refusal) => (End::from(refusal), 0),
            };
            turn.report(unit, task.tag, end, transferred_bytes);
            tasks.started(gate);
            tasks.ended(gate);
            return Progress::Ended;
        }
        progress
    }

    /// Lets the task in a slot go on.
    #[inline(never)]
    fn step<M, S, T>(
        &mut self,
        slot: u16,
        step: Step,
        turn: &mut Turn<'_>,
        io: &mut Io<'_, M, S, T>,
    ) -> Progress
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Self { unit, tasks, sequencer, started, due } = self;
        let Some(place) = started.get_mut(usize::from(slot)) else { return Progress::None };
        let Some(task) = place.as_mut() else { return Progress::None };
        let is_first = matches!(step, Step::First);
        let standing = task.go_on(step, &mut Stage { unit, sequencer, slot, turn: &mut turn.left }, io);
        if is_first {
            if matches!(standing, Standing::Deferred) {
                *place = None;
                return Progress::None;
            }
            tasks.started(task.gate);
        }
        match standing {
            Standing::Deferred => Progress::None,
            Standing::InFlight => Progress::Some,
            Standing::Due => {
                // Every slot is in it once at most.
                let _ = due.push_back(slot);
                Progress::Some
            }
            Standing::Ended(end) => {
                sequencer.release(slot);
                tasks.ended(task.gate);
                turn.report(unit, task.tag, end, task.moved_bytes());
                *place = None;
                Progress::Ended
            }
        }
    }
}

/// A poll under way.
struct Turn<'a> {
    /// Operations that may be started yet.
    left: usize,
    /// What the poll returns.
    polled: &'a mut Polled,
}

impl Turn<'_> {
    /// A task has ended.
    #[inline(always)]
    fn report(&mut self, unit: &Unit, tag: u64, end: End, transferred_bytes: u64) {
        if let End::Good = end {
            *self.polled = Polled::Ended(Ended { tag, outcome: Outcome::Good, transferred_bytes });
        } else {
            self.report_bad(unit, tag, end, transferred_bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn report_bad(&mut self, unit: &Unit, tag: u64, end: End, transferred_bytes: u64) {
        let outcome = match end {
            End::Good => Outcome::Good,
            End::Check(sense) => unit.check_condition(sense),
            End::Overrun => Outcome::Overrun,
            End::Aborted => Outcome::Aborted,
        };
        *self.polled = Polled::Ended(Ended { tag, outcome, transferred_bytes });
    }
}
