//! Native Command Queuing (ATA8-ACS and ACS-3, NCQ feature set; Serial ATA revision 3.0, 13.6).
//!
//! Queued commands go to the storage as their front supplies segments, in any order, and end one by one. Where one fails,
//! or a command that is not queued comes in between, the queue ends: nothing more is submitted, what the storage has is
//! awaited, and only then is the error reported, so that nothing of an aborted command lands after its host knows that it
//! is aborted. From then on the drive takes nothing but READ LOG EXT of log 10h, which opens the queue again, or a reset.

use blk_core::op::{Op, Segment};
use blk_core::order::{Deferred, Done, Request};
use blk_core::storage::{Info, IoError, Storage};
use blk_core::units::Extent;
use zerocopy::transmute_mut;

use super::extents::extent;
use super::failure::Failure;
use super::job::{Owner, Taken};
use super::log::{Page, sum_up};
use super::queue::{Due, Entry, Gate, Queue, QueueError, Reply, Staged, State, Transfer, located, moved};
use super::state::Drive;
use super::tags::Tags;
use crate::command::{Command, Direction, Interface, Power, Queued, Row};
use crate::wire::{QueueErrorLog, Status};

impl<const N: usize> Drive<N> {
    /// Whether a command that is not a queued one is admitted.
    #[inline]
    pub(super) fn queue_gate(&self, command: &Command) -> Gate {
        if !Self::QUEUES {
            return Gate::Open;
        }
        match (&self.queue.state, command) {
            (State::Open, _) if self.queue.is_empty() => Gate::Open,
            (State::Open | State::Ending(_), _) => Gate::Mixed,
            (State::Closed(_), Command::ReadLog { address: QueueErrorLog::ADDRESS, page: 0, count: 1 }) => {
                Gate::Open
            }
            (State::Closed(_), _) => Gate::Closed,
        }
    }

    /// Takes a queued command, decoded by [`Queued::decode`].
    #[inline(always)]
    pub fn enqueue(&mut self, row: &Row, queued: Queued, info: &Info) -> Taken {
        let offered = self.offers(row, info);
        match &self.queue.state {
            _ if !Self::QUEUES => return self.abort(),
            State::Closed(_) => return self.abort(),
            State::Open if offered => {}
            State::Open if self.queue.is_empty() => return self.abort(),
            State::Open | State::Ending(_) => {
                self.refuse(None, Failure::Aborted);
                return Taken::Refused;
            }
        }
        match self.entry_of(queued, info) {
            Ok(entry) => {
                self.power = Power::Active;
                self.queue.set(queued.tag, entry);
                Taken::Queued
            }
            Err(failure) => {
                self.refuse(Some(queued.tag), failure);
                Taken::Refused
            }
        }
    }

    #[inline]
    fn entry_of(&self, queued: Queued, info: &Info) -> Result<Entry, Failure> {
        let Queued { tag, direction, blocks, fua } = queued;
        let read_only = direction == Direction::Write && info.read_only;
        if tag >= Queue::<N>::TAGS
            || self.queue.entry(tag) != Entry::Free
            || self.power == Power::Sleep
            || read_only
        {
            return Err(Failure::Aborted);
        }
        let transfer = Transfer::new(direction, extent(blocks, info)?, fua).ok_or(Failure::Aborted)?;
        Ok(match (direction, fua) {
            (Direction::Read, true) => Entry::Unflushed(transfer),
            _ => Entry::Due(transfer),
        })
    }

    /// Whether there are queued commands, and so their log.
    pub(super) fn queues(&self) -> bool {
        Self::QUEUES && self.interface == Interface::Serial
    }

    /// Whether queued commands are outstanding.
    #[must_use]
    pub const fn is_queue_busy(&self) -> bool {
        Self::QUEUES && !self.queue.is_empty()
    }

    /// Whether the queue has ended, and the host has not been told yet.
    #[must_use]
    pub const fn is_queue_ending(&self) -> bool {
        Self::QUEUES && matches!(self.queue.state, State::Ending(_))
    }

