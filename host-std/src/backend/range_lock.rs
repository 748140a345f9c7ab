//! Keeps the changes of blocks apart.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use crate::mutex::lock;

/// Ranges of the file that workers change, each one for itself: while a block is read, changed and written back, no write
/// to it, not even to another part of it, may come in between, or it would be undone.
pub(super) struct RangeLock {
    held: Mutex<Held>,
    released: Condvar,
}

struct Held {
    /// One place for each worker, which holds one range at a time: so nobody waits in a circle.
    ranges: Box<[Range<u64>]>,
    waiting: usize,
}

/// A range that is held.
pub(super) struct HeldRange<'a> {
    lock: &'a RangeLock,
    worker: usize,
}

impl RangeLock {
    pub(super) fn new(workers: usize) -> Self {
        let held = Held { ranges: vec![0..0; workers].into(), waiting: 0 };
        Self { held: Mutex::new(held), released: Condvar::new() }
    }

    /// Waits until no other worker holds a part of `range`, and holds it.
    pub(super) fn hold(&self, worker: usize, range: Range<u64>) -> HeldRange<'_> {
        let mut held = lock(&self.held);
        while held.ranges.iter().any(|other| other.start < range.end && range.start < other.end) {
            held.waiting += 1;
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        held.ranges[worker] = range;
        HeldRange { lock: self, worker }
    }
}

impl Drop for HeldRange<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.lock.held);
        held.ranges[self.worker] = 0..0;
        let wake = held.waiting != 0;
        drop(held);
        if wake {
            self.lock.released.notify_all();
        }
    }
}
