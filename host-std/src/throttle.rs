//! A limit on the operations and bytes of an image per second.
//!
//! [`Throttled`] is a [`Backend`] over a backend. Its handles take every request at once, and give it to the handle below when
//! it is due: for the device above a request that waits is in flight like any other.
//!
//! ```text
//! submit -> tokens are there   -> the handle below
//!           they will be       -> held; a timer in `wake_fd` wakes the queue's thread   -> the handle below, at that poll
//!           drain(true)        -> what is held goes at once: a reset, a stop, a client that is gone wait for no limit
//! ```
//!
//! - An image has a bucket of operations and one of bytes, which all its handles share. Whoever comes first, on any handle, goes
//!   first. A request larger than a bucket begins when that is full, and leaves a debt.
//! - A flush is one operation and no bytes, and never waits for a debt of bytes. So is a discard. A write-zeroes counts the bytes
//!   that it sets, as QEMU's `throttling.bps-total` does. A guest that was told of no cache pays for the flush behind its write.
//! - A hold, which moves nothing, costs nothing and never waits here. What is done under it pays as ever, and whoever that hold keeps
//!   off waits with it: for the same limit, since it is the same image. A record is one operation and no bytes.
//! - A flush still covers what it has to: it reaches the image later than it was submitted, never earlier.
//! - Requests that a drain lets go have been counted: those that come next wait for them.
//!
//! Not here: limits for reads or writes alone. A request is not refused (`Busy`) instead of held: a device may ask
//! again at once and without end, and no completion would wake one that does not.
//!
//! The crates for this (governor, ratelimit, gcr) refuse what is larger than a bucket, and give no place in a line.

mod schedule;

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Completion, Info, Storage, Submission};
use blk_core::units::Tag;

use crate::backend::{Backend, Counts, Handle, LatchCause, OpenError};
use crate::memory::MappedMemory;
use crate::mutex::lock;
use crate::timed_wake::TimedWake;
use schedule::{Cost, Ns, Schedule};

pub use schedule::{Limits, Rate};

/// The longest sleep of a queue that holds something: a limit that was changed is heeded after that.
const SLEEP_MAX: Duration = Duration::from_millis(200);

/// An image whose rate is limited.
pub struct Throttled {
    inner: Arc<dyn Backend>,
    limiter: Arc<Limiter>,
}

impl Throttled {
    /// Limits what goes to `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, limits: Limits) -> Self {
        Self { inner, limiter: Arc::new(Limiter::new(limits)) }
    }

    /// The limits, to be changed, and what they have done.
    #[must_use]
    pub fn limiter(&self) -> &Arc<Limiter> {
        &self.limiter
    }
}

impl Backend for Throttled {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        let inner = self.inner.handle()?;
        let wake = TimedWake::new(inner.wake_fd()).map_err(|errno| OpenError::System {
            path: "iops or bps".into(),
            what: "make a handle",
            errno,
            remedy: "; raise the limit on open files",
        })?;
        let limiter = Arc::clone(&self.limiter);
        let epoch = limiter.epoch.load(Ordering::Acquire);
        Ok(Box::new(ThrottledHandle {
            inner,
            limiter,
            epoch,
            held: VecDeque::new(),
            ended: VecDeque::new(),
            spare: Vec::new(),
            refused: false,
            draining: false,
            timed: false,
            wake,
        }))
    }

    fn info(&self) -> Info {
        self.inner.info()
    }

    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        self.inner.resize(bytes)
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

/// Delays by the limits of an image so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// Requests that wait now.
    pub held: u64,
    /// Requests that waited, and wait no more.
    pub delayed: u64,
    /// How long those waited, in ns.
    pub delayed_ns: u64,
}

/// The limits of an image, shared by its handles.
#[derive(Debug)]
pub struct Limiter {
    /// Where its clock begins.
    origin: Instant,
    state: Mutex<State>,
    /// There is a limit; else no request takes the lock.
    limited: AtomicBool,
    /// Counts the changes of the limits.
    epoch: AtomicU32,
    held: AtomicU64,
    delayed: AtomicU64,
    delayed_ns: AtomicU64,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    schedule: Schedule,
}

impl Limiter {
    fn new(limits: Limits) -> Self {
        Self {
            origin: Instant::now(),
            state: Mutex::new(State { limits, schedule: Schedule::full(&limits, 0) }),
            limited: AtomicBool::new(limits != Limits::default()),
            epoch: AtomicU32::new(0),
            held: AtomicU64::new(0),
            delayed: AtomicU64::new(0),
            delayed_ns: AtomicU64::new(0),
        }
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.state().limits
    }

