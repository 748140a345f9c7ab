//! A logical unit: its task set, and the poll that executes it.

use core::fmt;

use blk_core::memory::GuestMemory;
use blk_core::order::{self, Done, GuestCache, Sequencer};
use blk_core::storage::{Info, IoError, Storage};

use super::io::{Io, Refusal};
use super::job::{After, Begun, Job};
use super::outcome::{Ended, Outcome};
use super::unit::{ResetCause, Setting, Unit, UnitAttention};
use crate::config::Config;
use crate::sense::Sense;
use crate::task_set::{Gate, Task, TaskSet, TaskSetFull};
use crate::transport::{SegmentList, Transport};

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

/// The storage's geometry cannot be a SCSI disk's: the logical block must be a power of two from 512 to 4096
/// (so that nothing divides by less: CVE-2023-42467), the capacity a whole number of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Unsupported;

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a SCSI disk needs logical blocks of 512 to 4096 bytes, a power of two, and a whole number of them")
    }
}

impl core::error::Error for Unsupported {}

/// A disk with a task set of `N` tasks. Plain data: memory, storage and transport come in with each call.
///
/// ```text
/// enqueue -> task set -> poll: start -> sequencer -> storage -> poll: Ended
/// ```
///
/// One I_T nexus: all tasks count as one initiator's.
///
/// ```
/// use blk_core::memory::CellMemory;
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::storage::Storage;
/// use blk_core::units::GuestAddr;
/// use core::ops::Range;
/// use scsi_model::{Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Outcome, Polled};
/// use scsi_model::{SegmentList, Task, Transport};
///
/// /// A transport of commands without data.
/// struct NoData;
///
/// impl Transport for NoData {
///     fn segments(&mut self, _: u64, _: Direction, _: Range<u64>, _: &mut SegmentList) -> Result<(), DataError> {
///         Err(DataError)
///     }
/// }
///
/// let (mut ram, mut image) = ([0; 512], [0; 1 << 16]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disk = RamDisk::<4>::new(Ram::new(&mut image), &mut []);
/// let info = *Storage::<CellMemory>::info(&disk);
/// let mut unit = LogicalUnit::<4>::new(Config::new("BLK", "RAM DISK", "1", "0001"), &info)?;
///
/// // TEST UNIT READY twice: first the unit attention of its power-on, then GOOD.
/// let task = |tag| Task {
///     tag,
///     attribute: Attribute::Simple,
///     cdb: Cdb::new(&[0; 6]),
///     data_out_bytes: 0,
///     data_in_bytes: 0,
/// };
/// let mut run = |tag| {
///     unit.enqueue(task(tag)).unwrap();
///     loop {
///         if let Polled::Ended(ended) = unit.poll(&memory, &mut disk, &mut NoData) {
///             break ended.outcome;
///         }
///     }
/// };
/// assert!(matches!(run(1), Outcome::CheckCondition(_)));
/// assert!(matches!(run(2), Outcome::Good));
/// # Ok::<(), scsi_model::Unsupported>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub struct LogicalUnit<const N: usize> {
    unit: Unit,
    tasks: TaskSet<N>,
    sequencer: Sequencer<Started, N>,
}

/// A task that runs: the payload of its slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
struct Started {
    task: Task,
    gate: Gate,
    /// What the guest had been told about the cache when the task started.
    cache: GuestCache,
    aborted: bool,
    /// Bytes that the guest's buffer gave before the job began.
    parameter_bytes: u64,
    job: Job,
}

impl Started {
    fn moved_bytes(&self) -> u64 {
        self.parameter_bytes.saturating_add(self.job.moved_bytes())
    }
}

/// What a piece of a poll led to.
enum Step {
    Ended(Ended),
    /// Something was submitted: the storage may have completed it already.
    Moved,
    Stuck,
}

impl<const N: usize> LogicalUnit<N> {
    /// A unit on a storage described by `info`, as after power-on.
    ///
    /// # Errors
    /// [`Unsupported`] if the geometry is not one that a SCSI disk can have.
    pub fn new(config: Config, info: &Info) -> Result<Self, Unsupported> {
        let mut unit = Self::off(config);
        unit.power_on(info)?;
        Ok(unit)
    }

