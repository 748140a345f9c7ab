//! The latch: after one failed durable operation nothing is promised any more (SEMANTICS, 6).
//!
//! Linux reports a writeback error once and then forgets it, with the data lost and its pages clean. So a second
//! fdatasync that succeeds proves nothing, and the image stays failed until an operator has checked it and opens it again.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use blk_core::units::Lba;
use rustix::io::Errno;

use super::sync::AtomicU64;

/// Which kind of durable operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// fdatasync.
    Flush,
    /// A write on a file opened `O_DSYNC`, or with `RWF_DSYNC`.
    Write,
}

/// Why a backend has latched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatchCause {
    /// What failed.
    pub what: Durable,
    /// The kernel's error; `None` where it moved no byte and named no error.
    pub errno: Option<Errno>,
    /// The sector of a failed write, or the lowest one that was dirty when a flush failed, where it is known.
    pub lba: Option<Lba>,
}

/// The one home of the latch, and of what a flush that fails reports.
#[derive(Debug)]
pub(super) struct Latch {
    cause: OnceLock<LatchCause>,
    /// Lowest sector written since the last flush began; `CLEAN` if there is none.
    dirty_low: AtomicU64,
}

const CLEAN: u64 = u64::MAX;

impl Latch {
    pub(super) fn new() -> Self {
        Self { cause: OnceLock::new(), dirty_low: AtomicU64::new(CLEAN) }
    }

    pub(super) fn cause(&self) -> Option<LatchCause> {
        self.cause.get().copied()
    }

    pub(super) fn is_set(&self) -> bool {
        self.cause.get().is_some()
    }

    /// Latches. The first cause stays.
    pub(super) fn set(&self, cause: LatchCause) {
        if self.cause.set(cause).is_ok() {
            tracing::error!(
                ?cause,
                "a durable operation failed: from now on flushes and writes fail; check the image, then open it again"
            );
        }
    }

    /// A write that is not stable when it is done touches `lba`. To be called before the write is issued *and* after it
    /// has completed: a flush in between may cover it or not, and must name it or leave it to the next one.
    pub(super) fn dirty(&self, lba: Lba) {
        if self.dirty_low.load(Ordering::Relaxed) > lba.0 {
            self.dirty_low.fetch_min(lba.0, Ordering::Relaxed);
        }
    }

    /// A flush begins: the lowest sector that it may have to make stable.
    pub(super) fn take_dirty(&self) -> Option<Lba> {
        match self.dirty_low.swap(CLEAN, Ordering::Relaxed) {
            CLEAN => None,
            low => Some(Lba(low)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_stays() {
        let latch = Latch::new();
        let first = LatchCause { what: Durable::Flush, errno: Some(Errno::IO), lba: Some(Lba(7)) };
        latch.set(first);
        latch.set(LatchCause { what: Durable::Write, errno: None, lba: None });
        assert_eq!(latch.cause(), Some(first));
    }

    #[test]
    fn a_write_that_completes_during_a_flush_is_left_to_the_next() {
        let latch = Latch::new();
        latch.dirty(Lba(9));
        assert_eq!(latch.take_dirty(), Some(Lba(9)));
        latch.dirty(Lba(9));
        latch.dirty(Lba(12));
        assert_eq!(latch.take_dirty(), Some(Lba(9)));
        assert_eq!(latch.take_dirty(), None);
    }
}