    /// Changes the limits. Debts are forgotten, the buckets are empty; what is held takes its place in line anew, within 200 ms.
    pub fn set_limits(&self, limits: Limits) {
        let mut state = self.state();
        *state = State { limits, schedule: Schedule::empty(&limits, self.now()) };
        self.limited.store(limits != Limits::default(), Ordering::Release);
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// What the limits have done.
    #[must_use]
    pub fn delays(&self) -> Delays {
        let [held, delayed, delayed_ns] =
            [&self.held, &self.delayed, &self.delayed_ns].map(|counter| counter.load(Ordering::Relaxed));
        Delays { held, delayed, delayed_ns }
    }

    fn now(&self) -> Ns {
        Ns::try_from(self.origin.elapsed().as_nanos()).unwrap_or(Ns::MAX)
    }

    fn reserve(&self, now: Ns, op: Op) -> Ns {
        if !self.limited.load(Ordering::Acquire) {
            return now;
        }
        self.state().schedule.reserve(now, Cost::of(op))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

struct ThrottledHandle {
    inner: Box<dyn Handle>,
    limiter: Arc<Limiter>,
    /// The limiter's epoch in which what is held was given its time.
    epoch: u32,
    /// Taken, and not yet given to the handle below; what is due first comes first. As many at most as the device has in flight.
    held: VecDeque<Held>,
    /// What was held, and done at once below when its time came.
    ended: VecDeque<Completion>,
    /// Lists of segments, to be used again.
    spare: Vec<Vec<Segment>>,
    /// The handle below was busy: it has something in flight, whose completion wakes the poller.
    refused: bool,
    /// See [`Handle::drain`].
    draining: bool,
    /// The timer is set.
    timed: bool,
    wake: TimedWake,
}

struct Held {
    since: Ns,
    due: Ns,
    tag: Tag,
    op: Op,
    /// Guest addresses and staging offsets, looked up when the operation begins.
    segments: Vec<Segment>,
}

impl ThrottledHandle {
    /// Holds an operation, behind those that are due no later.
    #[cold]
    fn hold(&mut self, (since, due): (Ns, Ns), tag: Tag, op: Op, segments: &[Segment]) {
        let mut list = self.spare.pop().unwrap_or_default();
        list.extend_from_slice(segments);
        let behind = self.held.iter().rposition(|held| held.due <= due).map_or(0, |at| at + 1);
        self.held.insert(behind, Held { since, due, tag, op, segments: list });
        self.limiter.held.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the handle below what is due, or all of it while the device drains.
    #[cold]
    fn let_go(&mut self, memory: &MappedMemory) {
        let now = self.limiter.now();
        let epoch = self.limiter.epoch.load(Ordering::Acquire);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.held.iter_mut().for_each(|held| held.due = self.limiter.reserve(now, held.op));
            self.held.make_contiguous().sort_by_key(|held| held.due);
        }
        self.refused = false;
        while let Some(first) = self.held.front().filter(|held| self.draining || held.due <= now) {
            let Ok(submission) = self.inner.submit(memory, first.tag, first.op, &first.segments) else {
                self.refused = true;
                return;
            };
            let tag = first.tag;
            self.ended.extend(submission.done().map(|result| Completion { tag, result }));
            let Some(mut first) = self.held.pop_front() else { return };
            first.segments.clear();
            self.spare.push(first.segments);
            self.limiter.held.fetch_sub(1, Ordering::Relaxed);
            self.limiter.delayed.fetch_add(1, Ordering::Relaxed);
            self.limiter.delayed_ns.fetch_add(now.saturating_sub(first.since), Ordering::Relaxed);
        }
    }

    /// Whether a poll would give something to the handle below.
    fn is_due(&self, now: Ns) -> bool {
        let due = |held: &Held| self.draining || held.due <= now;
        !self.refused && self.held.front().is_some_and(due)
    }
}

impl Storage<MappedMemory> for ThrottledHandle {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    #[inline]
    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let limited = self.limiter.limited.load(Ordering::Acquire);
        if (!limited && self.held.is_empty()) || matches!(op, Op::Hold { .. }) {
            return self.inner.submit(memory, tag, op, segments);
        }
        let now = self.limiter.now();
        let due = self.limiter.reserve(now, op);
        // Once it has its tokens it is taken, also if the handle below is busy: what is refused comes again, and would pay twice.
        let begins = !self.refused && (self.draining || due <= now);
        if begins && let Ok(submission) = self.inner.submit(memory, tag, op, segments) {
            return Ok(submission);
        }
        self.refused |= begins;
        self.hold((now, due), tag, op, segments);
        Ok(Submission::Pending)
    }

    #[inline]
    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        if !self.held.is_empty() {
            self.let_go(memory);
        }
        self.ended.pop_front().or_else(|| self.inner.poll(memory))
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        let staged = |segment: &Segment| matches!(segment, Segment::Staging { .. });
        let used = |held: &Held| held.tag.slot == slot && held.segments.iter().any(staged);
        if self.held.iter().any(used) {
            return &mut [];
        }
        self.inner.staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.inner.release_hold(slot);
    }

    fn cancel_in_flight(&mut self) -> bool {
        let cancelled = self.inner.cancel_in_flight();
        if cancelled {
            self.limiter.held.fetch_sub(self.held.len() as u64, Ordering::Relaxed);
            self.held.clear();
            self.ended.clear();
            self.refused = false;
        }
        cancelled
    }
}

impl Handle for ThrottledHandle {
    fn arm(&mut self) -> bool {
        let now = self.limiter.now();
        if !self.ended.is_empty() || self.is_due(now) || !self.inner.arm() {
            return false;
        }
        let first = self.held.front().filter(|_| !self.refused);
        let after = first.map(|held| Duration::from_nanos(held.due.saturating_sub(now)).min(SLEEP_MAX));
        if after.is_some() || self.timed {
            self.timed = after.is_some();
            self.wake.set(after);
        }
        true
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn begin_turn(&mut self) {
        self.inner.begin_turn();
    }

    fn drain(&mut self, on: bool) {
        self.draining = on;
        self.inner.drain(on);
    }
}

impl Drop for ThrottledHandle {
    /// What is held was never begun: nobody was told of it.
    fn drop(&mut self) {
        self.limiter.held.fetch_sub(self.held.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
