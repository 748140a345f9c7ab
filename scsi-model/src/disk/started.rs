//! A task that runs, from its first operation to its end.

use blk_core::memory::GuestMemory;
use blk_core::order::{self, Deferred, Done, GuestCache, Sequencer};
use blk_core::storage::{IoError, Storage};

use super::io::Io;
use super::job::{After, Job};
use super::outcome::Outcome;
use super::unit::Unit;
use crate::sense::Sense;
#[cfg(feature = "mutants")]
use crate::task_set::Task;
use crate::task_set::{Gate, Nexus};
use crate::transport::Transport;

/// A task that runs, in a slot of the sequencer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Started {
    pub(super) tag: u64,
    pub(super) nexus: Nexus,
    pub(super) gate: Gate,
    /// What the guest had been told about the cache when the task started.
    pub(super) cache: GuestCache,
    pub(super) aborted: bool,
    /// Bytes that the guest's buffer gave before the job began.
    pub(super) parameter_bytes: u64,
    pub(super) job: Job,
    /// The task as it came, for the mutant that starts it again.
    #[cfg(feature = "mutants")]
    pub(super) task: Task,
}

/// Where a task stands.
pub(super) enum Standing {
    /// The storage has an operation of it, or it needs segments again.
    InFlight,
    /// Its turn is over, and its next operation is due.
    Due,
    /// It has ended, and moved so many bytes.
    Ended(Outcome, u64),
}

/// What a task runs on: the unit, and the sequencer with the slot that it has there.
pub(super) struct Stage<'a, const N: usize> {
    pub(super) unit: &'a mut Unit,
    pub(super) sequencer: &'a mut Sequencer<(), N>,
    pub(super) slot: u16,
    /// Operations that may be started yet.
    pub(super) turn: &'a mut usize,
}

/// An operation that a task submits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Its first one.
    First,
    /// Its next one.
    Next,
    /// One whose segments the sequencer needs again.
    Again,
}

/// Why an operation is not over.
enum Halt {
    /// It cannot be taken now.
    Deferred(Deferred),
    Standing(Standing),
}

impl From<Deferred> for Halt {
    fn from(deferred: Deferred) -> Self {
        Self::Deferred(deferred)
    }
}

impl Started {
    /// Goes on as far as the storage does operations at once and the turn lasts. Refused, without effect, where the storage
    /// cannot take the operation now.
    pub(super) fn go_on<M, S, T, const N: usize>(
        &mut self,
        mut step: Step,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Standing, Deferred>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if self.aborted {
            return Ok(self.over(Standing::Ended(Outcome::Aborted, 0), stage, io));
        }
        loop {
            let result = match self.submit(step, stage, io) {
                Ok(result) => result,
                Err(Halt::Standing(standing)) => return Ok(self.over(standing, stage, io)),
                Err(Halt::Deferred(deferred)) => return Err(deferred),
            };
            if let Some(standing) = self.completed(result, stage, io) {
                return Ok(self.over(standing, stage, io));
            }
            step = Step::Next;
        }
    }

    /// The operation in flight has ended: goes on.
    pub(super) fn ended<M, S, T, const N: usize>(
        &mut self,
        result: Result<(), IoError>,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Standing, Deferred>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let standing = if self.aborted { None } else { self.completed(result, stage, io) };
        match standing {
            Some(standing) => Ok(self.over(standing, stage, io)),
            None => self.go_on(Step::Next, stage, io),
        }
    }

    /// A task that has ended holds nothing any more.
    #[inline(always)]
    fn over<M, S, T, const N: usize>(
        &self,
        standing: Standing,
        stage: &Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Standing
    where
        M: ?Sized,
        S: Storage<M> + ?Sized,
        T: ?Sized,
    {
        if self.gate == Gate::Alone && self.job.holds() && matches!(standing, Standing::Ended(..)) {
            io.storage.release_hold(stage.slot);
        }
        standing
    }

    /// Submits an operation, and returns how it ended if the storage did it at once.
    #[inline(always)]
    fn submit<M, S, T, const N: usize>(
        &mut self,
        step: Step,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Result<(), IoError>, Halt>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if step == Step::Next {
            let Some(left) = stage.turn.checked_sub(1) else { return Err(Halt::Standing(Standing::Due)) };
            *stage.turn = left;
        }
        let slot = stage.slot;
        let planned = self.job.planned();
        let request = match self.job.next(slot, self.tag, io) {
            Ok(request) => request,
            Err(sense) => return Err(Halt::Standing(self.failed(stage.unit, sense))),
        };
        let (memory, list) = (io.guest.memory, &*io.guest.list);
        let started = match step {
            Step::First => stage.sequencer.submit(memory, io.storage, &request, self.cache, list, ())?,
            Step::Next => stage.sequencer.advance(memory, io.storage, slot, &request, self.cache, list),
            Step::Again if self.job.planned() != planned => {
                return Err(Halt::Standing(self.failed(stage.unit, Sense::DATA_PHASE)));
            }
            Step::Again => {
                let supplied = stage.sequencer.supply_segments(memory, io.storage, slot, list);
                supplied.map_err(Deferred::from)?
            }
        };
        match started {
            order::Started::Ended(Done { result, .. }) => Ok(result),
            order::Started::InFlight(_) => Err(Halt::Standing(Standing::InFlight)),
        }
    }

    /// An operation has ended. Returns where the task stands, unless it has another one.
    #[inline(always)]
    fn completed<M, S, T, const N: usize>(
        &mut self,
        result: Result<(), IoError>,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Option<Standing>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let completed = match result {
            Ok(()) => self.job.completed(stage.slot, self.tag, io),
            Err(error) => Err(Sense::storage(error, self.job.reads(), io.storage.info().sectors_per_block())),
        };
        match completed {
            Err(sense) => Some(self.failed(stage.unit, sense)),
            Ok(()) if self.job.is_done() => Some(self.finished(stage.unit)),
            Ok(()) => None,
        }
    }

    #[cold]
    fn failed(&self, unit: &Unit, sense: Sense) -> Standing {
        Standing::Ended(unit.check_condition(sense), self.moved_bytes())
    }

    #[inline]
    fn finished(&self, unit: &mut Unit) -> Standing {
        match self.job.finished() {
            After::Nothing => {}
            After::Settings(settings) => unit.settings = settings,
            After::Stop => unit.stopped = true,
        }
        Standing::Ended(Outcome::Good, self.moved_bytes())
    }

    fn moved_bytes(&self) -> u64 {
        self.parameter_bytes.saturating_add(self.job.moved_bytes())
    }
}
