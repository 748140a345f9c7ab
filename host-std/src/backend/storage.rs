//! A queue's handle to an image.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::Tag;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::budget::{Budgets, Waiter};
use super::counters::add;
use super::handle::Handle;
use super::holds::Mutator;
use super::inline::{Calls, InlineBudget};
use super::io_threads::IoThreads;
use super::job::{CompletionQueue, Job};
use super::limits::RING_BYTES_MAX;
use super::open_error::OpenError;
use super::options::{FileOptions, IoEngine};
use super::ring::Ring;
use super::shared::{Shared, Transfer};
use super::staging::Staging;
use super::syscalls::{LinuxSyscalls, Syscalls};
use super::worker::Worker;
use crate::memory::HostMemory;

/// A queue's handle to an image.
///
/// [`Storage::poll`] never waits. Whoever has nothing else to do sleeps in [`wait`](Self::wait), or calls
/// [`arm`](Self::arm) and sleeps until the descriptor ([`AsFd`]) is readable, together with whatever else it waits for.
///
/// A handle may be dropped with operations in flight: they land, and their memory stays mapped until then.
pub struct FileStorage<S: Syscalls = LinuxSyscalls> {
    /// Makes, on this thread, the calls that wait for nothing.
    pub(super) inline: Worker<S>,
    calls: Calls,
    inline_budget: InlineBudget,
    // Dropped before `threads`, which threads may have to go on with its jobs.
    ring: Option<Ring<S>>,
    /// Whether the ring is the best engine for writes, too.
    ring_writes: bool,
    threads: Arc<IoThreads<S>>,
    completions: Arc<CompletionQueue>,
    /// Jobs not in use, which move between owners by pointer. There are as many jobs as the handle is deep.
    free: Vec<Box<Job>>,
    /// Ended, and not seen by a poll.
    pub(super) ended: VecDeque<Box<Job>>,
    /// What polls hand out before they look for more: so that what goes on ending here holds up nothing that ends elsewhere.
    batch: VecDeque<Box<Job>>,
    pub(super) staging: Staging,
    pub(super) room: Room,
    /// The handle, as the image's holds know it.
    pub(super) mutator: Arc<Mutator>,
    pub(super) info: Info,
    epoch: u64,
}

/// What waits for room in a budget, and what is on its way to or from private memory.
pub(super) struct Room {
    /// The handle, as it stands in line.
    pub(super) waiter: Arc<dyn Waiter>,
    /// Taken and not begun, in order.
    pub(super) waiting: VecDeque<WaitingJob>,
    /// Holds that are not granted, and mutations that a hold of another handle keeps off; taken and not begun.
    pub(super) kept_off: VecDeque<WaitingJob>,
    /// Lists of segments, to be used again.
    pub(super) spare: Vec<Vec<Segment>>,
    /// Writes whose bytes come, reads whose bytes go, and whatever has ended and gives its private memory up: some at a time.
    pub(super) copies: VecDeque<Box<Job>>,
    /// What may be copied or given up in this turn of the thread.
    pub(super) copy_budget: InlineBudget,
    /// The thread says where its turns begin.
    turns: bool,
}

pub(super) struct WaitingJob {
    pub(super) job: Box<Job>,
    /// Guest addresses of what needs private memory, looked up when it begins; else none.
    pub(super) segments: Vec<Segment>,
}

