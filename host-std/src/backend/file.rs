//! The image and its options.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use blk_core::storage::{CacheMode, Info};

use super::counters::Counts;
use super::engine::{Engine, Shared};
use super::host::{Host, LinuxHost};
use super::image::{Image, OpenError};
use super::latch::LatchCause;
use super::storage::FileStorage;

/// Which way reads and writes take. (Flushes, range operations and what direct I/O does not take as it is always have
/// threads; see the [module](super).)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Way {
    /// The fastest that there is: on the queue's own thread what waits for no device, the rest through an io_uring where it
    /// is permitted and faster, or by worker threads.
    #[default]
    Auto,
    /// Worker threads.
    Threads,
    /// An io_uring; without one a handle is refused.
    Ring,
}

impl Way {
    /// The name by which an operator gives it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Threads => "threads",
            Self::Ring => "uring",
        }
    }

    /// Every way.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Threads, Self::Ring];
}

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
    /// How long to wait for the lock, or the device, if another program has it. One that was killed gives it up when the last
    /// of its operations has ended.
    pub lock_wait: Duration,
    /// Use `RWF_DSYNC` for FUA where it is known to be honoured; if false, FUA is a write and a flush.
    pub native_fua: bool,
    /// Which way reads and writes take.
    pub way: Way,
}

impl FileOptions {
    /// The defaults, in a cache mode: writable, locked without waiting, 4 workers, 128 operations, the fastest way.
    #[must_use]
    pub const fn new(mode: CacheMode) -> Self {
        Self {
            mode,
            read_only: false,
            logical_block_bytes: None,
            workers: 4,
            depth: 128,
            lock: true,
            lock_wait: Duration::ZERO,
            native_fua: true,
            way: Way::Auto,
        }
    }
}

/// An image, a regular file or a block device, opened once. Its handles share its lock, its latch and its threads; the
/// image is closed when the last of them and this are gone.
pub struct FileBackend<H: Host = LinuxHost> {
    engine: Arc<Engine<H>>,
    options: FileOptions,
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
        Ok(Self { engine: Arc::new(engine), options: *options })
    }

    /// A handle, for one queue.
    ///
    /// # Errors
    /// [`OpenError`] if there is no memory or no descriptor for it, or no io_uring and the options demand one.
    pub fn handle(&self) -> Result<FileStorage<H>, OpenError> {
        FileStorage::new(Arc::clone(&self.engine), &self.options)
    }

    /// What the image is now.
    #[must_use]
    pub fn info(&self) -> Info {
        self.shared().image.live.info()
    }

    /// Takes over the size that the image has now, or, if `bytes` is given, first extends a file to that. Never shrinks a file
    /// by itself. Handles take the new [`Info`] over when they poll; an operation beyond a new, lower end fails from now on.
    ///
    /// # Errors
    /// [`OpenError`] if the size cannot be, or cannot be set; then nothing has changed for the handles.
    pub fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        self.shared().image.resize(bytes)
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

impl<H: Host> fmt::Debug for FileBackend<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileBackend").field("image", &self.shared().image).finish_non_exhaustive()
    }
}

/// A queue may be served by any thread, and an image by many.
const _: () = {
    const fn send<T: Send>() {}
    const fn shared<T: Send + Sync>() {}
    send::<FileStorage>();
    shared::<FileBackend>();
};
