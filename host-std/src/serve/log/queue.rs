//! Lines that wait for standard error.

use std::collections::VecDeque;
use std::io::stderr;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::descriptor::{Broken, write_within};
use crate::mutex::lock;

/// Bytes that may wait. More are lost.
const QUEUE_BYTES_MAX: usize = 256 * 1024;
/// How often lost lines are spoken of while more are lost, and how often the rate limit speaks.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The one queue of the process: standard error is its own.
pub(super) static QUEUE: LazyLock<Queue> = LazyLock::new(Queue::default);

/// The queue. Any thread puts lines in; one takes them out.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// A line has come.
    filled: Condvar,
    /// Every line has been written, or lost.
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// The thread has a line in hand.
    writing: bool,
    /// There is a thread that writes.
    has_thread: bool,
    /// Lines lost so far.
    lost: u64,
    /// Of those, the ones that a line has told of.
    told: u64,
    /// The line before was broken off in the middle.
    broken_off: bool,
    /// Standard error took the line before.
    works: bool,
    /// `tell` has something to say.
    tell_later: bool,
}

impl Queue {
    /// Puts a line in. Never waits.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if !state.has_thread {
            let written = write_line(line, state.broken_off, Some(Duration::ZERO));
            return state.note(&written);
        }
        if state.bytes.saturating_add(line.len()) > QUEUE_BYTES_MAX {
            state.lost = state.lost.saturating_add(1);
            return;
        }
        state.bytes = state.bytes.saturating_add(line.len());
        state.lines.push_back(line.into());
        drop(state);
        self.filled.notify_one();
    }

    /// There is something to tell, within a second.
    pub(super) fn tell_later(&self) {
        let mut state = self.lock();
        if !state.tell_later {
            state.tell_later = true;
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Writes lines as they come. Calls `tell` a second after [`Queue::tell_later`].
    pub(super) fn write_for_ever(&self, tell: impl Fn()) -> ! {
        self.lock().has_thread = true;
        let mut told = Instant::now();
        loop {
            if let Some(line) = self.take() {
                let broken_off = self.lock().broken_off;
                let written = write_line(&line, broken_off, None);
                self.lock().note(&written);
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                if std::mem::take(&mut self.lock().tell_later) {
                    tell();
                }
                self.tell_of_lost_lines();
            }
        }
    }

    /// Waits until all is written, for `timeout` at most.
    pub(super) fn flush(&self, timeout: Duration) {
        let state = self.lock();
        let waits = |state: &mut State| state.has_thread && (state.writing || !state.lines.is_empty());
        drop(self.emptied.wait_timeout_while(state, timeout, waits));
    }

    pub(super) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// The next line; `None` when none has come for a while.
    fn take(&self) -> Option<Box<[u8]>> {
        let mut state = self.lock();
        state.writing = false;
        if state.lines.is_empty() {
            self.emptied.notify_all();
            state = if state.tell_later || state.must_tell() {
                match self.filled.wait_timeout_while(state, TELL_EVERY, |state| state.lines.is_empty()) {
                    Ok((state, _)) => state,
                    Err(poisoned) => poisoned.into_inner().0,
                }
            } else {
                let idle = |state: &mut State| state.lines.is_empty() && !state.tell_later;
                self.filled.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner)
            };
        }
        let line = state.lines.pop_front()?;
        state.bytes = state.bytes.saturating_sub(line.len());
        state.writing = true;
        Some(line)
    }

    /// Says how many lines were lost, once standard error takes lines again.
    fn tell_of_lost_lines(&self) {
        let mut state = self.lock();
        if !state.must_tell() {
            return;
        }
        let lines = state.lost.saturating_sub(state.told);
        state.told = state.lost;
        drop(state);
        tracing::warn!(lines, "lines of the log are lost: standard error did not take them");
    }

    /// A thread that panics holds no lock of this queue.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Whether lines were lost of which nobody has been told, who could be told now.
    const fn must_tell(&self) -> bool {
        self.works && self.lost != self.told && self.bytes <= QUEUE_BYTES_MAX / 2
    }

    /// A line was written, or not.
    fn note(&mut self, written: &Result<(), Broken>) {
        self.works = written.is_ok();
        if let Err(broken) = written {
            self.lost = self.lost.saturating_add(1);
            self.broken_off |= broken.written != 0;
        } else {
            self.broken_off = false;
        }
    }
}

/// Writes a line, on a line of its own.
fn write_line(line: &[u8], broken_off: bool, timeout: Option<Duration>) -> Result<(), Broken> {
    if broken_off {
        write_within(stderr(), b"\n", timeout)?;
    }
    write_within(stderr(), line, timeout)
}