    /// Whether the queue has ended, and the host has not read the log yet.
    #[must_use]
    pub const fn is_queue_closed(&self) -> bool {
        Self::QUEUES && matches!(self.queue.state, State::Closed(_))
    }

    /// The command that has just come ends the queue: it is no queued one, or `tag` names nothing that could be one.
    #[cold]
    #[inline(never)]
    pub fn refuse(&mut self, tag: Option<u8>, failure: Failure) {
        self.end_queue(QueueError { tag, failure, reply: Reply::Register });
    }

    /// A queued command cannot go on, since its front cannot.
    #[cold]
    pub fn fail_queued(&mut self, tag: u8, failure: Failure) {
        if let Entry::Staged { slot, .. } = self.queue.entry(tag) {
            self.release(slot);
        }
        self.queue.set(tag, Entry::Free);
        self.end_queue(QueueError { tag: Some(tag), failure, reply: Reply::SetDeviceBits });
    }

    /// The first error is the one that counts.
    #[cold]
    #[inline(never)]
    const fn end_queue(&mut self, error: QueueError) {
        if let State::Open = self.queue.state {
            self.queue.state = State::Ending(error);
        }
    }

    /// Tags of the queued commands that wait for segments now, in the order in which they are to be offered to the storage:
    /// [`Self::due`].
    #[must_use]
    pub const fn queue_due(&self) -> Tags {
        self.queue.due()
    }

    /// What a queued command waits for segments for. `None` if it does not, or the queue has ended.
    #[must_use]
    pub fn due(&self, tag: u8) -> Option<Due> {
        match (&self.queue.state, self.queue.entry(tag)) {
            (State::Open, Entry::Due(transfer)) => {
                Some(Due { tag, direction: transfer.direction, left: transfer.left() })
            }
            _ => None,
        }
    }

