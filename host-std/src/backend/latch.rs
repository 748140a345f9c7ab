//! The latch: after one failed durable operation nothing is promised any more (blk-core/SEMANTICS.md, "The latch").
//!
//! It has two causes, and holds while there is one: the image's own, which stays for good, and the client's, which says only that a
//! client brought the latch along from an earlier server. What a client says it can have forged, so that goes when the client goes.
//!
//! Linux reports a writeback error once and then forgets it, with the data lost and its pages clean. So a second
//! fdatasync that succeeds proves nothing, and the image stays failed until an operator has checked it and opens it again.

use std::path::Path;
use std::sync::atomic::Ordering;

use blk_core::units::Lba;
use rustix::io::Errno;

use super::sync::{AtomicBool, AtomicU64, Mutex, lock};

/// Kind of the durable operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durable {
    /// fdatasync.
    Flush,
    /// A write on a file opened `O_DSYNC`, or with `RWF_DSYNC`.
    Write,
    /// A record beside the image, where the cache mode promises that it is stable.
    Record,
    /// None: the file was found truncated, shorter than the capacity. What lay behind its end is lost, stable or not, and would
    /// read as zeroes once a write makes the file longer again.
    Truncated,
}

/// Why a backend has latched.
///
/// A truncated file is found by a read that meets its end, and by each flush. What cannot be found: that the file was cut short
/// and made as long again before any of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatchCause {
    /// What failed.
    pub what: Durable,
    /// The kernel's error; `None` where it moved no byte and named no error.
    pub errno: Option<Errno>,
    /// The sector of a failed write, or the lowest one that was dirty when a flush failed, or the first one behind the end of a
    /// truncated file, where it is known.
    pub lba: Option<Lba>,
}

/// The one home of the latch, and of what a flush that fails reports.
#[derive(Debug)]
pub(super) struct Latch {
    causes: Mutex<Causes>,
    /// Whether `causes` has one: spares the check of every operation the lock. Stored under it.
    set: AtomicBool,
    /// Lowest sector written since the last flush began; `CLEAN` if there is none.
    dirty_low: AtomicU64,
}

/// Why it is set, as far as it is.
#[derive(Debug)]
struct Causes {
    own: Option<LatchCause>,
    client: Option<LatchCause>,
}

const CLEAN: u64 = u64::MAX;

impl Latch {
    pub(super) fn new() -> Self {
        let causes = Mutex::new(Causes { own: None, client: None });
        Self { causes, set: AtomicBool::new(false), dirty_low: AtomicU64::new(CLEAN) }
    }

    /// Why it is set; the image's own cause before the client's.
    pub(super) fn cause(&self) -> Option<LatchCause> {
        let causes = lock(&self.causes);
        causes.own.or(causes.client)
    }

    pub(super) fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    /// Latches `image` for good. The first cause stays.
    pub(super) fn set(&self, image: &Path, cause: LatchCause) {
        let mut causes = lock(&self.causes);
        if causes.own.is_some() {
            return;
        }
        causes.own = Some(cause);
        self.set.store(true, Ordering::Release);
        drop(causes);
        tracing::error!(
            image = %image.display(),
            ?cause,
            "what was stable may be lost: from now on flushes and writes fail; check the image, then open it again"
        );
    }

    /// Latches for as long as the client stays that says so, or, with `None`, forgets what one said.
    pub(super) fn set_client(&self, cause: Option<LatchCause>) {
        let mut causes = lock(&self.causes);
        causes.client = cause;
        self.set.store(causes.own.is_some() || cause.is_some(), Ordering::Release);
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
        latch.set(Path::new("image"), first);
        latch.set(Path::new("image"), LatchCause { what: Durable::Write, errno: None, lba: None });
        assert_eq!(latch.cause(), Some(first));
    }

    #[test]
    fn what_a_client_says_goes_with_it_and_the_images_own_cause_stays() {
        let latch = Latch::new();
        let own = LatchCause { what: Durable::Flush, errno: Some(Errno::IO), lba: Some(Lba(7)) };
        let said = LatchCause { what: Durable::Write, errno: None, lba: None };
        latch.set_client(Some(said));
        assert_eq!((latch.is_set(), latch.cause()), (true, Some(said)));
        latch.set_client(None);
        assert_eq!((latch.is_set(), latch.cause()), (false, None));
        latch.set_client(Some(said));
        latch.set(Path::new("image"), own);
        assert_eq!(latch.cause(), Some(own), "a client's word hides no failure");
        latch.set_client(None);
        assert_eq!((latch.is_set(), latch.cause()), (true, Some(own)));
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