    /// A unit without power, for a static. It is of use once [`Self::power_on`] has succeeded.
    #[must_use]
    pub const fn off(config: Config) -> Self {
        Self { unit: Unit::off(config), tasks: TaskSet::new(), sequencer: Sequencer::new() }
    }

    /// Turns the power on, in place: the unit is on a storage described by `info`, and tells the guest so.
    ///
    /// # Errors
    /// [`Unsupported`] if the geometry is not one that a SCSI disk can have.
    pub fn power_on(&mut self, info: &Info) -> Result<(), Unsupported> {
        let bytes = info.logical_block_bytes;
        let blocks_fit = info.sectors.is_multiple_of(info.sectors_per_block());
        if !bytes.is_power_of_two() || !(512..=4096).contains(&bytes) || !blocks_fit {
            return Err(Unsupported);
        }
        self.unit.power_on(info);
        Ok(())
    }

    /// Becomes another unit, as after power-on, in the place of one that is [quiet](Self::is_quiet).
    pub(crate) fn replace(&mut self, config: Config, info: &Info) -> Result<(), Unsupported> {
        self.unit = Unit::off(config);
        self.power_on(info)
    }

    /// Takes a task into the task set. Nothing runs before the next [`Self::poll`].
    ///
    /// # Errors
    /// [`TaskSetFull`] if the set has `N` tasks already.
    pub fn enqueue(&mut self, task: Task) -> Result<(), TaskSetFull> {
        self.tasks.enqueue(task)
    }

    /// Whether a task is in the set and has not been reported as ended: QUERY TASK.
    #[must_use]
    pub fn contains(&self, tag: u64) -> bool {
        self.tasks.waits(tag) || self.sequencer.payloads().any(|(_, started)| started.task.tag == tag)
    }

