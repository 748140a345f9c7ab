//! An operation's way into flight: its checks, the holds of others, its room in the budgets, its memory.

use std::sync::Arc;

use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{IoError, IoErrorKind};
use blk_core::units::Extent;

use super::job::Job;
use super::limits::{SEGMENTS_MAX, TRANSFER_MAX_BYTES};
use super::remote_buffer::{RemoteBuffer, Stop, Way};
use super::storage::{FileStorage, WaitingJob};
use super::syscalls::Syscalls;
use crate::memory::HostMemory;

impl<S: Syscalls> FileStorage<S> {
    /// Begins an operation, or ends it with what is wrong with it, or has it wait for a hold to end or for room in a budget.
    pub(super) fn take_on<M: HostMemory + ?Sized>(
        &mut self,
        memory: &M,
        mut job: Box<Job>,
        segments: &[Segment],
    ) {
        let prepared = self.prepare(memory, &mut job, segments);
        if job.staged {
            self.staging.borrow(job.tag.slot);
        }
        if let Err(kind) = prepared {
            let lba = job.op.extent().map(|extent| extent.start);
            return self.end(job, Err(IoError { kind, lba }));
        }
        // What moves nothing, as a flush, passes those that wait.
        let in_turn = self.room.waiting.is_empty() || job.bytes == 0;
        let refused = if in_turn { self.begin(memory, job, segments) } else { Some(job) };
        if let Some(job) = refused {
            self.wait_for_room(memory, job, segments);
        }
    }

