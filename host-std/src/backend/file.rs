//! The image and its handles.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, CacheMode, Completion, Info, IoError, IoErrorKind, Storage};
use blk_core::units::Tag;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vm_memory::mmap::MmapRegion;

use super::counters::{Counts, add};
use super::engine::{Engine, Shared};
use super::host::{Host, LinuxHost};
use super::image::{Image, OpenError, STAGING_BYTES, TRANSFER_MAX_BYTES};
use super::iovecs::SEGMENTS_MAX;
use super::job::{Home, Job};
use super::latch::LatchCause;
use crate::memory::{HostMemory, HostRange};

/// How an image is opened and served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The cache mode.
    pub mode: CacheMode,
    /// Refuse writes, and let other readers in.
    pub read_only: bool,
    /// Logical block in bytes, 512 to 65536; by default 512 for a file, and the device's own for a block device. A smaller
    /// one than a device has costs a read-modify-write with `O_DIRECT`.
    pub logical_block_bytes: Option<u32>,
    /// Threads that read and write: the transfers that the kernel works on at a time. 1 to 64.
    pub workers: u16,
    /// Operations in flight, and staging buffers, of each handle. 1 to 128.
    pub depth: u16,
    /// Lock the image against other programs.
    pub lock: bool,
    /// Use `RWF_DSYNC` for FUA where it is known to be honoured; if false, FUA is a write and a flush.
    pub native_fua: bool,
}

impl FileOptions {
    /// The defaults, in a cache mode: writable, locked, 4 workers, 128 operations.
    #[must_use]
    pub const fn new(mode: CacheMode) -> Self {
        Self {
            mode,
            read_only: false,
            logical_block_bytes: None,
            workers: 4,
            depth: 128,
            lock: true,
            native_fua: true,
        }
    }
}

/// An image, a regular file or a block device, opened once. Its handles share its lock, its latch and its threads; the
/// image is closed when the last of them and this are gone.
pub struct FileBackend<H: Host = LinuxHost> {
    engine: Arc<Engine<H>>,
    depth: u16,
}

impl FileBackend {
    /// Opens an image.
    ///
    /// # Errors
    /// [`OpenError`], which names the file and the remedy.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> Result<Self, OpenError> {
        Self::open_on(LinuxHost, path, options)
    }
}

impl<H: Host> FileBackend<H> {
    /// Opens an image whose requests are served by other system calls than the kernel's own: for tests.
    ///
    /// # Errors
    /// As for [`FileBackend::open`].
    pub fn open_on(host: H, path: impl AsRef<Path>, options: &FileOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let limits = [("workers", options.workers, 64), ("depth", options.depth, 128)];
        for (option, value, max) in limits {
            if value == 0 || value > max {
                let remedy = "workers may be 1 to 64, depth 1 to 128";
                return Err(OpenError::Option { path: path.into(), option, value: value.into(), remedy });
            }
        }
        let image = Image::open(path, options)?;
        let engine = Engine::start(host, image, options.workers)?;
        Ok(Self { engine: Arc::new(engine), depth: options.depth })
    }

    /// A handle, for one queue.
    ///
    /// # Errors
    /// [`OpenError`] if there is no memory or no descriptor for it.
    pub fn handle(&self) -> Result<FileStorage<H>, OpenError> {
        FileStorage::new(Arc::clone(&self.engine), self.depth.into())
    }

    /// What the image is.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.shared().image.info
    }

    /// What has been done so far, by all handles.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared().counters.snapshot()
    }

    /// Why the backend has latched, if it has: from then on flushes and writes fail, until the image has been checked and
    /// is opened again.
    #[must_use]
    pub fn latched(&self) -> Option<LatchCause> {
        self.shared().latch.cause()
    }

    /// Latches, for a reason that was known before the image was opened.
    pub fn latch(&self, cause: LatchCause) {
        self.shared().latch.set(cause);
    }

    fn shared(&self) -> &Shared<H> {
        &self.engine.shared
    }
}

/// A queue's handle to an image.
///
/// [`Storage::poll`] never waits. Whoever has nothing else to do sleeps in [`wait`](Self::wait), or calls
/// [`arm`](Self::arm) and sleeps until the descriptor ([`AsFd`]) is readable, together with whatever else it waits for.
///
/// A handle may be dropped with operations in flight: they land, and their memory stays mapped until then.
pub struct FileStorage<H: Host = LinuxHost> {
    engine: Arc<Engine<H>>,
    home: Arc<Home>,
    /// Jobs not in use. There are as many jobs as the handle is deep.
    #[expect(clippy::vec_box, reason = "a job moves between owners by pointer")]
    free: Vec<Box<Job>>,
    /// Ended, not yet polled.
    ended: VecDeque<Box<Job>>,
    staging: Staging,
}

