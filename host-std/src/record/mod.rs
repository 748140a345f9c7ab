//! Recordings: everything that a host was given, in order, so that the image can be rebuilt at any point and every power cut
//! tried.
//!
//! A [`Recorder`] is a layer over any [`Backend`]. It appends to a file
//!
//! - each operation, with the data of a write, **before** the host is given it,
//! - each completion when it is polled, **before** the guest can be told of it,
//! - marks that a harness sets ([`Recorder::mark`]): what the guest said that it had been told, such as a completed fsync.
//!
//! All handles of the image append under one lock, so the file has one order, and that order is the one by which the
//! [storage contract](blk_core::storage::Storage) decides what a flush covers: exactly the changes whose completions are
//! recorded before the flush is. The data of a write is copied out of the guest's memory once, and that copy is both recorded
//! and written: a guest that changes it meanwhile changes neither. Of a read, the range and the result are recorded and not the
//! data. A write of more than 1 MiB is done, and recorded, in pieces. The file survives `kill -9` of the server; it is not made stable against a power cut of the host that records.
//!
//! A recording that cannot be written (its file system is full) fails flushes and writes from then on: what it would miss is
//! not done. A server that is restarted appends a new session to the same file, after cutting off what its predecessor left
//! half-written. In between, nobody else may change the image.
//!
//! Not recorded: holds, which change nothing, and records beside the image, which are no part of it. Both pass.
//!
//! The format of the file is that of [`recording`](crate::recording).

mod buffers;
mod handle;
mod read_image;
mod split;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{File, TryLockError};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use blk_core::storage::{Info, IoErrorKind};
use zerocopy::IntoBytes as _;

use crate::backend::{Backend, Budget, BudgetUse, Counts, Handle, LatchCause, OpenError};
use crate::confine::permissions::open_or_make_private;
pub use crate::recording::Contents;
use crate::recording::format::FileHeader;
use crate::recording::{Log, LogError};

use handle::RecordedHandle;
use split::SplitHandle;
use writer::Writer;

/// How long the recording of a server that was killed may still be locked: until the kernel has closed its files.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Memory for the data of writes in flight.
const MEMORY_BYTES: u64 = 256 << 20;

