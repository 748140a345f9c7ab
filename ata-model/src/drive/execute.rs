//! Executes decoded commands, and says what the front has to do next.

use blk_core::op::{Op, Segment};
use blk_core::order::{Deferred, Done, Order, Request, Started};
use blk_core::storage::{IoError, Storage};
use blk_core::units::Extent;

use super::extents::{after, chunk_sectors, extent, range};
use super::failure::Failure;
use super::job::{Job, Owner, Taken, Then};
use super::queue::Gate;
use super::state::Drive;
use crate::command::{Command, Direction, Row};
use crate::wire::TaskFile;

/// Next step of the command in execution.
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

impl<const N: usize> Drive<N> {
    /// Takes a decoded command, which is none for the queue: that takes [`Self::enqueue`]. Registers that report an outcome are set
    /// in `task` at once.
    ///
    /// Nothing is checked later that could be checked here: addresses are, against the capacity, before any data moves.
    #[inline(always)]
    pub fn execute<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        row: &Row,
        command: Command,
        task: &mut TaskFile,
        storage: &mut S,
    ) -> Taken {
        match self.queue_gate(&command) {
            Gate::Open => {
                self.job = match self.start_command(row, command, task, storage) {
                    Ok(job) => job,
                    Err(failure) => Job::Ended(Err(failure)),
                };
                Taken::NonQueued
            }
            Gate::Mixed => {
                self.refuse(None, Failure::Aborted);
                Taken::Refused
            }
            Gate::Closed => self.abort(),
        }
    }

    /// A command ends before it has begun.
    pub(super) fn abort(&mut self) -> Taken {
        self.job = Job::Ended(Err(Failure::Aborted));
        Taken::NonQueued
    }

    /// Takes completions, lets the command go on as far as it can by itself, and says what it needs.
    ///
    /// Bounded: one operation is submitted at most.
    #[inline(never)]
    pub fn poll<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> Step {
        while let Some(done) = self.sequencer.poll(memory, storage) {
            self.settled(done);
        }
        if self.advance_queue(memory, storage) {
            return Step::Submitted;
        }
        if self.sequencer.is_idle() && self.advance(memory, storage) {
            return Step::Submitted;
        }
        self.step()
    }

    /// Takes the end of an operation of the command in execution, if the storage did it at once.
    #[inline]
    fn settle(&mut self, started: Started) {
        if let Some(done) = started.done() {
            self.settled(done);
        }
    }

    #[inline(never)]
    fn settled(&mut self, done: Done) {
        if Self::QUEUES
            && let Some(&mut Owner::Queued(tag)) = self.sequencer.payload(done.slot)
        {
            self.complete_queued(tag, done);
        } else {
            self.release(done.slot);
            self.complete(done.result);
        }
    }

    /// The next step of the command in execution, as of the last poll.
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
    /// [`Deferred`] if the storage cannot take it now; nothing has happened.
    pub fn transfer<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        sectors: u64,
        segments: &[Segment],
    ) -> Result<(), Deferred> {
        let Job::Transfer { direction, left, fua, moving: 0 } = self.job else { return Ok(()) };
        let extent = Extent { sectors, ..left };
        let op = match direction {
            Direction::Read => Op::Read { extent },
            Direction::Write => Op::Write { extent, fua: false },
        };
        let started = self.submit(memory, storage, &Request::new(op).with_fua(fua), segments)?;
        self.noted.submitted(direction, extent, segments);
        self.job = Job::Transfer { direction, left, fua, moving: sectors };
        self.settle(started);
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

    /// An operation of the command in execution has ended.
    fn complete(&mut self, result: Result<(), IoError>) {
        self.noted.ended();
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

    /// Submits the next operation of a command that needs no front, and returns whether there was one that the storage took.
    /// What it cannot take is offered again by the next poll.
    fn advance<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> bool {
        let (job, request, staged_bytes) = match self.job {
            Job::Flush(then) => {
                let order = if then == Then::Nothing { Order::Free } else { Order::Barrier };
                (self.job, Request::new(Op::Flush).ordered(order), 0)
            }
            Job::Verify { left, .. } => {
                let info = storage.info();
                let bytes_max = info.staging_bytes.min(info.transfer_max_bytes);
                let moving = chunk_sectors(left.sectors, bytes_max, info);
                let len = u32::try_from(moving.saturating_mul(512)).unwrap_or(0);
                let request = Request::new(Op::Read { extent: Extent { sectors: moving, ..left } });
                (Job::Verify { left, moving }, request, len)
            }
            Job::Trim { next, entries } => match self.next_range(storage, next, entries) {
                Some((next, extent)) => {
                    (Job::Trim { next, entries }, Request::new(Op::Discard { extent }), 0)
                }
                None => return false,
            },
            _ => return false,
        };
        let segments = [Segment::Staging { offset: 0, len: staged_bytes }];
        let segments = segments.get(..usize::from(staged_bytes != 0)).unwrap_or_default();
        let Ok(started) = self.submit(memory, storage, &request, segments) else { return false };
        self.job = job;
        self.settle(started);
        true
    }

    /// The next range that is not empty, from `next` on; where there is none, the command has ended.
    fn next_range<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        storage: &mut S,
        next: u32,
        entries: u32,
    ) -> Option<(u32, Extent)> {
        let info = *storage.info();
        let slot = self.slot();
        for next in next..entries {
            let found = range(storage.staging(slot), next).ok_or(Failure::Aborted);
            match found.map(|blocks| (blocks.count, extent(blocks, &info))) {
                Ok((0, _)) => {}
                Ok((_, Ok(extent))) => return Some((next, extent)),
                Ok((_, Err(failure))) | Err(failure) => {
                    self.fail(failure);
                    return None;
                }
            }
        }
        self.job = Job::Ended(Ok(()));
        None
    }
}
