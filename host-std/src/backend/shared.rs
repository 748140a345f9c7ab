//! State that the handles and threads of an image share, and their operations on it.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use blk_core::op::Op;
use blk_core::storage::{IoError, IoErrorKind};
use blk_core::units::{Lba, SECTOR_BYTES, StateKey};
use rustix::io::Errno;

use super::budget::Budgets;
use super::convert::{kind, sector};
use super::counters::{Counters, add};
use super::holds::Holds;
use super::image::{Image, Kind};
use super::iovecs::IoVecs;
use super::latch::{Durable, Latch, LatchCause};
use super::queue::Queue;
use super::range_lock::RangeLock;
use super::state_file::{StateFile, StoreError};
use super::syscalls::Syscalls;

/// What the handles and the threads of an image share.
pub(super) struct Shared<S> {
    pub(super) syscalls: S,
    pub(super) image: Image,
    pub(super) latch: Latch,
    pub(super) counters: Counters,
    /// What the handles' operations use.
    pub(super) budgets: Arc<Budgets>,
    /// What they keep each other from changing.
    pub(super) holds: Arc<Holds>,
    /// Records beside the image, where there is a place for them.
    pub(super) state: Option<StateFile>,
    /// Jobs for the workers.
    pub(super) work: Queue,
    /// Jobs for the flusher.
    pub(super) flushes: Queue,
    /// Held while fdatasync runs.
    pub(super) syncing: Mutex<()>,
    /// Where direct I/O has blocks larger than a sector: keeps a read-modify-write apart from its neighbours.
    pub(super) ranges: Option<RangeLock>,
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    Read,
    Write { fua: bool },
}

impl<S: Syscalls> Shared<S> {
    /// For an image with so many workers, and nothing under way.
    pub(super) fn new(
        syscalls: S,
        image: Image,
        state: Option<StateFile>,
        workers: u16,
        budgets: Budgets,
    ) -> Self {
        let large_blocks = image.direct.is_some_and(|direct| direct.offset > SECTOR_BYTES);
        let ranges = large_blocks.then(|| RangeLock::new(workers.into()));
        let (latch, counters) = (Latch::new(), Counters::default());
        let (work, flushes) = (Queue::new(), Queue::new());
        let (budgets, holds, syncing) = (Arc::new(budgets), Arc::new(Holds::new()), Mutex::new(()));
        Self { syscalls, image, latch, counters, budgets, holds, state, work, flushes, syncing, ranges }
    }

    /// Before an operation other than a flush is begun: none that changes the image is, once it has latched.
    pub(super) fn admit(&self, op: Op) -> Result<(), IoError> {
        if op.fails_when_latched() && self.latch.is_set() { Err(IoErrorKind::Latched.into()) } else { Ok(()) }
    }

    /// After it. The latch is tested again: what failed meanwhile may have taken this write along.
    pub(super) fn settle(&self, op: Op, result: Result<(), IoError>) -> Result<(), IoError> {
        result.and_then(|()| self.admit(op))
    }

    /// Fills `into` from a record.
    pub(super) fn load_record(&self, key: StateKey, into: &mut IoVecs) -> Result<(), IoError> {
        let state = self.state.as_ref().ok_or(IoErrorKind::Unsupported)?;
        let mut record = vec![0; into.bytes()];
        state.with_record(key, |stored| {
            let bytes = stored.len().min(record.len());
            record[..bytes].copy_from_slice(&stored[..bytes]);
        });
        into.scatter(&record);
        Ok(())
    }

    /// Replaces a record. If it was to be stable and failed, the backend latches.
    pub(super) fn store_record(&self, key: StateKey, from: &mut IoVecs) -> Result<(), IoError> {
        let state = self.state.as_ref().ok_or(IoErrorKind::Unsupported)?;
        let mut record = vec![0; from.bytes()];
        from.gather(&mut record);
        let stable = self.image.flushes;
        match state.store(&self.syscalls, key, &record, stable) {
            Ok(()) => Ok(()),
            Err(StoreError::Full) => Err(IoErrorKind::NoSpace.into()),
            Err(StoreError::Failed(errno)) => {
                if stable {
                    let cause = LatchCause { what: Durable::Record, errno: Some(errno), lba: None };
                    self.latch.set(self.image.path(), cause);
                }
                Err(kind(errno).into())
            }
        }
    }

    /// Runs fdatasync, unless it runs already: of two that run at once only one may see an error.
    pub(super) fn try_sync(&self, file: BorrowedFd<'_>) -> Option<Result<(), IoError>> {
        let _running = self.syncing.try_lock().ok()?;
        Some(self.sync(file))
    }