    /// Whether no task is in the set.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.len() == 0 && self.sequencer.is_idle()
    }

    /// Whether task management is not done yet: a reset drains, or aborted tasks are not all reported. The transport
    /// answers the function once this is false.
    #[must_use]
    pub fn is_managing(&self) -> bool {
        self.sequencer.is_resetting()
            || self.tasks.has_aborted()
            || self.sequencer.payloads().any(|(_, started)| started.aborted)
    }

    /// Whether the caching page says WCE: completed writes may be volatile.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.unit.write_cache()
    }

    /// ABORT TASK (SAM-5, ABORT TASK). Returns whether the task was there. It is reported as [`Outcome::Aborted`]: at once if it
    /// waits; if it runs, when what the storage has of it has completed, since until then its memory is in use (CVE-2022-0216).
    pub fn abort_task(&mut self, tag: u64) -> bool {
        if self.tasks.abort(tag) {
            return true;
        }
        let slot = self.sequencer.payloads().find(|(_, started)| started.task.tag == tag);
        let Some(slot) = slot.map(|(slot, _)| slot) else { return false };
        if let Some(started) = self.sequencer.payload(slot) {
            started.aborted = true;
        }
        true
    }

    /// ABORT TASK SET, and CLEAR TASK SET too, since there is one I_T nexus (SAM-5, ABORT TASK SET, CLEAR TASK SET).
    pub fn abort_task_set(&mut self) {
        self.tasks.abort_waiting();
        for slot in (0_u16..).take(N) {
            if let Some(started) = self.sequencer.payload(slot) {
                started.aborted = true;
            }
        }
    }

    /// Begins a reset (SAM-5, logical unit reset). Tasks that wait are dropped; what the storage has is awaited, and lands before the
    /// reset is over; then every task is reported as [`Outcome::Aborted`], the mode parameters are the defaults again and a unit
    /// attention is pending. [`Self::is_managing`] says when it is over; tasks enqueued meanwhile wait.
    pub fn reset(&mut self, cause: ResetCause) {
        self.tasks.abort_waiting();
        // A second reset while the first one drains finds its tasks given up already.
        if !self.sequencer.is_resetting() {
            for (_, started) in self.sequencer.payloads() {
                self.tasks.drop_running(started.task, started.gate);
            }
        }
        self.sequencer.reset();
        self.unit.reset(cause);
    }

    /// The guest's I_T nexus is lost (SAM-5, I_T nexus loss): its tasks are aborted, and it is told. Modes stay.
    pub fn lose_nexus(&mut self) {
        self.abort_task_set();
        self.raise(UnitAttention::NexusLoss);
    }

    /// The guest's settings, for a unit that goes on in its place: see [`Self::resume`].
    #[must_use]
    pub fn setting(&self) -> Setting {
        self.unit.setting()
    }

    /// Goes on where another unit on the same storage ended, for a guest that is to notice nothing: with that unit's
    /// [`Self::setting`], and without the unit attention of a unit that was powered on.
    pub fn resume(&mut self, setting: Setting) {
        self.unit.resume(setting);
    }

    /// Looks whether the storage was resized, and if so raises the unit attention that says it, and returns true.
    pub fn notice_capacity(&mut self, info: &Info) -> bool {
        self.unit.notice_capacity(info)
    }

    /// Whether there is nothing to [poll](Self::poll) for: no task, and no reset that drains.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.is_idle() && !self.sequencer.is_resetting()
    }

    /// Tells the guest, with its next command, that something changed which it has to know.
    pub fn raise(&mut self, attention: UnitAttention) {
        self.unit.raise(attention);
    }

    /// Tells the guest, with its next command, that data of a write that had ended with GOOD was lost: a deferred
    /// error (SPC-4, deferred errors).
    pub fn defer_error(&mut self, error: IoError, info: &Info) {
        let sense = Sense::storage(error, false, info.sectors_per_block());
        self.unit.deferred = Some(Sense { deferred: true, ..sense });
    }

    /// Makes bounded progress: takes completions, starts tasks, reports one that ended.
    pub fn poll<M, S, T>(&mut self, memory: &M, storage: &mut S, transport: &mut T) -> Polled
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let io = &mut Io { memory, storage, transport };
        self.unit.notice_capacity(io.storage.info());
        if self.sequencer.is_resetting() {
            while self.sequencer.poll(io.memory, io.storage).is_some() {}
            if !self.sequencer.finish_reset(io.storage) {
                return Polled::Idle;
            }
        }
        if let Some(tag) = self.tasks.next_aborted() {
            return Polled::Ended(Ended { tag, outcome: Outcome::Aborted, transferred_bytes: 0 });
        }
        // A task of many operations over a storage that does them at once must not keep the caller here.
        for _ in 0..N.saturating_add(16) {
            let step = match self.sequencer.poll(io.memory, io.storage) {
                Some(done) => self.completed(done, io),
                None => match self.supply_segments(io) {
                    Step::Stuck => self.start(io),
                    step => step,
                },
            };
            match step {
                Step::Ended(ended) => return Polled::Ended(ended),
                Step::Moved => {}
                Step::Stuck => return Polled::Idle,
            }
        }
        Polled::Again
    }

    /// Gives slots the segments that they need again.
    fn supply_segments<M, S, T>(&mut self, io: &mut Io<'_, M, S, T>) -> Step
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let mut step = Step::Stuck;
        while let Some((slot, _)) = self.sequencer.needs_segments() {
            let Some(started) = self.sequencer.payload(slot) else { break };
            if started.aborted {
                return self.end(slot, Outcome::Aborted, 0);
            }
            let mut list = SegmentList::new();
            if let Err(sense) = started.job.segments(slot, &started.task, io, &mut list) {
                return self.fail(slot, sense);
            }
            let supplied = self.sequencer.supply_segments(io.memory, io.storage, slot, &list);
            let Ok(started) = supplied else { break };
            step = Step::Moved;
            if let Some(done) = started.done() {
                return self.completed(done, io);
            }
        }
        step
    }

    /// Starts what the task set admits, until a command ends at once.
    fn start<M, S, T>(&mut self, io: &mut Io<'_, M, S, T>) -> Step
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let mut step = Step::Stuck;
        while let Some((task, gate)) = self.tasks.front() {
            let begun = self.unit.start_command(&task, io);
            let launched = match begun {
                Ok(Begun { moved_bytes, job: Some(job) }) => self.launch(task, gate, moved_bytes, job, io),
                Ok(Begun { moved_bytes, job: None }) => Err((Outcome::Good, moved_bytes)),
                Err(Refusal::Check(sense)) => Err((self.unit.check_condition(sense), 0)),
                Err(Refusal::Overrun) => Err((Outcome::Overrun, 0)),
            };
            match launched {
                Ok(Some(started)) => {
                    self.tasks.pop(Some(gate));
                    step = Step::Moved;
                    if let Some(done) = started.done() {
                        return self.completed(done, io);
                    }
                }
                Ok(None) => break,
                Err((outcome, transferred_bytes)) => {
                    self.tasks.pop(None);
                    return Step::Ended(Ended { tag: task.tag, outcome, transferred_bytes });
                }
            }
        }
        step
    }

    /// Submits the first operation of a job. `None` if it cannot be taken now; how the task ended, if it cannot be at all.
    fn launch<M, S, T>(
        &mut self,
        task: Task,
        gate: Gate,
        parameter_bytes: u64,
        mut job: Job,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Option<order::Started>, (Outcome, u64)>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let Some(slot) = self.sequencer.next_slot() else { return Ok(None) };
        let mut list = SegmentList::new();
        let request = job.next(slot, &task, io, &mut list);
        let request = request.map_err(|sense| (self.unit.check_condition(sense), 0))?;
        let Some(request) = request else { return Err((Outcome::Good, parameter_bytes)) };
        let cache = self.unit.guest_cache();
        let started = Started { task, gate, cache, aborted: false, parameter_bytes, job };
        Ok(self.sequencer.submit(io.memory, io.storage, &request, cache, &list, started).ok())
    }

    /// An operation has completed: the job's next one, or the end of the task.
    fn completed<M, S, T>(&mut self, done: Done, io: &mut Io<'_, M, S, T>) -> Step
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let slot = done.slot;
        let Some(started) = self.sequencer.payload(slot) else { return Step::Moved };
        if started.aborted {
            return self.end(slot, Outcome::Aborted, 0);
        }
        let result = done
            .result
            .map_err(|error| {
                Sense::storage(error, started.job.reads(), io.storage.info().sectors_per_block())
            })
            .and_then(|()| started.job.completed(slot, &started.task, io));
        if let Err(sense) = result {
            return self.fail(slot, sense);
        }
        let mut list = SegmentList::new();
        match started.job.next(slot, &started.task, io, &mut list) {
            Err(sense) => self.fail(slot, sense),
            Ok(Some(request)) => {
                // Its turn comes with the others that need segments, so that one long task does not keep the caller here.
                let cache = started.cache;
                self.sequencer.advance_later(io.storage, slot, &request, cache);
                Step::Moved
            }
            Ok(None) => {
                let bytes = started.moved_bytes();
                match started.job.finished() {
                    After::Nothing => {}
                    After::Settings(settings) => self.unit.settings = settings,
                    After::Stop => self.unit.stopped = true,
                }
                self.end(slot, Outcome::Good, bytes)
            }
        }
    }

    fn fail(&mut self, slot: u16, sense: Sense) -> Step {
        let outcome = self.unit.check_condition(sense);
        let bytes = self.sequencer.payload(slot).map_or(0, |started| started.moved_bytes());
        self.end(slot, outcome, bytes)
    }

    fn end(&mut self, slot: u16, outcome: Outcome, transferred_bytes: u64) -> Step {
        let Some(started) = self.sequencer.release(slot) else { return Step::Moved };
        self.tasks.ended(started.gate);
        Step::Ended(Ended { tag: started.task.tag, outcome, transferred_bytes })
    }
}
