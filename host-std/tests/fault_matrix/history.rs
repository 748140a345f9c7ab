//! What was promised to the guest, and what was done to the image, in one order: is every promise kept?

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a system call did to the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Bytes were written, zeroed or given back; `stable` where the call made them stable itself (RWF_DSYNC).
    Wrote { range: Range<u64>, stable: bool },
    /// The same, but an io_uring does it: nothing says when.
    Submitted { range: Range<u64>, stable: bool },
    /// All that was written before the call was entered is stable.
    Synced,
    /// A flush failed: the kernel has told of the loss, and will not again.
    SyncFailed,
}

#[derive(Clone, Debug)]
struct Done {
    entered: u64,
    left: u64,
    effect: Effect,
}

/// A request that the guest was told is done.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    pub(crate) what: String,
    /// When it was submitted, and when the guest heard of its end.
    pub(crate) submitted: u64,
    pub(crate) acknowledged: u64,
    pub(crate) kind: PromiseKind,
}

#[derive(Clone, Debug)]
pub(crate) enum PromiseKind {
    /// These bytes have changed; `stable`: for good (the cache is off, or FUA).
    Write { range: Range<u64>, stable: bool },
    /// All writes that were acknowledged before this was submitted are stable.
    Flush,
}

/// A clock that server and guest share, and what happened by it.
#[derive(Debug, Default)]
pub(crate) struct History {
    clock: AtomicU64,
    done: Mutex<Vec<Done>>,
    promises: Mutex<Vec<Promise>>,
}

impl History {
    /// A time after every earlier one.
    pub(crate) fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A call about the image has ended.
    pub(crate) fn add(&self, entered: u64, effect: Effect) {
        let left = self.now();
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(Done { entered, left, effect });
    }

    /// The guest was told that a request is done.
    pub(crate) fn promise(&self, promise: Promise) {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner).push(promise);
    }

    /// Every promise that was not kept: what was called stable and is not. `clean_stop`: when the server said by its exit status
    /// that everything is stable. `unseen`: nothing tells of what an io_uring transfers.
    pub(crate) fn broken_promises(&self, clean_stop: Option<u64>, unseen: bool) -> Vec<String> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let promises = self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        let mut broken = Vec::new();
        for flush in promises.iter().filter(|promise| matches!(promise.kind, PromiseKind::Flush)) {
            let covered = promises.iter().filter(|write| write.acknowledged < flush.submitted);
            for write in covered {
                if let Some(why) = unstable(&done, write, flush.acknowledged, unseen) {
                    broken.push(format!("{} succeeded, and {} is not stable: {why}", flush.what, write.what));
                }
            }
        }
        for write in promises.iter() {
            if matches!(write.kind, PromiseKind::Write { stable: true, .. })
                && let Some(why) = unstable(&done, write, write.acknowledged, unseen)
            {
                broken.push(format!("{} was to be stable and is not: {why}", write.what));
            }
            if let Some(stopped) = clean_stop
                && let Some(why) = unstable(&done, write, stopped, unseen)
            {
                broken.push(format!("exit status 0, and {} is not stable: {why}", write.what));
            }
        }
        broken
    }
}

/// Why a write is not known to be stable at a time.
fn unstable(done: &[Done], write: &Promise, at: u64, unseen: bool) -> Option<&'static str> {
    let PromiseKind::Write { range, stable } = &write.kind else { return None };
    let (mut last, mut all_stable, mut any) = (0, true, false);
    for done in done.iter().filter(|done| write.submitted < done.left && done.left < write.acknowledged) {
        let (other, other_stable, left) = match &done.effect {
            Effect::Wrote { range, stable } => (range, *stable, done.left),
            // When it ended is not seen. By its answer it had; a sync that is to be before the answer is after the submission at least.
            Effect::Submitted { range, stable } => {
                (range, *stable, if at == write.acknowledged { done.left } else { write.acknowledged })
            }
            Effect::Synced | Effect::SyncFailed => continue,
        };
        if other.start < range.end && range.start < other.end {
            any = true;
            all_stable &= other_stable;
            last = last.max(left);
        }
    }
    match (any, unseen) {
        (true, _) if all_stable => return None,
        (true, _) => {}
        (false, true) if *stable => return None,
        (false, true) => last = write.acknowledged,
        (false, false) => return Some("nothing wrote it"),
    }
    for done in done.iter().filter(|done| done.entered > last && done.left < at) {
        match done.effect {
            Effect::Synced => return None,
            Effect::SyncFailed => return Some("the fdatasync after it failed"),
            Effect::Wrote { .. } | Effect::Submitted { .. } => {}
        }
    }
    Some("no fdatasync was entered after its write and ended before the answer")
}