    /// Moves `sectors` sectors from the start of what is left of a command between the disk and `segments`, whose lengths add
    /// up to them. A read that is `staged` turns up in [`Self::queue_staged`].
    ///
    /// # Errors
    /// [`Deferred`] if the storage cannot take it now; nothing has happened.
    #[inline]
    pub fn transfer_queued<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        tag: u8,
        segments: &[Segment],
        (sectors, staged): (u64, bool),
    ) -> Result<(), Deferred> {
        let Entry::Due(transfer) = self.queue.entry(tag) else { return Ok(()) };
        let left = transfer.left();
        let moving = u32::try_from(sectors.min(left.sectors)).unwrap_or(u32::MAX);
        let extent = Extent { sectors, ..left };
        let op = match transfer.direction {
            Direction::Read => Op::Read { extent },
            Direction::Write => Op::Write { extent, fua: false },
        };
        let fua = transfer.fua && transfer.direction == Direction::Write;
        let request = Request::new(op).with_fua(fua);
        let (cache, owner) = (self.guest_cache(storage.info()), Owner::Queued(tag));
        // What is in the staging buffer keeps its slot once the operation has ended.
        let submitted = if staged {
            let submitted = self.sequencer.submit(memory, storage, &request, cache, segments, owner);
            submitted.map(|started| started.done().map(|done| (Some(done.slot), done.result)))
        } else {
            let submitted = self.sequencer.start(memory, storage, request, cache, segments, owner);
            submitted.map(|submission| submission.done().map(|result| (None, result)))
        };
        let done = submitted.inspect_err(|_| self.queue.turn = tag)?;
        self.noted.submitted(transfer.direction, extent, segments);
        let entry = Entry::Moving { transfer, sectors: moving, staged };
        let entry = match done {
            None => entry,
            // Nearly always all of the command, and not through the staging buffer.
            Some((_, Ok(()))) if !staged && sectors == left.sectors => {
                self.noted.ended();
                Entry::Ended
            }
            Some((slot, result)) => {
                self.end_operation(tag, entry, slot, result);
                return Ok(());
            }
        };
        self.queue.set(tag, entry);
        Ok(())
    }

    /// The operation of a queued command that the storage had has ended.
    pub(super) fn complete_queued(&mut self, tag: u8, done: Done) {
        self.end_operation(tag, self.queue.entry(tag), Some(done.slot), done.result);
    }

    /// The operation that `entry` tells of has ended, in `slot` if it still has one: what was done at once has none.
    #[inline(never)]
    fn end_operation(&mut self, tag: u8, entry: Entry, slot: Option<u16>, result: Result<(), IoError>) {
        self.noted.ended();
        if let (Entry::Moving { transfer, sectors, staged: true }, Some(slot), Ok(())) = (entry, slot, result)
        {
            return self.queue.set(tag, Entry::Staged { transfer, sectors, slot });
        }
        if let Some(slot) = slot {
            self.release(slot);
        }
        let next = match (entry, result) {
            (Entry::Moving { transfer, sectors, .. }, Ok(())) => moved(transfer, sectors),
            (Entry::Flushing(transfer), Ok(())) => Entry::Due(transfer),
            (entry, Ok(())) => entry,
            (entry, Err(error)) => {
                let reading = matches!(
                    entry,
                    Entry::Moving { transfer: Transfer { direction: Direction::Read, .. }, .. }
                );
                return self.fail_queued(tag, Failure::Io { error: located(error, entry), reading });
            }
        };
        self.queue.set(tag, next);
    }

    /// Submits the flushes of reads with FUA; returns whether there were any.
    pub(super) fn advance_queue<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> bool {
        let mut submitted = false;
        if !Self::QUEUES {
            return submitted;
        }
        for tag in self.queue.unflushed() {
            // A flush that failed at once has ended the queue.
            if self.queue.state != State::Open {
                break;
            }
            let Entry::Unflushed(transfer) = self.queue.entry(tag) else { continue };
            let (flush, cache) = (Request::new(Op::Flush), self.guest_cache(storage.info()));
            let started = self.sequencer.start(memory, storage, flush, cache, &[], Owner::Queued(tag));
            if let Ok(submission) = started {
                let entry = Entry::Flushing(transfer);
                match submission.done() {
                    None => self.queue.set(tag, entry),
                    Some(result) => self.end_operation(tag, entry, None, result),
                }
                submitted = true;
            }
        }
        submitted
    }

    /// A piece of a read that the front is to take from the staging buffer.
    #[must_use]
    pub fn queue_staged(&self) -> Option<Staged> {
        let tag = self.queue.staged()?;
        let Entry::Staged { sectors, slot, .. } = self.queue.entry(tag) else { return None };
        Some(Staged { tag, slot, bytes: sectors.saturating_mul(512) })
    }

    /// The front has taken it.
    pub fn unstage_queued(&mut self, tag: u8) {
        if let Entry::Staged { transfer, sectors, slot } = self.queue.entry(tag) {
            self.release(slot);
            self.queue.set(tag, moved(transfer, sectors));
        }
    }

    /// The tags that have ended well, one bit each; they are free from now on.
    pub fn take_ended(&mut self) -> u32 {
        self.queue.take_ended()
    }

    /// Why the queue has ended, once nothing of it is with the storage any more. All that has not ended is aborted.
    pub fn queue_error(&mut self) -> Option<QueueError> {
        let State::Ending(error) = self.queue.state else { return None };
        if !self.sequencer.is_idle() {
            return None;
        }
        self.queue.close(error);
        Some(error)
    }

    /// Fills in log 10h as it is now.
    pub(super) fn queue_error_log(&self, info: &Info, page: &mut Page) {
        let log: &mut QueueErrorLog = transmute_mut!(page);
        log.tag = QueueErrorLog::NOT_QUEUED;
        if let State::Ending(error) | State::Closed(error) = self.queue.state {
            let report = error.failure.report();
            log.tag = error.tag.unwrap_or(QueueErrorLog::NOT_QUEUED);
            log.status = (Status::DRDY | Status::ERR | report.status()).bits();
            log.error = report.error.bits();
            let block = report.sector.and_then(|sector| sector.checked_div(info.sectors_per_block()));
            let [b0, b1, b2, b3, b4, b5, ..] = block.unwrap_or(0).to_le_bytes();
            log.lba = [b0, b1, b2];
            log.lba_previous = [b3, b4, b5];
            log.device = 0x40;
        }
        sum_up(page);
    }
}