/// A recording could not be begun or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The kernel refused.
    #[error("{path}: cannot {what} the recording: {error}; give --record a path that can be written")]
    System {
        /// The recording.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's error.
        error: std::io::Error,
    },
    /// Another server appends to it.
    #[error("{path}: another server records into it; stop that one, or give --record another path")]
    InUse {
        /// The recording.
        path: PathBuf,
    },
    /// What is there cannot be appended to.
    #[error("{0}; or give --record another path")]
    Unreadable(#[from] LogError),
    /// The image's contents could not be read.
    #[error("cannot read the image that is to be recorded: {0}; check it with a read of the whole file")]
    Image(IoErrorKind),
    /// The image could give no handle.
    #[error(transparent)]
    Handle(#[from] OpenError),
    /// The recording cannot be written any more; the log has said why.
    #[error("{path}: the recording can no longer be written; make room for it, then restart the server")]
    Broken {
        /// The recording.
        path: PathBuf,
    },
}

/// A backend that records what goes through it. See the [module](self).
pub struct Recorder {
    inner: Arc<dyn Backend>,
    path: PathBuf,
    writer: Arc<Writer>,
    memory: Arc<Budget>,
    handles: AtomicU32,
}

impl Recorder {
    /// Records what `inner` is given from now on: into a new file, or, where there is a recording already, in a new session
    /// at its end.
    ///
    /// The image is read through, once, when its recording begins.
    ///
    /// # Errors
    /// [`RecordError`], which names the file and the remedy.
    pub fn open(inner: Arc<dyn Backend>, path: impl Into<PathBuf>) -> Result<Self, RecordError> {
        let reader = Arc::clone(&inner);
        Self::open_with(inner, || Ok(reader), path.into())
    }

    /// As [`open`](Self::open); the image is read through `reader`, another backend over it, where `inner` has no threads yet.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        inner: Arc<dyn Backend>,
        reader: impl FnOnce() -> Result<Arc<dyn Backend>, OpenError>,
        path: PathBuf,
    ) -> Result<Self, RecordError> {
        let system = |what| {
            let path = path.clone();
            move |error| RecordError::System { path, what, error }
        };
        let mut file = open_or_make_private(&path).map_err(system("open"))?;
        lock(&file, &path)?;
        let info = inner.info();
        let empty = file.metadata().map_err(system("look at"))?.len() == 0;
        let records = if empty {
            let mut handle = reader()?.handle()?;
            let contents = read_image::read_image(&mut *handle).map_err(RecordError::Image)?;
            let hash = match contents {
                Contents::Zeroes => None,
                Contents::Data { hash } => Some(hash),
            };
            file.write_all(FileHeader::new(info.sectors, hash).as_bytes()).map_err(system("write"))?;
            0
        } else {
            let log = Log::open(&path)?;
            file.set_len(log.whole_bytes()).map_err(system("cut the tail off"))?;
            file.seek(SeekFrom::End(0)).map_err(system("append to"))?;
            log.positions()
        };
        let begun = Writer::begin(path.clone(), file, records, info);
        let writer = Arc::new(begun.map_err(|_| RecordError::Broken { path: path.clone() })?);
        let memory = Arc::new(Budget::new(MEMORY_BYTES));
        Ok(Self { inner, path, writer, memory, handles: AtomicU32::new(0) })
    }

    /// Bounds the memory for the data of writes in flight, of all handles together: what is beyond waits. By default that is 256 MiB.
    #[must_use]
    pub fn with_memory(self, bytes: u64) -> Self {
        Self { memory: Arc::new(Budget::new(bytes)), ..self }
    }

    /// What the writes in flight have of that memory.
    #[must_use]
    pub fn memory(&self) -> BudgetUse {
        self.memory.report()
    }

    /// Notes something that happened outside, such as what a guest said on its console. Returns the first position of which
    /// the mark is part.
    ///
    /// # Errors
    /// [`RecordError::Broken`] if the recording cannot be written.
    pub fn mark(&self, text: &str) -> Result<u64, RecordError> {
        self.writer.mark(text).map_err(|_| RecordError::Broken { path: self.path.clone() })
    }

    /// Ends the recording: the server has stopped in order. What comes after is not recorded, and not done. Dropping the recorder and all
    /// its handles does the same; a process that exits drops nothing that its threads hold.
    pub fn end(&self) {
        self.writer.end();
    }

    /// The position reached.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.writer.position()
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn lock(file: &File, path: &Path) -> Result<(), RecordError> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => return Err(RecordError::InUse { path: path.into() }),
            Err(TryLockError::Error(error)) => {
                return Err(RecordError::System { path: path.into(), what: "lock", error });
            }
        }
    }
}

impl Backend for Recorder {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        let inner = self.inner.handle()?;
        let number = self.handles.fetch_add(1, Ordering::Relaxed);
        let (writer, memory) = (Arc::clone(&self.writer), Arc::clone(&self.memory));
        let recorded = RecordedHandle::new(inner, writer, memory, number);
        Ok(Box::new(SplitHandle::new(Box::new(recorded))))
    }

    fn info(&self) -> Info {
        self.inner.info()
    }

    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        let info = self.inner.resize(bytes)?;
        // If it cannot be recorded, neither can any write, which therefore fails.
        let _ = self.writer.changed(&info);
        Ok(info)
    }

    fn counts(&self) -> Counts {
        self.inner.counts()
    }

    fn latched(&self) -> Option<LatchCause> {
        self.inner.latched()
    }

    fn latch(&self, cause: LatchCause) {
        self.inner.latch(cause);
    }

    fn set_client_latch(&self, cause: Option<LatchCause>) {
        self.inner.set_client_latch(cause);
    }
}
