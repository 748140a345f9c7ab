//! A drive: executes decoded commands, one at a time, and says what its front has to do next.
//!
//! A front moves bytes between the host and memory; the drive decides everything else. What is common to PIO, the PCI
//! bus master and AHCI is [`Step`]: either the drive works by itself, or it needs segments for a piece of the disk, or
//! a page of parameters goes one way or the other through the staging buffer.

mod begin;
mod config;
mod failure;
mod identify;
mod interface;
mod queue;
mod reset;
mod settings;
mod smart;

use blk_core::op::{Op, Segment};
use blk_core::order::{GuestCache, Hold, Order, Request, Sequencer};
use blk_core::storage::{Info, IoError, Storage};
use blk_core::units::{Extent, Lba};
use serde::{Deserialize, Serialize};

pub use config::DriveConfig;
pub use failure::{Failure, Report};
pub use interface::{Direction, Interface};
pub use queue::{Due, QueueError, Reply, Staged};
pub use reset::Reset;
pub use settings::{Power, Settings, TransferMode};
pub use smart::Smart;

use crate::command::{Addressing, Blocks, Command, Row};
use crate::wire::TaskFile;
use identify::Identity;
use queue::{Gate, Queue};

/// What has to happen next for the command in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Step {
    /// There is no command.
    Idle,
    /// The storage works. Poll when it has a completion.
    Wait,
    /// The drive has just given the storage something to do. Poll again: it may be done already.
    Submitted,
    /// The front supplies segments for some of the sectors from the start of `left` on: [`Drive::transfer`].
    Medium {
        /// Which way.
        direction: Direction,
        /// What is left of the command.
        left: Extent,
    },
    /// The first bytes of the staging buffer are for the host: [`Drive::parameters_sent`].
    ToHost {
        /// How many.
        bytes: u32,
    },
    /// The host fills the first bytes of the staging buffer: [`Drive::parameters_received`].
    FromHost {
        /// How many.
        bytes: u32,
    },
    /// The command has ended: [`Drive::finish`].
    Ended(Result<(), Failure>),
}

/// What a completed flush makes true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Then {
    Nothing,
    CacheOff,
    Power(Power),
}

/// The command in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Job {
    Idle,
    /// `moving` sectors of `left` are with the storage.
    Transfer {
        direction: Direction,
        left: Extent,
        fua: bool,
        moving: u64,
    },
    /// As a read, without a host.
    Verify {
        left: Extent,
        moving: u64,
    },
    Flush(Then),
    ToHost {
        bytes: u32,
    },
    /// The list of ranges of a TRIM.
    FromHost {
        bytes: u32,
    },
    /// Entry `next` of the ranges in the staging buffer, all of which are valid, is due or with the storage.
    Trim {
        next: u32,
        entries: u32,
    },
    Ended(Result<(), Failure>),
}

/// Whose an operation in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Owner {
    /// The command in execution.
    Alone,
    /// The queued command with this tag.
    Queued(u8),
}

/// What became of a command that a drive was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Taken {
    /// It is in execution, or has ended: [`Drive::poll`].
    Alone,
    /// It is queued.
    Queued,
    /// It ends the queue, when what the storage has of it is done: [`Drive::queue_error`].
    Refused,
}

/// Most 512-byte blocks of ranges that a DATA SET MANAGEMENT command may have.
fn dsm_blocks_max(info: &Info) -> u16 {
    u16::try_from(info.staging_bytes >> 9).unwrap_or(u16::MAX).min(8)
}

/// Most blocks per DRQ of the MULTIPLE commands: a power of two, 16 at most; 0 without a staging buffer.
fn multiple_max(info: &Info) -> u8 {
    let fit = info.staging_bytes.checked_div(info.logical_block_bytes).unwrap_or(0).min(16);
    fit.checked_ilog2().and_then(|log2| 1_u8.checked_shl(log2)).unwrap_or(0)
}