impl<S: Syscalls> FileStorage<S> {
    pub(super) fn new(threads: Arc<IoThreads<S>>, options: &FileOptions) -> Result<Self, OpenError> {
        let depth = usize::from(options.depth);
        let shared = Arc::clone(&threads.shared);
        let limits = |errno| OpenError::System {
            path: shared.image.path().into(),
            what: "make a handle",
            errno,
            remedy: "; raise the limits on open files and memory",
        };
        let staging = Staging::new(depth).map_err(limits)?;
        let completions = Arc::new(CompletionQueue::new(depth, staging.anchor()).map_err(limits)?);
        shared.work.make_room(depth);
        shared.flushes.make_room(depth);
        let budgets = || Arc::clone(&shared.budgets);
        let mutator = Mutator::new(&shared.holds, Arc::<CompletionQueue>::clone(&completions), depth);
        let free = (0..options.depth)
            .map(|number| {
                Box::new(Job::new(number, Arc::clone(&completions), budgets(), Arc::clone(&mutator)))
            })
            .collect();
        let calls = Calls::of(&shared, options.engine);
        let ring = match options.engine {
            IoEngine::Threads => None,
            IoEngine::Auto if calls == Calls::All || !shared.syscalls.ring() => None,
            IoEngine::Auto => Self::ring(&shared, depth, &completions)
                .inspect_err(|error| tracing::info!(%error, "threads read and write in its place"))
                .ok(),
            IoEngine::Ring => Some(Self::ring(&shared, depth, &completions)?),
        };
        // Buffered writes the kernel would only hand to threads of its own, one write of a file at a time.
        let ring_writes = options.engine == IoEngine::Ring || shared.image.direct.is_some();
        let (epoch, info) = (shared.image.info.epoch(), shared.image.info.get());
        let file = shared.image.another()?;
        // An image in memory has no blocks to keep apart, and needs no bounce buffer.
        let inline = Worker { shared, file, id: usize::MAX, bounce: Cell::new(None) };
        let [ended, batch] = [(); 2].map(|()| VecDeque::with_capacity(depth));
        let room = Room {
            waiter: Arc::<CompletionQueue>::clone(&completions),
            waiting: VecDeque::new(),
            kept_off: VecDeque::new(),
            spare: Vec::new(),
            copies: VecDeque::new(),
            copy_budget: InlineBudget::new(),
            turns: false,
        };
        Ok(Self {
            inline,
            calls,
            inline_budget: InlineBudget::new(),
            ring,
            ring_writes,
            threads,
            completions,
            free,
            ended,
            batch,
            staging,
            room,
            mutator,
            info,
            epoch,
        })
    }

