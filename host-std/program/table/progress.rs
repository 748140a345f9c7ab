//! Progress: a bar on a terminal, elsewhere a line now and then.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::output::complain;

/// When the first line comes, and how long after it the next one.
const FIRST_LINE: Duration = Duration::from_secs(2);
const NEXT_LINE: Duration = Duration::from_secs(10);

/// Steps that are done, and states explored, told on standard error.
pub(super) struct Progress {
    bar: ProgressBar,
    steps: usize,
    states: AtomicU64,
    started: Instant,
    /// When the next line is due; `None` where there is a bar, or nobody wants to know.
    next_line: Option<Mutex<Instant>>,
}

impl Progress {
    pub(super) fn new(quiet: bool, steps: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let started = Instant::now();
        let bar = if quiet || !terminal { ProgressBar::hidden() } else { bar(steps) };
        let next_line = (!quiet && !terminal).then(|| Mutex::new(started + FIRST_LINE));
        Self { bar, steps, states: AtomicU64::new(0), started, next_line }
    }

    /// One more step is done.
    pub(super) fn step(&self) {
        self.bar.inc(1);
        self.tell();
    }

    /// So many more states have been explored.
    pub(super) fn states(&self, more: u64) {
        let states = self.states.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        self.bar.set_message(format!("exploring: {} states", HumanCount(states)));
        self.tell();
    }

    fn tell(&self) {
        let Some(next) = &self.next_line else { return };
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now >= *next {
            *next = now + NEXT_LINE;
            let states = HumanCount(self.states.load(Ordering::Relaxed));
            let (done, seconds) = (self.bar.position(), now.duration_since(self.started).as_secs());
            complain(format_args!("{done} of {} steps, {states} states explored, {seconds} s", self.steps));
        }
    }

    /// All is done: the bar goes.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn bar(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos:>3}/{len} {elapsed:>4} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
