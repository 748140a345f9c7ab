//! Busy-poll time before a sleep, adapted to how long the last sleeps were.

use std::time::{Duration, Instant};

/// How long the thread polls before it sleeps: waking up takes longer than answering, on both sides. About what a guest's driver
/// needs from one access to the next, and a quick disk for a request.
const BUSY_POLL_MAX: Duration = Duration::from_micros(400);
const BUSY_POLL_MIN: Duration = Duration::from_micros(25);
/// A `sched_yield` that takes longer than this shows that other threads need the processor. For `CPU_CONTENDED_FOR` the
/// thread then sleeps at once: a sleeper is scheduled sooner than a thread that yields.
const CPU_CONTENDED: Duration = Duration::from_millis(1);
const CPU_CONTENDED_FOR: Duration = Duration::from_millis(100);

/// What the thread has learnt of its sleeps and of the processor.
pub(super) struct IdleState {
    busy_poll: Duration,
    cpu_contended_until: Instant,
}

impl IdleState {
    pub(super) fn new() -> Self {
        Self { busy_poll: BUSY_POLL_MIN, cpu_contended_until: Instant::now() }
    }

    /// How long to poll from now on.
    pub(super) const fn busy_poll(&self) -> Duration {
        self.busy_poll
    }

    /// Whether others need the processor.
    pub(super) fn is_contended(&self, now: Instant) -> bool {
        now < self.cpu_contended_until
    }

    /// Yields the processor, perhaps to the client that the last message woke. Returns the time afterwards.
    pub(super) fn yield_from(&mut self, now: Instant) -> Instant {
        rustix::thread::sched_yield();
        let back = Instant::now();
        if back.duration_since(now) > CPU_CONTENDED {
            self.cpu_contended_until = back + CPU_CONTENDED_FOR;
        }
        back
    }

    /// Polls for longer if that had spared this sleep, and for less if the sleep was long.
    pub(super) fn adapt(&mut self, slept: Duration) {
        self.busy_poll =
            if slept < BUSY_POLL_MAX { BUSY_POLL_MAX } else { (self.busy_poll / 2).max(BUSY_POLL_MIN) };
    }
}
