//! Native Command Queuing (ATA8-ACS and ACS-3, NCQ feature set; Serial ATA revision 3.0, 13.6).
//!
//! Queued commands go to the storage as their front supplies segments, in any order, and end one by one. Where one fails,
//! or a command that is not queued comes in between, the queue ends: nothing more is submitted, what the storage has is
//! awaited, and only then is the error reported, so that nothing of an aborted command lands after its host knows that it
//! is aborted. From then on the drive takes nothing but READ LOG EXT of log 10h, which opens the queue again, or a reset.

use blk_core::op::{Op, Segment};
use blk_core::order::{Deferred, Done, Request};
use blk_core::storage::{Info, Storage};
use blk_core::units::Extent;
use zerocopy::{FromZeros, IntoBytes};

use super::extents::extent;
use super::failure::Failure;
use super::job::{Job, Owner, Taken};
use super::log::summed;
use super::queue::{Due, Entry, Gate, Queue, QueueError, Reply, Staged, State, Transfer, located, moved};
use super::state::Drive;
use crate::command::{Command, Direction, Power, Queued, Row};
use crate::wire::{QueueErrorLog, Status};

impl<const N: usize> Drive<N> {
    pub(super) fn queue_gate(&self, row: &Row, command: &Command, info: &Info) -> Gate {
        let queued = matches!(command, Command::Queued(_)) && row.available(info, self.interface);
        match (self.queue.state, command) {
            (State::Open, _) if queued || self.queue.is_empty() => Gate::Open,
            (State::Open | State::Ending(_), _) => Gate::Mixed,
            (State::Closed(_), Command::ReadLog { address: QueueErrorLog::ADDRESS, page: 0, count: 1 }) => {
                Gate::Open
            }
            (State::Closed(_), _) => Gate::Closed,
        }
    }

