//! Jobs on their way to a thread: a queue that does not allocate once its handles exist.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::job::Job;
use crate::mutex::lock;

/// First in, first out, from any thread to any of the threads that serve it.
pub(super) struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    jobs: VecDeque<Box<Job>>,
    /// Threads that sleep: nobody is woken, and no system call made, if there are none.
    sleeping: usize,
    stopped: bool,
}

impl Queue {
    pub(super) const fn new() -> Self {
        let state = State { jobs: VecDeque::new(), sleeping: 0, stopped: false };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }

    /// Makes room for `jobs` more, so that `push` never allocates.
    pub(super) fn make_room(&self, room: usize) {
        let mut state = lock(&self.state);
        let queued = state.jobs.len();
        let wanted = state.jobs.capacity().saturating_add(room);
        state.jobs.reserve_exact(wanted.saturating_sub(queued));
    }

    pub(super) fn push(&self, job: Box<Job>) {
        let mut state = lock(&self.state);
        state.jobs.push_back(job);
        let wake = state.sleeping != 0;
        drop(state);
        if wake {
            self.wake.notify_one();
        }
    }

    /// The oldest job; waits for one. `None` once the queue has been stopped and is empty.
    pub(super) fn pop_wait(&self) -> Option<Box<Job>> {
        self.wait()?.jobs.pop_front()
    }

    /// How many jobs there are; waits for one. `None` once the queue has been stopped and is empty.
    pub(super) fn len_wait(&self) -> Option<usize> {
        Some(self.wait()?.jobs.len())
    }

    /// The oldest job, if there is one.
    pub(super) fn pop(&self) -> Option<Box<Job>> {
        lock(&self.state).jobs.pop_front()
    }

    /// No more jobs come: what is queued is still served.
    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.wake.notify_all();
    }

    fn wait(&self) -> Option<MutexGuard<'_, State>> {
        let mut state = lock(&self.state);
        while state.jobs.is_empty() {
            if state.stopped {
                return None;
            }
            state.sleeping += 1;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleeping -= 1;
        }
        Some(state)
    }
}