impl<H: Host> FileStorage<H> {
    fn new(engine: Arc<Engine<H>>, depth: usize) -> Result<Self, OpenError> {
        let fail = |errno| OpenError::System {
            path: engine.shared.image.path().into(),
            what: "make a handle",
            errno,
            remedy: "; raise the limits on open files and memory",
        };
        let staging = Staging::new(depth).map_err(fail)?;
        let home = Arc::new(Home::new(depth, Arc::clone(&staging.mapping) as _).map_err(fail)?);
        engine.shared.work.make_room(depth);
        engine.shared.flushes.make_room(depth);
        let free = (0..depth).map(|_| Box::new(Job::new(Arc::clone(&home)))).collect();
        Ok(Self { engine, home, free, ended: VecDeque::with_capacity(depth), staging })
    }

    /// What the image is.
    #[must_use]
    pub fn info(&self) -> &Info {
        &self.engine.shared.image.info
    }

    /// Operations in flight or not yet polled.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.staging.depth() - self.free.len()
    }

    /// Asks for the descriptor to become readable when the next operation ends. Returns false if one has ended already and
    /// is there to be polled: then nothing would wake the caller.
    pub fn arm(&mut self) -> bool {
        self.ended.is_empty() && self.home.arm()
    }

    /// Sleeps until an operation has ended, or for `timeout`, or until a signal. Returns whether one has.
    pub fn wait(&mut self, timeout: Option<Duration>) -> bool {
        if !self.arm() {
            return true;
        }
        // A timeout beyond what the kernel can count is none.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let wake = self.home.wake_fd();
        matches!(poll(&mut [PollFd::new(&wake, PollFlags::IN)], timeout.as_ref()), Ok(1..))
    }

    /// Checks an operation and puts its memory into the job.
    fn prepare<M: HostMemory + ?Sized>(
        &self,
        memory: &M,
        job: &mut Job,
        segments: &[Segment],
    ) -> Result<(), IoErrorKind> {
        let info = self.info();
        if let Some(extent) = job.op.extent()
            && !extent.fits(info.sectors)
        {
            return Err(IoErrorKind::OutOfRange);
        }
        if job.op.mutates() && info.read_only {
            return Err(IoErrorKind::ReadOnly);
        }
        let bytes = match job.op {
            Op::Write { fua: true, .. } if !info.fua => return Err(IoErrorKind::Unsupported),
            Op::Read { extent } | Op::Write { extent, .. } => extent.bytes(),
            Op::WriteZeroes { .. } | Op::Discard { .. } | Op::Flush => Some(0),
        };
        let fits = bytes.is_some_and(|bytes| bytes <= u64::from(TRANSFER_MAX_BYTES));
        if !fits || segments.len() > usize::from(SEGMENTS_MAX) || total_bytes(segments) != bytes {
            return Err(IoErrorKind::OutOfRange);
        }
        for segment in segments {
            match *segment {
                Segment::Guest { addr, len } => {
                    let mut done = 0;
                    while done < len {
                        let at = addr.checked_add(done.into()).ok_or(IoErrorKind::Memory)?;
                        let range =
                            memory.host_range(at, (len - done) as usize).ok_or(IoErrorKind::Memory)?;
                        // SAFETY: `HostMemory` says that the range stays mapped as long as the anchor that the job takes below, and that
                        // no reference to it exists. `Job::complete` clears the list before it lets the anchor go.
                        unsafe { job.iovecs.push(range) }.map_err(|_| IoErrorKind::OutOfRange)?;
                        done += range.len as u32;
                    }
                }
                Segment::Staging { offset, len } => {
                    let range = self.staging.range(job.tag.slot, offset, len).ok_or(IoErrorKind::Memory)?;
                    // SAFETY: the job's home keeps the staging buffers mapped. `Staging::slice` gives out no reference while
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

    fn count(&self, op: Op) {
        let counters = &self.engine.shared.counters;
        match op {
            Op::Read { .. } => add(&counters.reads, 1),
            Op::Write { fua, .. } => {
                add(&counters.writes, 1);
                add(&counters.fua_requests, fua.into());
            }
            Op::WriteZeroes { .. } | Op::Discard { .. } => add(&counters.ranges, 1),
            Op::Flush => add(&counters.flushes, 1),
        }
    }

    /// Ends a job that no thread has to see. It is reported by the next poll, like any other.
    fn end(&mut self, mut job: Box<Job>, result: Result<(), IoError>) {
        job.result = result;
        job.iovecs.clear();
        job.anchor = None;
        self.ended.push_back(job);
    }
}

impl<H: Host, M: HostMemory + ?Sized> Storage<M> for FileStorage<H> {
    fn info(&self) -> &Info {
        FileStorage::info(self)
    }

    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<(), Busy> {
        let mut job = self.free.pop().ok_or(Busy)?;
        (job.tag, job.op, job.staged) = (tag, op, false);
        self.count(op);
        let prepared = self.prepare(memory, &mut job, segments);
        if job.staged {
            self.staging.borrow(tag.slot);
        }
        let shared = &self.engine.shared;
        match (prepared, op) {
            (Err(kind), _) => {
                self.end(job, Err(IoError { kind, lba: op.extent().map(|extent| extent.start) }))
            }
            (Ok(()), Op::Flush) if !shared.image.flushes() => self.end(job, Ok(())),
            (Ok(()), Op::Flush) => shared.flushes.push(job),
            (Ok(()), _) => shared.work.push(job),
        }
        Ok(())
    }

    fn poll(&mut self, _memory: &M) -> Option<Completion> {
        if self.ended.is_empty() && !self.home.take(&mut self.ended) {
            return None;
        }
        let job = self.ended.pop_front()?;
        if job.staged {
            self.staging.give_back(job.tag.slot);
        }
        let completion = Completion { tag: job.tag, result: job.result };
        self.free.push(job);
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.staging.slice(slot)
    }
}

impl<H: Host> AsFd for FileStorage<H> {
    /// Readable once an operation has ended after [`arm`](Self::arm). Not to be read from: `arm` does that.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.home.wake_fd()
    }
}

impl<H: Host> fmt::Debug for FileBackend<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBackend").field("image", &self.shared().image).finish_non_exhaustive()
    }
}

