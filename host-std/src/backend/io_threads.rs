//! The threads of a backend: workers that transfer, and one that flushes.

use std::cell::Cell;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use blk_core::op::Op;
use blk_core::storage::{IoError, IoErrorKind};
use rustix::io::Errno;

use super::bounce_buffer::Bounce;
use super::budget::Budgets;
use super::image::Image;
use super::job::Job;
use super::open_error::OpenError;
use super::shared::Shared;
use super::state_file::StateFile;
use super::syscalls::Syscalls;
use super::worker::Worker;
use crate::mutex::lock;

/// A thread that an image has beside those of its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoThread {
    /// Reads, writes, zeroes and discards.
    Worker,
    /// Makes the image stable.
    Flusher,
}

/// The threads. Dropped with the last handle: what was submitted is finished first.
pub(super) struct IoThreads<S> {
    pub(super) shared: Arc<Shared<S>>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    /// Not started yet. Each has what it works with, so that to start it opens nothing.
    idle: Vec<(IoThread, Box<dyn FnOnce() + Send>)>,
    running: Vec<JoinHandle<()>>,
}

impl<S: Syscalls> IoThreads<S> {
    /// Opens all that the threads work with.
    pub(super) fn new(
        syscalls: S,
        image: Image,
        state: Option<StateFile>,
        workers: u16,
        budgets: Budgets,
    ) -> Result<Self, OpenError> {
        let shared = Arc::new(Shared::new(syscalls, image, state, workers, budgets));
        let mut threads = Threads::default();
        let file = shared.image.another()?;
        let flusher = Flusher { shared: Arc::clone(&shared), file };
        threads.idle.push((IoThread::Flusher, Box::new(move || flusher.run())));
        for id in 0..usize::from(workers) {
            let file = shared.image.another()?;
            let bounce = match shared.image.direct {
                Some(direct) => {
                    Some(Bounce::new(direct).map_err(|errno| thread_error(&shared.image, errno))?)
                }
                None => None,
            };
            let worker = Worker { shared: Arc::clone(&shared), file, id, bounce: Cell::new(bounce) };
            threads.idle.push((IoThread::Worker, Box::new(move || worker.run())));
        }
        Ok(Self { shared, threads: Mutex::new(threads) })
    }

    /// Starts those that have not been started. Each calls `begin` first.
    pub(super) fn start(&self, begin: fn(IoThread)) -> Result<(), OpenError> {
        let mut threads = lock(&self.threads);
        for (what, run) in mem::take(&mut threads.idle) {
            let name = match what {
                IoThread::Worker => "blk-worker",
                IoThread::Flusher => "blk-flusher",
            };
            // What the threads log names what they were started for.
            let span = tracing::Span::current();
            let begun = move || {
                let _in_span = span.enter();
                begin(what);
                run();
            };
            let thread = thread::Builder::new().name(name.into()).spawn(begun).map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
                thread_error(&self.shared.image, errno)
            })?;
            threads.running.push(thread);
        }
        Ok(())
    }
}

fn thread_error(image: &Image, errno: Errno) -> OpenError {
    OpenError::System {
        path: image.path().into(),
        what: "start its threads",
        errno,
        remedy: "; give fewer workers, or raise the limits on processes and memory",
    }
}

impl<S> Drop for IoThreads<S> {
    fn drop(&mut self) {
        self.shared.work.stop();
        self.shared.flushes.stop();
        for thread in lock(&self.threads).running.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl<S: Syscalls> Worker<S> {
    fn run(self) {
        while let Some(mut job) = self.shared.work.pop_wait() {
            let result = self.execute(&mut job);
            job.complete(result);
        }
    }

    /// Does what is left of an operation that is no flush.
    pub(super) fn execute(&self, job: &mut Job) -> Result<(), IoError> {
        self.shared.admit(job.op)?;
        let result = match job.op {
            Op::Read { .. } => self.read(&mut job.iovecs, job.at),
            Op::Write { extent, fua } => self.write(extent.start, &mut job.iovecs, job.at, fua),
            Op::WriteZeroes { extent, may_unmap } => self.write_zeroes(extent, may_unmap),
            Op::Discard { extent } => self.discard(extent),
            Op::LoadState { key } => self.shared.load_record(key, &mut job.iovecs),
            Op::StoreState { key } => self.shared.store_record(key, &mut job.iovecs),
            Op::Flush | Op::Hold { .. } => Err(IoErrorKind::Unsupported.into()),
        };
        self.shared.settle(job.op, result)
    }
}

/// Runs fdatasync off the queues' threads.
struct Flusher<S> {
    shared: Arc<Shared<S>>,
    file: OwnedFd,
}

impl<S: Syscalls> Flusher<S> {
    fn run(self) {
        // The flushes that wait now are served by one fdatasync. Those that arrive while it runs wait for the next: it may have
        // passed by the writes that they cover.
        while let Some(joined) = self.shared.flushes.len_wait() {
            let running = lock(&self.shared.syncing);
            let result = self.shared.sync(self.file.as_fd());
            drop(running);
            for _ in 0..joined {
                if let Some(job) = self.shared.flushes.pop() {
                    job.complete(result);
                }
            }
        }
    }
}