    fn ring(
        shared: &Arc<Shared<S>>,
        depth: usize,
        completions: &CompletionQueue,
    ) -> Result<Ring<S>, OpenError> {
        let file = shared.image.another()?;
        let made = match shared.syscalls.ring() {
            true => Ring::new(Arc::clone(shared), file, depth, completions.wake_fd()),
            false => Err(Errno::NOSYS.into()),
        };
        made.map_err(|error| OpenError::System {
            path: shared.image.path().into(),
            what: "set up an io_uring for it",
            errno: error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error),
            remedy: "; permit it (sysctl kernel.io_uring_disabled, seccomp, limit on locked memory), or leave option engine at auto",
        })
    }

    /// What the image is, as of the last poll.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Operations in flight or not yet polled.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.staging.depth() - self.free.len()
    }

    /// Asks for the descriptor to become readable when the next operation ends. Returns false if one has ended already and
    /// is there to be polled: then nothing would wake the caller.
    pub fn arm(&mut self) -> bool {
        let signalled = self.ring.as_ref().is_some_and(Ring::may_have_signalled);
        let polled = self.ended.is_empty() && self.batch.is_empty() && self.room.copies.is_empty();
        polled && self.completions.arm(signalled) && self.ring.as_mut().is_none_or(Ring::arm)
    }

    /// Sleeps until an operation has ended, or for `timeout`, or until a signal. Returns whether one has.
    pub fn wait(&mut self, timeout: Option<Duration>) -> bool {
        if !self.arm() {
            return true;
        }
        // A timeout beyond what the kernel can count is none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let wake = self.completions.wake_fd();
        matches!(poll(&mut [PollFd::new(&wake, PollFlags::IN)], timeout.as_ref()), Ok(1..))
    }

    pub(super) fn shared(&self) -> &Shared<S> {
        &self.inline.shared
    }

    pub(super) fn budgets(&self) -> &Arc<Budgets> {
        &self.shared().budgets
    }

    fn count(&self, op: Op) {
        let counters = &self.shared().counters;
        match op {
            Op::Read { .. } => add(&counters.reads, 1),
            Op::Write { fua, .. } => {
                add(&counters.writes, 1);
                add(&counters.fua_requests, fua.into());
            }
            Op::WriteZeroes { .. } | Op::Discard { .. } => add(&counters.ranges, 1),
            Op::Flush => add(&counters.flushes, 1),
            Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {}
        }
    }

    /// Sends an operation that was checked on its way.
    pub(super) fn start(&mut self, job: Box<Job>) {
        match job.op {
            Op::Flush => return self.flush(job),
            Op::Hold { extent } => return self.hold(job, extent),
            Op::LoadState { .. } | Op::StoreState { .. } => return self.shared().work.push(job),
            // Nothing to move.
            Op::Read { .. } | Op::Write { .. } if job.iovecs.count() == 0 => return self.end(job, Ok(())),
            _ => {}
        }
        let job = if self.may_copy(job.op) {
            self.run_inline(job).and_then(|job| self.give_to_ring(job))
        } else {
            Some(job)
        };
        if let Some(job) = job {
            self.shared().work.push(job);
        }
    }

    /// Whether the kernel may copy an operation's bytes on this thread, as it does for a file in memory and for the page cache, also
    /// when an io_uring is entered. Direct I/O copies nothing.
    fn may_copy(&mut self, op: Op) -> bool {
        let bytes = op.extent().and_then(|extent| extent.bytes());
        self.shared().image.direct.is_some() || bytes.is_some_and(|bytes| self.inline_budget.take(bytes))
    }

    /// A flush of an image in memory has nothing to wait for. All others go to the flusher.
    fn flush(&mut self, job: Box<Job>) {
        let shared = self.shared();
        let done = match self.calls {
            _ if !shared.image.flushes => {
                Some(if shared.latch.is_set() { Err(IoErrorKind::Latched.into()) } else { Ok(()) })
            }
            Calls::All => shared.try_sync(self.inline.file.as_fd()),
            Calls::None | Calls::Cached { .. } => None,
        };
        match done {
            Some(result) => self.end(job, result),
            None => shared.flushes.push(job),
        }
    }

    /// Does an operation on this thread if that waits for nothing; gives back what it did not finish.
    fn run_inline(&mut self, mut job: Box<Job>) -> Option<Box<Job>> {
        let result = match (self.calls, job.op) {
            (Calls::All, _) => Some(self.inline.execute(&mut job)),
            (Calls::Cached { reads: true, .. }, Op::Read { .. }) => self.read_cached(&mut job),
            (Calls::Cached { writes: true, .. }, Op::Write { fua: false, .. }) => self.write_cached(&mut job),
            (Calls::None | Calls::Cached { .. }, _) => None,
        };
        match result {
            Some(result) => {
                self.end(job, result);
                None
            }
            None => Some(job),
        }
    }

    /// Reads what the page cache has. `None` if it has not all of it: the job goes on elsewhere, whatever the reason.
    fn read_cached(&mut self, job: &mut Job) -> Option<Result<(), IoError>> {
        let (shared, file) = (&self.inline.shared, self.inline.file.as_fd());
        loop {
            let result = shared.syscalls.read_now(file, &job.iovecs, job.at);
            if let (Err(Errno::OPNOTSUPP), Calls::Cached { reads, .. }) = (result, &mut self.calls) {
                *reads = false;
            }
            // The end of the file, 0, is said here: elsewhere a write may have moved it by the time.
            let moved = result.ok()?;
            let ended = shared.moved(Transfer::Read, &mut job.iovecs, &mut job.at, Ok(moved));
            if ended.is_some() {
                return ended;
            }
        }
    }

    /// Writes what the page cache takes without waiting.
    fn write_cached(&mut self, job: &mut Job) -> Option<Result<(), IoError>> {
        let (shared, file) = (&self.inline.shared, self.inline.file.as_fd());
        let start = job.op.extent()?.start;
        shared.dirty(start, false);
        loop {
            let result = shared.syscalls.write_now(file, &job.iovecs, job.at);
            if let (Err(Errno::OPNOTSUPP), Calls::Cached { writes, .. }) = (result, &mut self.calls) {
                *writes = false;
            }
            let moved = result.ok().filter(|&bytes| bytes != 0)?;
            let transfer = Transfer::Write { fua: false };
            if let Some(result) = shared.moved(transfer, &mut job.iovecs, &mut job.at, Ok(moved)) {
                shared.dirty(start, false);
                return Some(shared.settle(job.op, result));
            }
        }
    }

    /// Gives a read or write to the ring, if there is one and it is the best way; gives back what it does not take.
    fn give_to_ring(&mut self, job: Box<Job>) -> Option<Box<Job>> {
        let shared = &self.inline.shared;
        let Some(ring) = &mut self.ring else { return Some(job) };
        let fits = match job.op {
            Op::Read { .. } => true,
            // Where blocks have to be kept apart, only threads can wait for them.
            Op::Write { .. } => self.ring_writes && shared.ranges.is_none(),
            _ => false,
        };
        let small = job.iovecs.bytes() <= RING_BYTES_MAX as usize;
        if fits && small && !shared.needs_bounce(&job.iovecs, job.at) { ring.push(job) } else { Some(job) }
    }

    /// Ends a job that no thread has to see. It is reported by the next poll, like any other.
    pub(super) fn end(&mut self, mut job: Box<Job>, result: Result<(), IoError>) {
        job.end(result);
        self.ended.push_back(job);
    }

    /// Looks for what has ended.
    fn collect(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.poll(&mut self.ended);
        }
        self.completions.take(&mut self.ended);
    }

    fn refresh(&mut self) {
        let current = &self.inline.shared.image.info;
        let epoch = current.epoch();
        if epoch != self.epoch {
            (self.epoch, self.info) = (epoch, current.get());
        }
    }

    /// The oldest operation that has ended, and whose data is where it belongs.
    fn take_ended(&mut self) -> Option<Completion> {
        loop {
            let job = self.batch.pop_front()?;
            if job.remote.is_some() {
                self.room.copies.push_back(job);
                continue;
            }
            if job.staged {
                self.staging.give_back(job.tag.slot);
            }
            let completion = Completion { tag: job.tag, result: job.result };
            self.free.push(job);
            return Some(completion);
        }
    }
}