/// A drive whose commands use up to `N` slots of the storage's handle: one by one, or, behind [`Interface::Serial`], up to
/// `N` queued ones (32 at most).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Drive<const N: usize> {
    config: DriveConfig,
    interface: Interface,
    settings: Settings,
    power: Power,
    smart: Smart,
    job: Job,
    queue: Queue<N>,
    sequencer: Sequencer<Owner, N>,
    #[cfg(feature = "mutants")]
    retry: Option<(Extent, Segment)>,
}

impl<const N: usize> Drive<N> {
    /// A drive after power-on.
    #[must_use]
    pub fn new(config: DriveConfig, interface: Interface) -> Self {
        Self {
            config,
            interface,
            settings: Settings::power_on(config.write_cache),
            power: Power::Active,
            smart: Smart::default(),
            job: Job::Idle,
            queue: Queue::new(),
            sequencer: Sequencer::new(),
            #[cfg(feature = "mutants")]
            retry: None,
        }
    }

    /// The settings in force.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Completions that named no operation in flight: a defect of the storage.
    #[must_use]
    pub const fn strays(&self) -> u32 {
        self.sequencer.strays()
    }

    /// The slot whose staging buffer the command in execution uses.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.sequencer.next_slot().unwrap_or(0)
    }

    /// What the guest is told about the write cache, and may rely on.
    #[must_use]
    pub const fn guest_cache(&self, info: &Info) -> GuestCache {
        if self.settings.write_cache && info.has_volatile_cache() {
            GuestCache::WriteBack
        } else {
            GuestCache::WriteThrough
        }
    }

    /// Takes a decoded command. Registers that report an outcome are set in `task` at once.
    ///
    /// Nothing is checked later that could be checked here: addresses are, against the capacity, before any data moves.
    pub fn execute<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        row: &Row,
        command: Command,
        task: &mut TaskFile,
        storage: &mut S,
    ) -> Taken {
        match (self.queue_gate(row, &command, storage.info()), command) {
            (Gate::Open, Command::Queued(queued)) => self.enqueue(row, queued, storage.info()),
            (Gate::Open, _) => {
                self.job = match self.begin(row, command, task, storage) {
                    Ok(job) => job,
                    Err(failure) => Job::Ended(Err(failure)),
                };
                Taken::Alone
            }
            (Gate::Mixed, _) => {
                self.refuse(None, Failure::Aborted);
                Taken::Refused
            }
            (Gate::Closed, _) => {
                self.job = Job::Ended(Err(Failure::Aborted));
                Taken::Alone
            }
        }
    }

    /// IDENTIFY DEVICE data as the guest would read it now.
    #[must_use]
    pub fn identify(&self, info: &Info) -> [u8; 512] {
        let (config, settings, interface) = (&self.config, &self.settings, self.interface);
        Identity { config, settings, smart_enabled: self.smart.enabled, interface, depth: N, info }.page()
    }

    /// Takes completions, lets the command go on as far as it can by itself, and says what it needs.
    ///
    /// Bounded: one operation is submitted at most.
    pub fn poll<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> Step {
        while let Some(done) = self.sequencer.poll(memory, storage) {
            if let Some(&mut Owner::Queued(tag)) = self.sequencer.payload(done.slot) {
                self.complete_queued(tag, done);
            } else {
                self.sequencer.release(done.slot);
                self.complete(done.result);
            }
        }
        if self.advance_queue(memory, storage) {
            return Step::Submitted;
        }
        if self.sequencer.is_idle() {
            self.advance(memory, storage);
            if !self.sequencer.is_idle() {
                return Step::Submitted;
            }
        }
        self.step()
    }

    /// What the command in execution needs, as of the last poll.
    #[must_use]
    pub const fn step(&self) -> Step {
        if !self.sequencer.is_idle() {
            return Step::Wait;
        }
        match self.job {
            Job::Idle => Step::Idle,
            Job::Transfer { direction, left, .. } => Step::Medium { direction, left },
            Job::ToHost { bytes } => Step::ToHost { bytes },
            Job::FromHost { bytes } => Step::FromHost { bytes },
            Job::Ended(result) => Step::Ended(result),
            Job::Verify { .. } | Job::Flush(_) | Job::Trim { .. } => Step::Wait,
        }
    }

    /// Moves `sectors` sectors, where [`Step::Medium`] says, between the disk and `segments`, whose lengths add up to them.
    ///
    /// # Errors
    /// [`Hold`] if the storage cannot take it now; nothing has happened.
    pub fn transfer<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        sectors: u64,
        segments: &[Segment],
    ) -> Result<(), Hold> {
        let Job::Transfer { direction, left, fua, moving: 0 } = self.job else { return Ok(()) };
        let extent = Extent { sectors, ..left };
        let op = match direction {
            Direction::Read => Op::Read { extent },
            Direction::Write => Op::Write { extent, fua: false },
        };
        self.submit(memory, storage, &Request::new(op).with_fua(fua), segments)?;
        #[cfg(feature = "mutants")]
        if direction == Direction::Write {
            self.retry = segments.first().map(|&segment| (extent, segment));
        }
        self.job = Job::Transfer { direction, left, fua, moving: sectors };
        Ok(())
    }

    /// The host has taken the bytes of [`Step::ToHost`].
    pub const fn parameters_sent(&mut self) {
        if let Job::ToHost { .. } = self.job {
            self.job = Job::Ended(Ok(()));
        }
    }

    /// The host has filled the bytes of [`Step::FromHost`]. All ranges are checked before the first is trimmed.
    pub fn parameters_received<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, storage: &mut S) {
        let Job::FromHost { bytes } = self.job else { return };
        let info = *storage.info();
        let entries = bytes >> 3;
        let slot = self.slot();
        let valid = (0..entries).try_for_each(|entry| {
            let blocks = range(storage.staging(slot), entry).ok_or(Failure::Aborted)?;
            if blocks.count == 0 { Ok(()) } else { extent(blocks, &info).map(|_| ()) }
        });
        self.job = match valid {
            Ok(()) => Job::Trim { next: 0, entries },
            Err(failure) => Job::Ended(Err(failure)),
        };
    }

    /// The front cannot go on with a command of which nothing is with the storage.
    pub const fn fail(&mut self, failure: Failure) {
        self.job = Job::Ended(Err(failure));
    }

    /// Ends the command and takes its outcome.
    pub const fn finish(&mut self) {
        self.job = Job::Idle;
    }

    fn submit<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        request: &Request,
        segments: &[Segment],
    ) -> Result<(), Hold> {
        let cache = self.guest_cache(storage.info());
        self.sequencer.submit(memory, storage, request, cache, segments, Owner::Alone).map(|_| ())
    }

    /// An operation of the command in execution has ended.
    fn complete(&mut self, result: Result<(), IoError>) {
        #[cfg(feature = "mutants")]
        {
            self.retry = None;
        }
        self.job = match (self.job, result) {
            (Job::Idle | Job::Ended(_), _) => self.job,
            (job, Err(error)) => {
                let reading =
                    matches!(job, Job::Verify { .. } | Job::Transfer { direction: Direction::Read, .. });
                Job::Ended(Err(Failure::Io { error, reading }))
            }
            (Job::Transfer { direction, left, fua, moving }, Ok(())) => match after(left, moving) {
                Some(left) => Job::Transfer { direction, left, fua, moving: 0 },
                None => Job::Ended(Ok(())),
            },
            (Job::Verify { left, moving }, Ok(())) => match after(left, moving) {
                Some(left) => Job::Verify { left, moving: 0 },
                None => Job::Ended(Ok(())),
            },
            (Job::Flush(then), Ok(())) => {
                match then {
                    Then::Nothing => {}
                    Then::CacheOff => self.settings.write_cache = false,
                    Then::Power(power) => self.power = power,
                }
                Job::Ended(Ok(()))
            }
            (Job::Trim { next, entries }, Ok(())) => Job::Trim { next: next.saturating_add(1), entries },
            (job @ (Job::ToHost { .. } | Job::FromHost { .. }), Ok(())) => job,
        };
    }

    /// Submits the next operation of a command that needs no front. What the storage cannot take is offered again by the next poll.
    fn advance<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) {
        match self.job {
            Job::Flush(then) => {
                let order = if then == Then::Nothing { Order::Free } else { Order::Barrier };
                let _ = self.submit(memory, storage, &Request::new(Op::Flush).ordered(order), &[]);
            }
            Job::Verify { left, .. } => {
                let info = storage.info();
                let bytes_max = info.staging_bytes.min(info.transfer_max_bytes);
                let moving = chunk_sectors(left.sectors, bytes_max, info);
                let len = u32::try_from(moving.saturating_mul(512)).unwrap_or(0);
                let request = Request::new(Op::Read { extent: Extent { sectors: moving, ..left } });
                if self.submit(memory, storage, &request, &[Segment::Staging { offset: 0, len }]).is_ok() {
                    self.job = Job::Verify { left, moving };
                }
            }
            Job::Trim { next, entries } => self.trim(memory, storage, next, entries),
            _ => {}
        }
    }

    /// Discards the next range that is not empty.
    fn trim<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        next: u32,
        entries: u32,
    ) {
        let info = *storage.info();
        let slot = self.slot();
        for next in next..entries {
            let Some(blocks) = range(storage.staging(slot), next) else {
                return self.fail(Failure::Aborted);
            };
            if blocks.count == 0 {
                continue;
            }
            let extent = match extent(blocks, &info) {
                Ok(extent) => extent,
                Err(failure) => return self.fail(failure),
            };
            self.job = Job::Trim { next, entries };
            // A refusal leaves the range for the next poll.
            let _ = self.submit(memory, storage, &Request::new(Op::Discard { extent }), &[]);
            return;
        }
        self.job = Job::Ended(Ok(()));
    }
}

