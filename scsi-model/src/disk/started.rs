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

impl Started {
    /// Submits the first operation. It is refused where the storage cannot take it now.
    #[inline]
    pub(super) fn begin<M, S, T, const N: usize>(
        &mut self,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Standing, Deferred>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let request = match self.job.next(stage.slot, self.tag, io) {
            Ok(request) => request,
            Err(sense) => return Ok(Standing::Ended(stage.unit.check_condition(sense), 0)),
        };
        let (memory, list) = (io.guest.memory, &*io.guest.list);
        match stage.sequencer.submit(memory, io.storage, &request, self.cache, list, ())? {
            order::Started::InFlight(_) => Ok(Standing::InFlight),
            order::Started::Ended(Done { result, .. }) => Ok(self.completed(result, stage, io)),
        }
    }

    /// An operation has completed: goes on.
    #[inline]
    pub(super) fn completed<M, S, T, const N: usize>(
        &mut self,
        mut result: Result<(), IoError>,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Standing
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        loop {
            if self.aborted {
                return Standing::Ended(Outcome::Aborted, 0);
            }
            let completed = match result {
                Ok(()) => self.job.completed(stage.slot, self.tag, io),
                Err(error) => {
                    Err(Sense::storage(error, self.job.reads(), io.storage.info().sectors_per_block()))
                }
            };
            if let Err(sense) = completed {
                return self.failed(stage.unit, sense);
            }
            if self.job.is_done() {
                return self.finished(stage.unit);
            }
            match self.advance(stage, io) {
                Ok(next) => result = next,
                Err(standing) => return standing,
            }
        }
    }

    /// A task that was due has its turn again.
    pub(super) fn resume<M, S, T, const N: usize>(
        &mut self,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Standing
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if self.aborted {
            return Standing::Ended(Outcome::Aborted, 0);
        }
        match self.advance(stage, io) {
            Ok(result) => self.completed(result, stage, io),
            Err(standing) => standing,
        }
    }

    /// Submits the segments that the sequencer needs again. `None`: the storage is too busy for them.
    pub(super) fn supply_segments<M, S, T, const N: usize>(
        &mut self,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Option<Standing>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if self.aborted {
            return Some(Standing::Ended(Outcome::Aborted, 0));
        }
        if let Err(sense) = self.job.segments(stage.slot, self.tag, io) {
            return Some(self.failed(stage.unit, sense));
        }
        let (memory, list) = (io.guest.memory, &*io.guest.list);
        Some(match stage.sequencer.supply_segments(memory, io.storage, stage.slot, list).ok()? {
            order::Started::InFlight(_) => Standing::InFlight,
            order::Started::Ended(Done { result, .. }) => self.completed(result, stage, io),
        })
    }

    /// Submits the next operation, and returns how it ended if the storage did it at once. Otherwise, where the task stands.
    #[inline(never)]
    fn advance<M, S, T, const N: usize>(
        &mut self,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Result<(), IoError>, Standing>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Some(left) = stage.turn.checked_sub(1) else { return Err(Standing::Due) };
        *stage.turn = left;
        let request = match self.job.next(stage.slot, self.tag, io) {
            Ok(request) => request,
            Err(sense) => return Err(self.failed(stage.unit, sense)),
        };
        let (memory, list) = (io.guest.memory, &*io.guest.list);
        match stage.sequencer.advance(memory, io.storage, stage.slot, &request, self.cache, list) {
            order::Started::InFlight(_) => Err(Standing::InFlight),
            order::Started::Ended(Done { result, .. }) => Ok(result),
        }
    }

    #[cold]
    fn failed(&self, unit: &Unit, sense: Sense) -> Standing {
        Standing::Ended(unit.check_condition(sense), self.moved_bytes())
    }

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
