//! A logical unit: its tasks, and what is done to them from outside.

use core::fmt;

use blk_core::bus::Quiet;
use blk_core::log;
use blk_core::order::Sequencer;
use blk_core::storage::{Info, IoError};

use super::started::Started;
use super::unit::{ResetCause, Setting, Unit, UnitAttention};
use crate::config::Config;
use crate::fifo::Fifo;
use crate::sense::Sense;
use crate::task_set::{Chosen, Nexus, Task, TaskSet, TaskSetFull};

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
/// A task names the I_T nexus that it came through. Unit attentions and mode parameters are shared by all of them: a transport
/// with several initiators sees to it that each is told.
///
/// ```
/// use blk_core::memory::CellMemory;
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::storage::Storage;
/// use blk_core::units::GuestAddr;
/// use core::ops::Range;
/// use scsi_model::{Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Outcome, Polled};
/// use scsi_model::{Nexus, SegmentList, Task, Transport};
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
///     nexus: Nexus::default(),
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
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct LogicalUnit<const N: usize> {
    pub(super) unit: Unit,
    pub(super) tasks: TaskSet<N>,
    pub(super) sequencer: Sequencer<(), N>,
    /// The tasks that are in flight, by their slots. One whose operations the storage does at once is here during a poll only.
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    pub(super) started: [Option<Started>; N],
    /// The slots of tasks that have used up their turn: their next operation is due.
    pub(super) due: Fifo<u16, N>,
}

/// Whether there is nothing to [poll](LogicalUnit::poll) for: no task, and no reset that drains.
impl<const N: usize> Quiet for LogicalUnit<N> {
    fn is_quiet(&self) -> bool {
        self.is_idle() && !self.sequencer.is_resetting()
    }
}

#[cfg(feature = "snapshot")]
impl<const N: usize> blk_core::snapshot::Snapshot for LogicalUnit<N> {
    const KIND: blk_core::snapshot::Kind = blk_core::snapshot::Kind::new(*b"SCSI", 1).sized(N);
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
        Self {
            unit: Unit::off(config),
            tasks: TaskSet::new(),
            sequencer: Sequencer::new(),
            started: [const { None }; N],
            due: Fifo::new(),
        }
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
        self.tasks.waits(tag) || self.started.iter().flatten().any(|started| started.tag == tag)
    }

    /// Whether no task is in the set.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.sequencer.is_idle()
    }

    /// Whether task management is not done yet: a reset drains, or aborted tasks are not all reported. The transport
    /// answers the function once this is false.
    #[must_use]
    pub fn is_managing(&self) -> bool {
        self.sequencer.is_resetting()
            || self.tasks.has_aborted()
            || self.started.iter().flatten().any(|started| started.aborted)
    }

    /// Whether the caching page says WCE: completed writes may be volatile.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.unit.write_cache()
    }

    /// ABORT TASK (SAM-5, ABORT TASK). Returns whether the task was there. It is reported as
    /// [`Outcome::Aborted`](crate::Outcome::Aborted): at once if it waits; if it runs, when what the storage has of it has
    /// completed, since until then its memory is in use (CVE-2022-0216).
    pub fn abort_task(&mut self, tag: u64) -> bool {
        self.abort(Chosen::Tag(tag))
    }

    /// ABORT TASK SET: the tasks of the nexus that asks (SAM-5, ABORT TASK SET). Each is reported as for [`Self::abort_task`].
    pub fn abort_task_set(&mut self, nexus: Nexus) {
        self.abort(Chosen::Nexus(nexus));
    }

    /// CLEAR TASK SET: the tasks of every nexus, which share one task set (SAM-5, CLEAR TASK SET; TST=000b in SPC-4, Control
    /// mode page).
    pub fn clear_task_set(&mut self) {
        self.abort(Chosen::All);
    }

    /// Aborts tasks, and returns whether there were any.
    #[inline(never)]
    fn abort(&mut self, chosen: Chosen) -> bool {
        let mut found = self.tasks.abort(chosen);
        for started in self.started.iter_mut().flatten() {
            let is_chosen = chosen.is(started.tag, started.nexus);
            started.aborted |= is_chosen;
            found |= is_chosen;
        }
        found
    }

    /// Begins a reset (SAM-5, logical unit reset). Tasks that wait are dropped; what the storage has is awaited, and lands before the
    /// reset is over; then every task is reported as [`Outcome::Aborted`](crate::Outcome::Aborted), the mode
    /// parameters are the defaults again and a unit attention is pending. [`Self::is_managing`] says when it is over; tasks
    /// enqueued meanwhile wait.
    pub fn reset(&mut self, cause: ResetCause) {
        log!(info, "scsi: reset of a unit, {} operations in flight: {}", self.sequencer.in_use(), cause);
        self.tasks.abort(Chosen::All);
        for started in self.started.iter_mut().filter_map(Option::take) {
            match started.noted.again() {
                Some(task) => self.tasks.run_again(task, started.gate),
                None => self.tasks.drop_running(started.tag, started.gate),
            }
        }
        self.due.clear();
        self.sequencer.reset();
        self.unit.reset(cause);
    }

    /// An I_T nexus is lost (SAM-5, I_T nexus loss): its tasks are aborted, and it is told. Modes stay.
    pub fn lose_nexus(&mut self, nexus: Nexus) {
        self.abort_task_set(nexus);
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
}