/// What is left of `extent` after its first `sectors`; `None` if nothing is.
fn after(extent: Extent, sectors: u64) -> Option<Extent> {
    let left = extent.sectors.checked_sub(sectors).filter(|&left| left > 0)?;
    Some(Extent { start: Lba(extent.start.0.saturating_add(sectors)), sectors: left })
}

/// Sectors, in whole logical blocks and one block at least, that `bytes_max` bytes hold: `left` at most.
pub(crate) fn chunk_sectors(left: u64, bytes_max: u32, info: &Info) -> u64 {
    let block = info.sectors_per_block();
    let fit = u64::from(bytes_max >> 9);
    let whole = fit.saturating_sub(fit.checked_rem(block).unwrap_or(0));
    left.min(whole.max(block))
}

/// The sectors of a run of logical blocks, if the disk has them all.
fn extent(blocks: Blocks, info: &Info) -> Result<Extent, Failure> {
    let per_block = info.sectors_per_block();
    let start = blocks.lba.checked_mul(per_block);
    let sectors = u64::from(blocks.count).checked_mul(per_block);
    match (start, sectors) {
        (Some(start), Some(sectors)) if Extent::new(start, sectors).fits(info.sectors) => {
            Ok(Extent::new(start, sectors))
        }
        _ => Err(Failure::NoSuchAddress),
    }
}

/// Entry `index` of a TRIM's list: 48 bits of LBA, 16 bits of count, of which 0 means nothing (ACS-3, DATA SET MANAGEMENT).
fn range(staging: &[u8], index: u32) -> Option<Blocks> {
    let at = usize::try_from(index).ok()?.checked_mul(8)?;
    let entry = staging.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)?;
    Some(Blocks { lba: entry & 0xffff_ffff_ffff, count: u32::try_from(entry >> 48).ok()? })
}

/// Puts a failure's address into the registers, in the form of the command that failed.
pub(crate) fn report_address(task: &mut TaskFile, addressing: Addressing, sector: u64, info: &Info) {
    let block = sector.checked_div(info.sectors_per_block()).unwrap_or(0);
    match addressing {
        Addressing::Lba48 | Addressing::Queued => task.set_lba48(block),
        Addressing::None | Addressing::Lba28 => task.set_lba28(block),
    }
}