    /// Runs fdatasync. The caller holds `syncing`.
    pub(super) fn sync(&self, file: BorrowedFd<'_>) -> Result<(), IoError> {
        let latch = &self.latch;
        // The size first: a write that is made while fdatasync runs may make a truncated file longer again.
        if !latch.is_set() {
            self.check_size()?;
        }
        if latch.is_set() {
            return Err(IoErrorKind::Latched.into());
        }
        let lba = latch.take_dirty();
        let result = loop {
            add(&self.counters.fdatasync_calls, 1);
            match self.syscalls.fdatasync(file) {
                Err(Errno::INTR) => {}
                result => break result,
            }
        };
        match result {
            Ok(()) if latch.is_set() => Err(IoErrorKind::Latched.into()),
            Ok(()) => Ok(()),
            Err(errno) => {
                latch.set(self.image.path(), LatchCause { what: Durable::Flush, errno: Some(errno), lba });
                Err(IoError { kind: kind(errno), lba })
            }
        }
    }

    /// What one call of a transfer came to, whoever made it. `None`: the transfer goes on, with what is `left`, at byte `at`.
    /// One that stopped short goes on; one that moved nothing, as at the end of the file, is an error. If a write was to be
    /// stable and failed, the backend latches, unless the failure is the client's: its memory is gone (`EFAULT`).
    #[inline]
    pub(super) fn moved(
        &self,
        transfer: Transfer,
        left: &mut IoVecs,
        at: &mut u64,
        result: rustix::io::Result<usize>,
    ) -> Option<Result<(), IoError>> {
        let errno = match result {
            Ok(0) => None,
            Ok(bytes) => {
                left.advance(bytes);
                *at += bytes as u64;
                let counter = match transfer {
                    Transfer::Read => &self.counters.bytes_read,
                    Transfer::Write { .. } => &self.counters.bytes_written,
                };
                add(counter, bytes as u64);
                return (left.count() == 0).then_some(Ok(()));
            }
            Err(Errno::INTR) => return None,
            Err(errno) => Some(errno),
        };
        let lba = Some(sector(*at));
        if transfer == Transfer::Read {
            self.read_failed(*at, errno);
        }
        // The kernel reads the memory that a write names before it gives that piece to the device (pwritev(2), EFAULT): nothing that
        // was ever reported as stable is in doubt, and the next client of the image has done nothing.
        if let Transfer::Write { fua } = transfer
            && self.is_durable(fua)
            && errno != Some(Errno::FAULT)
        {
            self.latch.set(self.image.path(), LatchCause { what: Durable::Write, errno, lba });
        }
        Some(Err(IoError { kind: errno.map_or(IoErrorKind::Medium, kind), lba }))
    }

    /// Latches if the file is shorter than the capacity. A block device cannot become longer by a write, so that each read behind
    /// its end goes on failing: its size is left alone.
    fn check_size(&self) -> Result<(), IoError> {
        if self.image.kind != Kind::File {
            return Ok(());
        }
        // The capacity first: a live resize raises it after it has made the file longer.
        let sectors = self.image.info.sectors();
        // Nothing was tried yet, so that there is nothing to latch for.
        let bytes = self.image.size().map_err(|errno| IoError::new(kind(errno)))?;
        if bytes / u64::from(SECTOR_BYTES) < sectors {
            self.truncated(bytes);
        }
        Ok(())
    }

    /// A read failed at byte `at`, or met the end of the file there.
    #[cold]
    fn read_failed(&self, at: u64, errno: Option<Errno>) {
        // Within the capacity there is no end; unless it has moved down since the read was admitted.
        if errno.is_none() && at / u64::from(SECTOR_BYTES) < self.image.info.sectors() {
            self.truncated(at);
        } else {
            // Direct I/O that meets an end within a block goes on behind it, where the kernel refuses it for its alignment.
            let _ = self.check_size();
        }
    }

    fn truncated(&self, bytes: u64) {
        let cause = LatchCause { what: Durable::Truncated, errno: None, lba: Some(sector(bytes)) };
        self.latch.set(self.image.path(), cause);
    }

    /// Whether a write is stable when it is done.
    pub(super) fn is_durable(&self, fua: bool) -> bool {
        fua || self.image.dsync
    }

    /// To be called before a write is issued, and after it has completed: see [`Latch::dirty`](super::latch::Latch::dirty).
    pub(super) fn dirty(&self, start: Lba, fua: bool) {
        if !self.is_durable(fua) {
            self.latch.dirty(start);
        }
    }

    pub(super) fn count_write_call(&self, fua: bool) {
        if self.image.dsync {
            add(&self.counters.dsync_writes, 1);
        }
        if fua {
            add(&self.counters.fua_writes, 1);
        }
    }

    /// Whether direct I/O would refuse this transfer as it is.
    pub(super) fn needs_bounce(&self, iovecs: &IoVecs, at: u64) -> bool {
        self.image.direct.is_some_and(|direct| {
            let unit = u64::from(direct.offset);
            (at | iovecs.bytes() as u64) & (unit - 1) != 0
                || !iovecs.aligned(direct.memory as usize, direct.offset as usize)
        })
    }
}
