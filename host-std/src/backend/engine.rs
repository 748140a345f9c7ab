//! The threads of a backend: workers that transfer, and one that flushes.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use blk_core::op::Op;
use blk_core::storage::{IoError, IoErrorKind};
use rustix::io::Errno;

use super::bounce::{Bounce, RangeLock};
use super::counters::{Counters, add};
use super::host::Host;
use super::image::{Image, OpenError};
use super::job::Job;
use super::latch::{Durable, Latch, LatchCause};
use super::queue::{Queue, lock};

/// What the handles and the threads of an image share.
pub(super) struct Shared<H> {
    pub(super) host: H,
    pub(super) image: Image,
    pub(super) latch: Latch,
    pub(super) counters: Counters,
    /// Jobs for the workers.
    pub(super) work: Queue,
    /// Jobs for the flusher.
    pub(super) flushes: Queue,
    /// Held while fdatasync runs.
    syncing: Mutex<()>,
    /// Where direct I/O has blocks larger than a sector: keeps a read-modify-write apart from its neighbours.
    pub(super) ranges: Option<RangeLock>,
}

/// The threads. Dropped with the last handle: what was submitted is finished first.
pub(super) struct Engine<H> {
    pub(super) shared: Arc<Shared<H>>,
    threads: Vec<JoinHandle<()>>,
}

impl<H: Host> Engine<H> {
    pub(super) fn start(host: H, image: Image, workers: u16) -> Result<Self, OpenError> {
        let large_blocks = image.direct.is_some_and(|direct| direct.offset > blk_core::units::SECTOR_BYTES);
        let ranges = large_blocks.then(|| RangeLock::new(workers.into()));
        let (latch, counters) = (Latch::new(), Counters::default());
        let (work, flushes) = (Queue::new(), Queue::new());
        let shared =
            Arc::new(Shared { host, image, latch, counters, work, flushes, syncing: Mutex::new(()), ranges });
        let mut engine = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let file = shared.image.another()?;
        let flusher = Flusher { shared: Arc::clone(&shared), file };
        engine.spawn("flusher", move || flusher.run())?;
        for id in 0..usize::from(workers) {
            let file = shared.image.another()?;
            let bounce = match shared.image.direct {
                Some(direct) => {
                    Some(Bounce::new(direct).map_err(|errno| thread_error(&shared.image, errno))?)
                }
                None => None,
            };
            let worker = Worker { shared: Arc::clone(&shared), file, id, bounce: Cell::new(bounce) };
            engine.spawn("worker", move || worker.run())?;
        }
        Ok(engine)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = std::thread::Builder::new().name(format!("blk-{name}")).spawn(run).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
            thread_error(&self.shared.image, errno)
        })?;
        self.threads.push(thread);
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

impl<H> Drop for Engine<H> {
    fn drop(&mut self) {
        self.shared.work.stop();
        self.shared.flushes.stop();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Reads, writes, zeroes and discards, on the thread that calls it.
pub(super) struct Worker<H> {
    pub(super) shared: Arc<Shared<H>>,
    /// An open file description of its own: see [`Image::another`].
    pub(super) file: OwnedFd,
    /// Its place in the range lock.
    pub(super) id: usize,
    pub(super) bounce: Cell<Option<Bounce>>,
}

impl<H: Host> Worker<H> {
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
            Op::Flush => Err(IoErrorKind::Unsupported.into()),
        };
        self.shared.settle(job.op, result)
    }
}

impl<H: Host> Shared<H> {
    /// Before an operation other than a flush is begun: none that changes the image is, once it has latched.
    pub(super) fn admit(&self, op: Op) -> Result<(), IoError> {
        if op.mutates() && self.latch.is_set() { Err(IoErrorKind::Latched.into()) } else { Ok(()) }
    }

    /// After it. The latch is tested again: what failed meanwhile may have taken this write along.
    pub(super) fn settle(&self, op: Op, result: Result<(), IoError>) -> Result<(), IoError> {
        result.and_then(|()| self.admit(op))
    }

    /// Runs fdatasync, unless it runs already: of two that run at once only one may see an error.
    pub(super) fn try_sync(&self, file: BorrowedFd<'_>) -> Option<Result<(), IoError>> {
        let _running = self.syncing.try_lock().ok()?;
        Some(self.sync(file))
    }

    /// Runs fdatasync. The caller holds `syncing`.
    fn sync(&self, file: BorrowedFd<'_>) -> Result<(), IoError> {
        let latch = &self.latch;
        if latch.is_set() {
            return Err(IoErrorKind::Latched.into());
        }
        let lba = latch.take_dirty();
        let result = loop {
            add(&self.counters.fdatasync_calls, 1);
            match self.host.fdatasync(file) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        match result {
            Ok(()) if latch.is_set() => Err(IoErrorKind::Latched.into()),
            Ok(()) => Ok(()),
            Err(errno) => {
                latch.set(LatchCause { what: Durable::Flush, errno: Some(errno), lba });
                Err(IoError { kind: super::transfer::kind(errno), lba })
            }
        }
    }
}

/// Runs fdatasync off the queues' threads.
struct Flusher<H> {
    shared: Arc<Shared<H>>,
    file: OwnedFd,
}

impl<H: Host> Flusher<H> {
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
