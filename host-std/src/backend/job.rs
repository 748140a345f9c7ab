//! An operation in flight, and the way back to the handle that submitted it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blk_core::op::Op;
use blk_core::storage::IoError;
use blk_core::units::Tag;
use rustix::event::{EventfdFlags, eventfd};

use super::budget::{Budgets, Waiter};
use super::holds::Mutator;
use super::iovecs::IoVecs;
use super::remote_buffer::RemoteBuffer;
use super::sync::{AtomicUsize, Mutex, lock};
use crate::memory::Anchor;
use crate::wake::signal;

/// One operation. Allocated with its handle; it moves from the handle to a thread and back by pointer, so that exactly
/// one of them has it.
pub(super) struct Job {
    /// Its number among its handle's.
    pub(super) number: u16,
    pub(super) tag: Tag,
    pub(super) op: Op,
    /// Bytes that it moves.
    pub(super) bytes: u64,
    /// Byte of the image at which a read or write goes on, with `iovecs`.
    pub(super) at: u64,
    /// The memory of a read or write; kept mapped by `anchor` and, for staging, by `completions`.
    pub(super) iovecs: IoVecs,
    /// Whether `iovecs` names the staging buffer of `tag.slot`.
    pub(super) staged: bool,
    pub(super) anchor: Option<Anchor>,
    /// Some of its memory is not mapped here: it needs private memory.
    pub(super) private: bool,
    /// The private memory, once it has begun.
    pub(super) remote: Option<Box<RemoteBuffer>>,
    pub(super) result: Result<(), IoError>,
    /// Bytes that it has in flight, taken from the budget.
    pub(super) in_flight_bytes: u64,
    /// It counts among the mutations that have begun: see [`Mutator`].
    pub(super) counted: bool,
    budgets: Arc<Budgets>,
    mutator: Arc<Mutator>,
    pub(super) completions: Arc<CompletionQueue>,
}

impl Job {
    pub(super) fn new(
        number: u16,
        completions: Arc<CompletionQueue>,
        budgets: Arc<Budgets>,
        mutator: Arc<Mutator>,
    ) -> Self {
        Self {
            number,
            tag: Tag { slot: 0, generation: 0 },
            op: Op::Flush,
            bytes: 0,
            at: 0,
            iovecs: IoVecs::new(),
            staged: false,
            anchor: None,
            private: false,
            remote: None,
            result: Ok(()),
            in_flight_bytes: 0,
            counted: false,
            budgets,
            mutator,
            completions,
        }
    }

    /// Ends the operation: its memory is let go, and what it had of the budget, and holds need not wait for it.
    pub(super) fn end(&mut self, result: Result<(), IoError>) {
        self.budgets.give_back(&self.budgets.in_flight, std::mem::take(&mut self.in_flight_bytes));
        self.result = result;
        self.iovecs.clear();
        self.anchor = None;
        self.uncount();
    }

    /// It does not count as begun any more.
    pub(super) fn uncount(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.mutator.end();
        }
    }

    /// Ends the operation and hands the job back to its handle.
    pub(super) fn complete(mut self: Box<Self>, result: Result<(), IoError>) {
        self.end(result);
        let completions = Arc::clone(&self.completions);
        completions.put(self);
    }
}

impl Drop for Job {
    /// One that was on its way to or from private memory when its handle went: it will not be begun.
    fn drop(&mut self) {
        self.budgets.give_back(&self.budgets.in_flight, std::mem::take(&mut self.in_flight_bytes));
        self.uncount();
    }
}

/// The jobs of a handle that threads have ended.
pub(super) struct CompletionQueue {
    arrived: Mutex<Arrived>,
    /// How many jobs are in `arrived`: spares a poll that finds none the lock.
    count: AtomicUsize,
    /// Signalled when a job arrives and the handle has asked for it.
    wake: OwnedFd,
    /// Keeps the staging buffers mapped for the operations that use them.
    _staging: Anchor,
}

struct Arrived {
    jobs: VecDeque<Box<Job>>,
    /// The handle asked to be woken, and has not been.
    armed: bool,
    /// There may be room in a budget that the handle waits for, and it has not been told.
    room: bool,
    /// The eventfd has been written and not read since.
    signalled: bool,
    /// The handle is gone: jobs are dropped.
    closed: bool,
}

impl CompletionQueue {
    pub(super) fn new(depth: usize, staging: Anchor) -> rustix::io::Result<Self> {
        let jobs = VecDeque::with_capacity(depth);
        Ok(Self {
            arrived: Mutex::new(Arrived { jobs, armed: false, room: false, signalled: false, closed: false }),
            count: AtomicUsize::new(0),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            _staging: staging,
        })
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn put(&self, job: Box<Job>) {
        let mut arrived = lock(&self.arrived);
        if arrived.closed {
            drop(arrived);
            // Outside the lock: this may be the last owner of `self`.
            drop(job);
            return;
        }
        arrived.jobs.push_back(job);
        self.count.store(arrived.jobs.len(), Ordering::Release);
        self.wake_if_armed(&mut arrived);
    }

    /// Under the lock, so that `arm` reads what this writes.
    fn wake_if_armed(&self, arrived: &mut Arrived) {
        if std::mem::take(&mut arrived.armed) {
            arrived.signalled = true;
            signal(self.wake.as_fd());
        }
    }

    /// Appends the jobs that have arrived to `ended`, which has room for all jobs of the handle.
    pub(super) fn take(&self, ended: &mut VecDeque<Box<Job>>) {
        if self.count.load(Ordering::Acquire) != 0 {
            let mut arrived = lock(&self.arrived);
            ended.append(&mut arrived.jobs);
            self.count.store(0, Ordering::Release);
        }
    }

    /// Asks for the eventfd to be signalled when the next job arrives, or there is room in a budget that the handle waits for.
    /// Returns false if either was so already. `signalled` says whether somebody else may have signalled it.
    pub(super) fn arm(&self, signalled: bool) -> bool {
        let mut arrived = lock(&self.arrived);
        if std::mem::take(&mut arrived.signalled) || signalled {
            // It is non-blocking: nobody else need have.
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        arrived.armed = arrived.jobs.is_empty() && !std::mem::take(&mut arrived.room);
        arrived.armed
    }

    /// The handle goes away: jobs that have arrived, and those that will, are dropped.
    pub(super) fn close(&self) {
        let mut arrived = lock(&self.arrived);
        arrived.closed = true;
        let jobs = std::mem::take(&mut arrived.jobs);
        drop(arrived);
        drop(jobs);
    }
}

impl Waiter for CompletionQueue {
    fn wake(&self) {
        let mut arrived = lock(&self.arrived);
        arrived.room = true;
        self.wake_if_armed(&mut arrived);
    }
}