    pub(super) fn enqueue(&mut self, row: &Row, queued: Queued, info: &Info) -> Taken {
        if !row.available(info, self.interface) {
            self.job = Job::Ended(Err(Failure::Aborted));
            return Taken::NonQueued;
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
        let left = extent(blocks, info)?;
        Ok(match (direction, fua) {
            (Direction::Read, true) => Entry::Unflushed(left),
            _ => Entry::Due(Transfer { direction, left, fua }),
        })
    }

    /// Whether queued commands are outstanding.
    #[must_use]
    pub fn is_queue_busy(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether the queue has ended, and the host has not been told yet.
    #[must_use]
    pub const fn is_queue_ending(&self) -> bool {
        matches!(self.queue.state, State::Ending(_))
    }

    /// Whether the queue has ended, and the host has not read the log yet.
    #[must_use]
    pub const fn is_queue_closed(&self) -> bool {
        matches!(self.queue.state, State::Closed(_))
    }

    /// The command that has just come ends the queue: it is no queued one, or `tag` names nothing that could be one.
    pub fn refuse(&mut self, tag: Option<u8>, failure: Failure) {
        self.end_queue(QueueError { tag, failure, reply: Reply::Register });
    }

    /// A queued command cannot go on, since its front cannot.
    pub fn fail_queued(&mut self, tag: u8, failure: Failure) {
        if let Entry::Staged { slot, .. } = self.queue.entry(tag) {
            self.sequencer.release(slot);
        }
        self.queue.set(tag, Entry::Free);
        self.end_queue(QueueError { tag: Some(tag), failure, reply: Reply::SetDeviceBits });
    }

    /// The first error is the one that counts.
    const fn end_queue(&mut self, error: QueueError) {
        if let State::Open = self.queue.state {
            self.queue.state = State::Ending(error);
        }
    }

    /// Queued commands that wait for segments, none twice.
    pub fn queue_due(&self) -> impl Iterator<Item = Due> + use<N> {
        let open = self.queue.state == State::Open;
        let entries = self.queue.entries;
        self.queue.tags().filter_map(move |tag| match entries.get(usize::from(tag)) {
            Some(&Entry::Due(Transfer { direction, left, .. })) if open => Some(Due { tag, direction, left }),
            _ => None,
        })
    }

    /// Moves `sectors` sectors from the start of what is left of a command between the disk and `segments`, whose lengths add
    /// up to them. A read that is `staged` turns up in [`Self::queue_staged`].
    ///
    /// # Errors
    /// [`Deferred`] if the storage cannot take it now; nothing has happened.
    pub fn transfer_queued<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        tag: u8,
        segments: &[Segment],
        (sectors, staged): (u64, bool),
    ) -> Result<(), Deferred> {
        let Entry::Due(transfer) = self.queue.entry(tag) else { return Ok(()) };
        let extent = Extent { sectors, ..transfer.left };
        let op = match transfer.direction {
            Direction::Read => Op::Read { extent },
            Direction::Write => Op::Write { extent, fua: false },
        };
        let fua = transfer.fua && transfer.direction == Direction::Write;
        let request = Request::new(op).with_fua(fua);
        let cache = self.guest_cache(storage.info());
        let owner = Owner::Queued(tag);
        let submitted = self.sequencer.submit(memory, storage, &request, cache, segments, owner);
        let started = submitted.inspect_err(|_| self.queue.turn = tag)?;
        #[cfg(feature = "mutants")]
        if transfer.direction == Direction::Write {
            self.retry = segments.first().map(|&segment| (extent, segment));
        }
        self.queue.set(tag, Entry::Moving { transfer, sectors, staged });
        self.settle(started);
        Ok(())
    }

    pub(super) fn complete_queued(&mut self, tag: u8, done: Done) {
        #[cfg(feature = "mutants")]
        {
            self.retry = None;
        }
        let entry = self.queue.entry(tag);
        let next = match (entry, done.result) {
            (Entry::Moving { transfer, sectors, staged: true }, Ok(())) => {
                return self.queue.set(tag, Entry::Staged { transfer, sectors, slot: done.slot });
            }
            (Entry::Moving { transfer, sectors, .. }, Ok(())) => moved(transfer, sectors),
            (Entry::Flushing(left), Ok(())) => {
                Entry::Due(Transfer { direction: Direction::Read, left, fua: true })
            }
            (entry, Ok(())) => entry,
            (entry, Err(error)) => {
                let reading = matches!(
                    entry,
                    Entry::Moving { transfer: Transfer { direction: Direction::Read, .. }, .. }
                );
                self.sequencer.release(done.slot);
                return self.fail_queued(tag, Failure::Io { error: located(error, entry), reading });
            }
        };
        self.sequencer.release(done.slot);
        self.queue.set(tag, next);
    }

    /// Submits the flushes of reads with FUA; returns whether there were any.
    pub(super) fn advance_queue<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> bool {
        let mut submitted = false;
        if self.queue.state != State::Open {
            return false;
        }
        for tag in 0..Queue::<N>::TAGS {
            let Entry::Unflushed(left) = self.queue.entry(tag) else { continue };
            let cache = self.guest_cache(storage.info());
            let owner = Owner::Queued(tag);
            let flush = Request::new(Op::Flush);
            if let Ok(started) = self.sequencer.submit(memory, storage, &flush, cache, &[], owner) {
                self.queue.set(tag, Entry::Flushing(left));
                self.settle(started);
                submitted = true;
            }
        }
        submitted
    }

    /// A piece of a read that the front is to take from the staging buffer.
    #[must_use]
    pub fn queue_staged(&self) -> Option<Staged> {
        (0..Queue::<N>::TAGS).find_map(|tag| match self.queue.entry(tag) {
            Entry::Staged { sectors, slot, .. } => {
                Some(Staged { tag, slot, bytes: u32::try_from(sectors.saturating_mul(512)).unwrap_or(0) })
            }
            _ => None,
        })
    }

    /// The front has taken it.
    pub fn unstage_queued(&mut self, tag: u8) {
        if let Entry::Staged { transfer, sectors, slot } = self.queue.entry(tag) {
            self.sequencer.release(slot);
            self.queue.set(tag, moved(transfer, sectors));
        }
    }

    /// The tags that have ended well, one bit each; they are free from now on.
    pub fn take_ended(&mut self) -> u32 {
        let mut ended = 0_u32;
        for tag in 0..Queue::<N>::TAGS {
            if self.queue.entry(tag) == Entry::Ended {
                self.queue.set(tag, Entry::Free);
                ended |= 1_u32.checked_shl(u32::from(tag)).unwrap_or(0);
            }
        }
        ended
    }

    /// Why the queue has ended, once nothing of it is with the storage any more. All that has not ended is aborted.
    pub fn queue_error(&mut self) -> Option<QueueError> {
        let State::Ending(error) = self.queue.state else { return None };
        if !self.sequencer.is_idle() {
            return None;
        }
        self.queue = Queue { state: State::Closed(error), ..Queue::new() };
        Some(error)
    }

    /// Log 10h as the guest would read it now.
    pub(super) fn queue_error_log(&self, info: &Info) -> [u8; 512] {
        let mut log = QueueErrorLog::new_zeroed();
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
        summed(log.as_bytes())
    }
}