impl<S: Syscalls, M: HostMemory + ?Sized> Storage<M> for FileStorage<S> {
    fn info(&self) -> &Info {
        FileStorage::info(self)
    }

    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        let mut job = self.free.pop().ok_or(Busy)?;
        (job.tag, job.op, job.staged) = (tag, op, false);
        self.count(op);
        self.take_on(memory, job, segments);
        Ok(Submission::Pending)
    }

    fn poll(&mut self, memory: &M) -> Option<Completion> {
        if self.batch.is_empty() {
            self.inline_budget = InlineBudget::new();
            self.collect();
            self.refresh();
            self.make_progress(memory);
            std::mem::swap(&mut self.ended, &mut self.batch);
        }
        let completion = self.take_ended();
        if completion.is_none() && !self.room.turns {
            self.room.copy_budget = InlineBudget::new();
        }
        completion
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.staging.slice(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.mutator.release(Some(slot));
    }

    /// True if nothing is in flight: what has ended is forgotten, and its holds have ended. What the kernel or a thread has cannot be taken back.
    fn cancel_in_flight(&mut self) -> bool {
        self.collect();
        self.batch.append(&mut self.ended);
        let quiet = self.in_use() == self.batch.len();
        if quiet {
            self.batch.iter_mut().for_each(|job| job.remote = None);
            while self.take_ended().is_some() {}
            self.mutator.release(None);
        }
        quiet
    }
}

impl<S: Syscalls> Handle for FileStorage<S> {
    fn arm(&mut self) -> bool {
        Self::arm(self)
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn begin_turn(&mut self) {
        self.room.turns = true;
        self.room.copy_budget = InlineBudget::new();
    }
}

impl<S: Syscalls> AsFd for FileStorage<S> {
    /// Readable once an operation has ended after [`arm`](Self::arm). Not to be read from: `arm` does that.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.completions.wake_fd()
    }
}

impl<S: Syscalls> Drop for FileStorage<S> {
    /// What waits was never begun: nobody was told of it. What was held is free.
    fn drop(&mut self) {
        self.leave_the_line();
        self.mutator.leave();
        self.completions.close();
    }
}

impl<S: Syscalls> fmt::Debug for FileStorage<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = &self.threads.shared.image;
        f.debug_struct("FileStorage")
            .field("image", image)
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}
