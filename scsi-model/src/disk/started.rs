//! A task that runs, from its first operation to its end.

use blk_core::memory::GuestMemory;
use blk_core::order::{self, Done, GuestCache, Request, Sequencer};
use blk_core::storage::{Busy, IoError, Storage};

use super::io::{Io, Refusal};
use super::job::{After, Job};
use super::noted::Noted;
use super::unit::Unit;
use crate::sense::Sense;
use crate::task_set::{Gate, Nexus};
use crate::transport::Transport;

/// A task that runs, in a slot of the sequencer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
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
    pub(super) noted: Noted,
}

/// Where a task stands.
pub(super) enum Standing {
    /// The storage cannot take its operation now: nothing has changed.
    Deferred,
    /// The storage has an operation of it, or it needs segments again.
    InFlight,
    /// Its turn is over, and its next operation is due.
    Due,
    Ended(End),
}

/// How a task ended.
pub(super) enum End {
    Good,
    Check(Sense),
    Overrun,
    Aborted,
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Check(sense) => Self::Check(sense),
            Refusal::Overrun => Self::Overrun,
        }
    }
}

/// What a task runs on: the unit, and the sequencer with the slot that it has there.
pub(super) struct Stage<'a, const N: usize> {
    pub(super) unit: &'a mut Unit,
    pub(super) sequencer: &'a mut Sequencer<(), N>,
    pub(super) slot: u16,
    /// Operations that may be started yet.
    pub(super) turn: &'a mut usize,
}

/// What a task goes on with.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// Its first operation.
    First,
    /// Its next one.
    Next,
    /// One whose segments the sequencer needs again.
    Again,
    /// The end of the one in flight.
    Ended(Result<(), IoError>),
}

impl Started {
    /// Goes on as far as the storage does operations at once and the turn lasts.
    #[inline(always)]
    pub(super) fn go_on<M, S, T, const N: usize>(
        &mut self,
        mut step: Step,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Standing
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let end = loop {
            if self.aborted {
                break End::Aborted;
            }
            let result = match step {
                Step::Ended(result) => result,
                _ => match self.submit(step, stage, io) {
                    Ok(result) => result,
                    Err(Standing::Ended(end)) => break end,
                    Err(standing) => return standing,
                },
            };
            if let Some(end) = self.completed(result, stage, io) {
                break end;
            }
            step = Step::Next;
        };
        // A task that has ended holds nothing any more.
        if self.gate == Gate::Alone && self.job.holds() {
            io.storage.release_hold(stage.slot);
        }
        Standing::Ended(end)
    }

    /// Bytes that the guest's buffer gave or took.
    pub(super) fn moved_bytes(&self) -> u64 {
        if self.aborted { 0 } else { self.parameter_bytes.saturating_add(self.job.moved_bytes()) }
    }

    /// Submits an operation, and returns how it ended if the storage did it at once.
    #[inline(always)]
    fn submit<M, S, T, const N: usize>(
        &mut self,
        step: Step,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Result<(), IoError>, Standing>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if matches!(step, Step::Next) {
            *stage.turn = stage.turn.checked_sub(1).ok_or(Standing::Due)?;
        }
        let planned = self.job.planned();
        let request =
            self.job.next(stage.slot, self.tag, io).map_err(|sense| Standing::Ended(End::Check(sense)))?;
        let started = if matches!(step, Step::First) {
            let (memory, list) = (io.guest.memory, &*io.guest.list);
            stage
                .sequencer
                .submit(memory, io.storage, &request, self.cache, list, ())
                .map_err(|_| Standing::Deferred)?
        } else {
            let again = matches!(step, Step::Again);
            if again && self.job.planned() != planned {
                return Err(Standing::Ended(End::Check(Sense::DATA_PHASE)));
            }
            self.submit_further(again, &request, stage, io)?
        };
        match started {
            order::Started::Ended(Done { result, .. }) => Ok(result),
            order::Started::InFlight(_) => Err(Standing::InFlight),
        }
    }

    /// Submits an operation that is not the first one, or is it once more.
    #[inline(never)]
    fn submit_further<M, S, T, const N: usize>(
        &self,
        again: bool,
        request: &Request,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<order::Started, Standing>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Stage { sequencer, slot, .. } = stage;
        let (memory, list) = (io.guest.memory, &*io.guest.list);
        if again {
            let supplied = sequencer.supply_segments(memory, io.storage, *slot, list);
            return supplied.map_err(|Busy| Standing::Deferred);
        }
        Ok(sequencer.advance(memory, io.storage, *slot, request, self.cache, list))
    }

    /// An operation has ended. Returns how the task ended, unless it has another one.
    #[inline(always)]
    fn completed<M, S, T, const N: usize>(
        &mut self,
        result: Result<(), IoError>,
        stage: &mut Stage<'_, N>,
        io: &mut Io<'_, M, S, T>,
    ) -> Option<End>
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
            Ok(None) => return None,
            Ok(Some(After::Nothing)) => {}
            Ok(Some(After::Settings(settings))) => stage.unit.settings = settings,
            Ok(Some(After::Stop)) => stage.unit.stopped = true,
            Err(sense) => return Some(End::Check(sense)),
        }
        Some(End::Good)
    }
}
