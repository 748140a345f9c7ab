//! An image that is served: what its handles share, and what an operator asks of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use blk_core::storage::Info;

use super::budget::{BudgetReport, Budgets};
use super::counters::Counts;
use super::handle::{Backend, Handle};
use super::image::Image;
use super::io_threads::{IoThread, IoThreads};
use super::latch::LatchCause;
use super::open_error::OpenError;
use super::options::FileOptions;
use super::shared::Shared;
use super::state_file::StateFile;
use super::state_layout::RECORD_BYTES_MAX;
use super::storage::FileStorage;
use super::syscalls::{LinuxSyscalls, Syscalls};

/// An image, a regular file or a block device, opened once. Its handles share its lock, its latch and its threads; the
/// image is closed when the last of them and this are gone.
pub struct FileBackend<S: Syscalls = LinuxSyscalls> {
    threads: Arc<IoThreads<S>>,
    options: FileOptions,
}

impl FileBackend {
    /// Opens an image.
    ///
    /// # Errors
    /// [`OpenError`], which names the file and the remedy.
    pub fn open(path: impl AsRef<Path>, options: &FileOptions) -> Result<Self, OpenError> {
        Self::open_on(LinuxSyscalls, path, options)
    }

    /// Opens an image and all that its threads work with, and starts none: for a process that restricts what threads it will
    /// start may do. Until [`start`](Self::start), what needs a thread waits.
    ///
    /// # Errors
    /// As for [`FileBackend::open`].
    pub fn open_idle(path: impl AsRef<Path>, options: &FileOptions) -> Result<Self, OpenError> {
        Self::idle_on(LinuxSyscalls, path.as_ref(), options)
    }
}

impl<S: Syscalls> FileBackend<S> {
    /// Opens an image whose requests are served by other system calls than the kernel's own: for tests.
    ///
    /// # Errors
    /// As for [`FileBackend::open`].
    pub fn open_on(syscalls: S, path: impl AsRef<Path>, options: &FileOptions) -> Result<Self, OpenError> {
        let backend = Self::idle_on(syscalls, path.as_ref(), options)?;
        backend.start(|_| {})?;
        Ok(backend)
    }

    fn idle_on(syscalls: S, path: &Path, options: &FileOptions) -> Result<Self, OpenError> {
        let limits = [("workers", options.workers, FileOptions::WORKERS_MAX), ("depth", options.depth, 128)];
        for (option, value, max) in limits {
            if value == 0 || value > max {
                let remedy = "workers may be 1 to 64, depth 1 to 128";
                return Err(OpenError::Option { path: path.into(), option, value: value.into(), remedy });
            }
        }
        if let (Some(value), true) = (options.size, options.read_only) {
            let remedy = "an image that is opened readonly is neither made nor extended";
            return Err(OpenError::Option { path: path.into(), option: "size", value, remedy });
        }
        let budgets =
            [("inflight", options.in_flight_bytes_max), ("private-memory", options.private_bytes_max)];
        if let Some(&(option, value)) = budgets.iter().find(|(_, bytes)| *bytes == 0) {
            let remedy = "give 1 byte or more: an operation that is larger is done alone";
            return Err(OpenError::Option { path: path.into(), option, value, remedy });
        }
        let image = Image::open(path, options)?;
        let budgets = Budgets::new(options.in_flight_bytes_max, options.private_bytes_max);
        let state = StateFile::open(&syscalls, &image, options)?;
        if state.is_some() {
            image.info.set_state_bytes(RECORD_BYTES_MAX as u32);
        }
        let threads = IoThreads::new(syscalls, image, state, options.workers, budgets)?;
        threads.shared.image.opened();
        Ok(Self { threads: Arc::new(threads), options: options.clone() })
    }

    /// Starts the threads of a backend that was opened [idle](FileBackend::open_idle). Each calls `begin` first. Of one that has
    /// its threads, it does nothing.
    ///
    /// # Errors
    /// [`OpenError`] if a thread cannot be started; the backend is of no use then.
    pub fn start(&self, begin: fn(IoThread)) -> Result<(), OpenError> {
        self.threads.start(begin)
    }

    /// A handle, for one queue.
    ///
    /// # Errors
    /// [`OpenError`] if there is no memory or no descriptor for it, or no io_uring and the options demand one.
    pub fn handle(&self) -> Result<FileStorage<S>, OpenError> {
        FileStorage::new(Arc::clone(&self.threads), &self.options)
    }

    /// The image's current properties.
    #[must_use]
    pub fn info(&self) -> Info {
        self.shared().image.info.get()
    }

    /// Takes over the size that the image has now, or, if `bytes` is given, first extends a file to that. Never shrinks a file
    /// by itself. Handles take the new [`Info`] over when they poll; an operation beyond a new, lower end fails from now on.
    ///
    /// # Errors
    /// [`OpenError`] if the size cannot be, or cannot be set; then nothing has changed for the handles.
    pub fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        self.shared().image.resize(bytes)
    }

    /// Puts the image back as it was before [`FileOptions::size`] made or extended it: for a caller that does not serve it after
    /// all, since something else that it needs is refused. Nothing may have been written. A file for records that was made goes, too.
    pub fn undo_size(&self) {
        self.shared().image.undo_size();
        self.shared().state.iter().for_each(StateFile::undo);
    }

    /// Counts so far, of all handles.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared().counters.snapshot()
    }

    /// Budgets: their use by the operations of all handles, now and at most.
    #[must_use]
    pub fn budgets(&self) -> BudgetReport {
        self.shared().budgets.report()
    }

    /// Why the backend has latched, if it has: from then on flushes and writes fail, until the image has been checked and
    /// is opened again.
    #[must_use]
    pub fn latched(&self) -> Option<LatchCause> {
        self.shared().latch.cause()
    }

    /// Latches for good.
    pub fn latch(&self, cause: LatchCause) {
        let shared = self.shared();
        shared.latch.set(shared.image.path(), cause);
    }

    /// Latches for the client of the moment, or, with `None`, no longer: see [`Backend::set_client_latch`].
    pub fn set_client_latch(&self, cause: Option<LatchCause>) {
        self.shared().latch.set_client(cause);
    }

    fn shared(&self) -> &Shared<S> {
        &self.threads.shared
    }
}

impl<S: Syscalls> Backend for FileBackend<S> {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        Ok(Box::new(Self::handle(self)?))
    }

    fn info(&self) -> Info {
        Self::info(self)
    }

    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        Self::resize(self, bytes)
    }

    fn counts(&self) -> Counts {
        Self::counts(self)
    }

    fn latched(&self) -> Option<LatchCause> {
        Self::latched(self)
    }

    fn latch(&self, cause: LatchCause) {
        Self::latch(self, cause);
    }

    fn set_client_latch(&self, cause: Option<LatchCause>) {
        Self::set_client_latch(self, cause);
    }
}

impl<S: Syscalls> fmt::Debug for FileBackend<S> {
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