    /// Checks an operation, and puts its memory into the job: that of all handles may differ, and that of a poll, too.
    fn prepare<M: HostMemory + ?Sized>(
        &self,
        memory: &M,
        job: &mut Job,
        segments: &[Segment],
    ) -> Result<(), IoErrorKind> {
        let info = &self.info;
        if let Some(extent) = job.op.extent() {
            if !extent.fits(self.shared().image.info.sectors()) {
                return Err(IoErrorKind::OutOfRange);
            }
            job.at = extent.offset_bytes().ok_or(IoErrorKind::OutOfRange)?;
        }
        if job.op.mutates() && info.read_only {
            return Err(IoErrorKind::ReadOnly);
        }
        let is_record = matches!(job.op, Op::LoadState { .. } | Op::StoreState { .. });
        let bytes_max = match job.op {
            Op::Write { fua: true, .. } if !info.fua => return Err(IoErrorKind::Unsupported),
            _ if is_record && info.state_bytes == 0 => return Err(IoErrorKind::Unsupported),
            _ if is_record => info.state_bytes,
            _ => TRANSFER_MAX_BYTES,
        };
        let bytes = total_bytes(segments).filter(|&bytes| bytes <= bytes_max.into());
        job.bytes = bytes.ok_or(IoErrorKind::OutOfRange)?;
        let whole = job.op.segment_bytes().is_none_or(|bytes| bytes == job.bytes);
        if !whole || segments.len() > usize::from(SEGMENTS_MAX) {
            return Err(IoErrorKind::OutOfRange);
        }
        job.private = false;
        match self.put_memory(memory, job, segments) {
            Err(Stop::Error(kind)) => Err(kind),
            // Some of it is not mapped here. It gets a buffer when it begins.
            Err(Stop::Wait) => {
                job.iovecs.clear();
                job.private = true;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Begins an operation that is prepared, or has it wait for a hold to end; gives it back if it has to wait for room in a budget.
    fn begin<M: HostMemory + ?Sized>(
        &mut self,
        memory: &M,
        mut job: Box<Job>,
        segments: &[Segment],
    ) -> Option<Box<Job>> {
        // Before it has room: what waits for a hold has none that the hold's owner could need.
        if let Some(extent) = job.op.extent().filter(|_| job.op.mutates() && !job.counted) {
            if !self.mutator.begin(job.number, extent) {
                self.keep_off(job, segments);
                return None;
            }
            job.counted = true;
        }
        let room = self.take_room(memory, &mut job, segments);
        if let Err(Stop::Wait) = room {
            let (budgets, bytes) = (self.budgets(), std::mem::take(&mut job.in_flight_bytes));
            budgets.put_back(&budgets.in_flight, bytes, &self.room.waiter);
            // After it has put back its room: no hold waits for what has none.
            job.uncount();
            return Some(job);
        }
        let kind = |stop| if let Stop::Error(kind) = stop { kind } else { IoErrorKind::Medium };
        let lba = job.op.extent().map(|extent| extent.start);
        let room = room.map_err(|stop| IoError { kind: kind(stop), lba });
        match room.and_then(|()| self.shared().admit(job.op)) {
            Err(error) => self.end(job, Err(error)),
            Ok(()) if job.private && matches!(job.op, Op::Write { .. } | Op::StoreState { .. }) => {
                self.room.copies.push_back(job);
            }
            Ok(()) => self.start(job),
        }
        None
    }

    /// Takes an operation's room in the budgets, and makes its buffer if it needs one.
    fn take_room<M: HostMemory + ?Sized>(
        &self,
        memory: &M,
        job: &mut Job,
        segments: &[Segment],
    ) -> Result<(), Stop> {
        let (bytes, budgets) = (job.bytes, self.budgets());
        if bytes == 0 {
            return Ok(());
        }
        if !budgets.may_take(&self.room.waiter) || !budgets.in_flight.take(bytes) {
            return Err(Stop::Wait);
        }
        job.in_flight_bytes = bytes;
        if job.private {
            job.remote = Some(RemoteBuffer::new(bytes, budgets)?);
            self.put_memory(memory, job, segments)?;
        }
        Ok(())
    }

    /// Puts the memory of an operation into the job; what is not mapped here into its buffer, without which it has to wait.
    fn put_memory<M: HostMemory + ?Sized>(
        &self,
        memory: &M,
        job: &mut Job,
        segments: &[Segment],
    ) -> Result<(), Stop> {
        for segment in segments {
            match *segment {
                Segment::Guest { addr, len } => {
                    let mut done = 0;
                    while done < len {
                        let at = addr.checked_add(done.into()).ok_or(IoErrorKind::Memory)?;
                        let left = (len - done) as usize;
                        let range = match (memory.host_range(at, left), &mut job.remote) {
                            (Some(range), _) => range,
                            (None, _) if !memory.contains(at, left as u64) => {
                                return Err(IoErrorKind::Memory.into());
                            }
                            (None, Some(remote)) => {
                                remote.part(memory, at, left).ok_or(IoErrorKind::Memory)?
                            }
                            (None, None) => return Err(Stop::Wait),
                        };
                        // SAFETY: `HostMemory` says that the range stays mapped as long as the anchor that the job takes below, and that
                        // no reference to it exists; a remote buffer lives as long as the job has it, until its completion is
                        // polled, or the list is cleared with it. `Job::end` clears the list before either is let go.
                        unsafe { job.iovecs.push(range) }.map_err(|_| IoErrorKind::OutOfRange)?;
                        done += range.len as u32;
                    }
                }
                Segment::Staging { offset, len } => {
                    let range = self.staging.range(job.tag.slot, offset, len).ok_or(IoErrorKind::Memory)?;
                    // SAFETY: the job's completions keep the staging buffers mapped. `Staging::slice` gives out no reference while
                    // a job that is marked `staged` is in flight, and one that it gave out borrows the handle, as does this.
                    unsafe { job.iovecs.push(range) }.map_err(|_| IoErrorKind::OutOfRange)?;
                    job.staged = true;
                }
            }
        }
        if job.iovecs.count() != 0 {
            job.anchor = Some(memory.anchor());
        }
        Ok(())
    }

    /// Has an operation wait for room.
    #[cold]
    fn wait_for_room<M: HostMemory + ?Sized>(&mut self, memory: &M, job: Box<Job>, segments: &[Segment]) {
        let waiting = self.waiting(job, segments);
        self.room.waiting.push_back(waiting);
        self.budgets().count_waiting(true);
        self.budgets().join(&self.room.waiter);
        self.begin_waiting(memory);
    }

    /// Has a hold stand in line.
    #[cold]
    pub(super) fn hold(&mut self, job: Box<Job>, extent: Extent) {
        match self.mutator.hold(job.number, job.tag.slot, extent) {
            Ok(()) => self.keep_off(job, &[]),
            Err(kind) => self.end(job, Err(IoError { kind, lba: Some(extent.start) })),
        }
    }

    /// Keeps a hold, or a mutation that one is in the way of, until it is admitted.
    #[cold]
    fn keep_off(&mut self, job: Box<Job>, segments: &[Segment]) {
        let waiting = self.waiting(job, segments);
        self.room.kept_off.push_back(waiting);
    }

    fn waiting(&mut self, job: Box<Job>, segments: &[Segment]) -> WaitingJob {
        let mut list = self.room.spare.pop().unwrap_or_default();
        if job.private {
            list.extend_from_slice(segments);
        }
        WaitingJob { job, segments: list }
    }

    /// Goes on with what waits for a hold or for room, and with what is copied.
    pub(super) fn make_progress<M: HostMemory + ?Sized>(&mut self, memory: &M) {
        if !self.room.copies.is_empty() {
            self.copy(memory);
        }
        if !self.room.kept_off.is_empty() {
            self.begin_admitted(memory);
        }
        if !self.room.waiting.is_empty() {
            self.begin_waiting(memory);
        }
    }

    /// Begins what no hold keeps off any more, and grants holds.
    #[cold]
    fn begin_admitted<M: HostMemory + ?Sized>(&mut self, memory: &M) {
        while let Some(number) = self.mutator.take_admitted() {
            let at = self.room.kept_off.iter().position(|waiting| waiting.job.number == number);
            let waiting = at.and_then(|at| self.room.kept_off.remove(at));
            let Some(WaitingJob { mut job, mut segments }) = waiting else { continue };
            if let Op::Hold { .. } = job.op {
                self.room.spare.push(segments);
                self.end(job, Ok(()));
                continue;
            }
            job.counted = true;
            let refused = if self.room.waiting.is_empty() {
                self.begin(memory, job, &segments)
            } else {
                job.uncount();
                Some(job)
            };
            if let Some(job) = refused {
                self.wait_for_room(memory, job, &segments);
            }
            segments.clear();
            self.room.spare.push(segments);
        }
    }

    /// Begins what waits, while it is this handle's turn and there is room.
    #[cold]
    fn begin_waiting<M: HostMemory + ?Sized>(&mut self, memory: &M) {
        while self.budgets().may_take(&self.room.waiter)
            && let Some(WaitingJob { job, mut segments }) = self.room.waiting.pop_front()
        {
            if let Some(job) = self.begin(memory, job, &segments) {
                return self.room.waiting.push_front(WaitingJob { job, segments });
            }
            segments.clear();
            self.room.spare.push(segments);
            self.budgets().count_waiting(false);
            self.budgets().pass(&self.room.waiter, !self.room.waiting.is_empty());
        }
    }

    /// Copies some of the bytes that are on their way to or from private memory, and gives up what is of no more use.
    #[cold]
    fn copy<M: HostMemory + ?Sized>(&mut self, memory: &M) {
        while let Some(mut job) = self.room.copies.pop_front() {
            let way = match (job.op, job.result) {
                _ if job.in_flight_bytes != 0 => Way::Fetch,
                (Op::Read { .. } | Op::LoadState { .. }, Ok(())) => Way::Deliver,
                _ => Way::GiveUp,
            };
            let budget = &mut self.room.copy_budget;
            let copied = loop {
                let Some(remote) = job.remote.as_mut().filter(|remote| !remote.is_copied()) else {
                    break Ok(());
                };
                match remote.copy(memory, way, budget.left() as usize) {
                    Ok(0) => return self.room.copies.push_front(job),
                    Ok(bytes) => budget.take(bytes as u64),
                    Err(_) => break Err(IoErrorKind::Memory),
                };
            };
            let lba = job.op.extent().map(|extent| extent.start);
            if let Some(remote) = &mut job.remote {
                remote.rewind();
            }
            let result = copied.map_err(|kind| IoError { kind, lba });
            match way {
                Way::Fetch if result.is_ok() => self.start(job),
                // It gives its memory up next.
                Way::Fetch => self.end(job, result),
                Way::Deliver | Way::GiveUp => {
                    job.remote = None;
                    let result = job.result.and(result);
                    self.end(job, result);
                }
            }
        }
    }

    /// Nothing that waits is begun any more.
    pub(super) fn leave_the_line(&mut self) {
        let budgets = Arc::clone(self.budgets());
        while self.room.waiting.pop_front().is_some() {
            budgets.count_waiting(false);
        }
        budgets.pass(&self.room.waiter, false);
    }
}