impl<H: Host> fmt::Debug for FileStorage<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = &self.engine.shared.image;
        f.debug_struct("FileStorage")
            .field("image", image)
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}

impl<H: Host> Drop for FileStorage<H> {
    fn drop(&mut self) {
        self.home.close();
    }
}

/// The staging buffers of a handle: one for each slot, page-aligned.
struct Staging {
    mapping: Arc<MmapRegion>,
    /// Operations in flight that use each slot's buffer.
    users: Box<[u16]>,
}

impl Staging {
    fn new(depth: usize) -> Result<Self, Errno> {
        let mapping = MmapRegion::new(depth * STAGING_BYTES as usize).map_err(|_| Errno::NOMEM)?;
        Ok(Self { mapping: Arc::new(mapping), users: vec![0; depth].into() })
    }

    fn depth(&self) -> usize {
        self.users.len()
    }

    fn borrow(&mut self, slot: u16) {
        if let Some(users) = self.users.get_mut(usize::from(slot)) {
            *users += 1;
        }
    }

    fn give_back(&mut self, slot: u16) {
        if let Some(users) = self.users.get_mut(usize::from(slot)) {
            *users -= 1;
        }
    }

    fn range(&self, slot: u16, offset: u32, len: u32) -> Option<HostRange> {
        let end = offset.checked_add(len)?;
        if usize::from(slot) >= self.depth() || end > STAGING_BYTES {
            return None;
        }
        let at = usize::from(slot) * STAGING_BYTES as usize + offset as usize;
        // SAFETY: `at` lies within the mapping, or at its end if `len` is 0: there are `depth` buffers of STAGING_BYTES.
        let start = unsafe { self.mapping.as_ptr().add(at) };
        Some(HostRange { start: NonNull::new(start)?, len: len as usize })
    }

    fn slice(&mut self, slot: u16) -> &mut [u8] {
        let unused = self.users.get(usize::from(slot)) == Some(&0);
        match self.range(slot, 0, STAGING_BYTES).filter(|_| unused) {
            // SAFETY: mapped as long as `self` lives. No operation in flight uses this buffer, so that neither the kernel nor a
            // thread accesses it; none can begin while the slice, which borrows the handle mutably, lives.
            Some(range) => unsafe { std::slice::from_raw_parts_mut(range.start.as_ptr(), range.len) },
            None => &mut [],
        }
    }
}

/// A queue may be served by any thread, and an image by many.
const _: () = {
    const fn send<T: Send>() {}
    const fn shared<T: Send + Sync>() {}
    send::<FileStorage>();
    shared::<FileBackend>();
};
