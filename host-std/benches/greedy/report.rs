//! The table.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Table, presets};
use host_std::backend::BudgetReport;

use crate::Case;

/// What a register read and an answer of `ctl` have to stay below.
const LIMIT: Duration = Duration::from_millis(100);

/// How long something took.
struct Times {
    count: usize,
    median: Duration,
    p99: Duration,
    longest: Duration,
}

impl Times {
    fn of(mut all: Vec<Duration>) -> Self {
        all.sort();
        let at = |percent: usize| all.get(all.len() * percent / 100).copied().unwrap_or_default();
        Self {
            count: all.len(),
            median: at(50),
            p99: at(99),
            longest: all.last().copied().unwrap_or_default(),
        }
    }

    fn cells(&self) -> [String; 4] {
        let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
        [self.count.to_string(), ms(self.median), ms(self.p99), ms(self.longest)]
    }
}

/// The server's memory, in bytes.
pub(crate) struct Budget {
    /// Largest resident memory.
    pub(crate) resident_peak: u64,
    /// What it needs beside `private-memory`.
    pub(crate) base: u64,
    /// Whether the guest's memory is the client's alone, or the writes are recorded.
    pub(crate) is_private: bool,
    /// Whether the writes are recorded.
    pub(crate) is_recorded: bool,
    pub(crate) image: BudgetReport,
    /// A request that is larger than `private-memory` has as much as it needs, alone.
    pub(crate) request_bytes: u64,
}

impl Budget {
    fn bytes(&self) -> u64 {
        let private = self.image.private_memory.limit.max(self.request_bytes);
        self.base + if self.is_private { private } else { 0 }
    }

    fn is_kept(&self) -> bool {
        self.resident_peak <= self.bytes()
    }
}

/// A case as it was measured.
pub(crate) struct Measured {
    /// Bytes a second of the guest.
    per_second: f64,
    reads: Times,
    answers: Times,
    budget: Budget,
    /// A recording is written on the queue's thread, and may be held back by the kernel there: it is shown, and has no limit.
    recorded: bool,
}

impl Measured {
    pub(crate) fn new(per_second: f64, reads: Vec<Duration>, answers: Vec<Duration>, budget: Budget) -> Self {
        let recorded = budget.is_recorded;
        Self { per_second, reads: Times::of(reads), answers: Times::of(answers), budget, recorded }
    }

    pub(crate) fn longest(&self) -> Duration {
        self.reads.longest.max(self.answers.longest)
    }

    pub(crate) fn is_within_limits(&self) -> bool {
        (self.recorded || self.longest() < LIMIT) && self.budget.is_kept()
    }

    pub(crate) fn in_words(&self) -> String {
        format!(
            "register {:?} at most, ctl {:?}, {:.2} GB/s, {} MiB resident of {}",
            self.reads.longest,
            self.answers.longest,
            self.per_second / 1e9,
            self.budget.resident_peak >> 20,
            self.budget.bytes() >> 20,
        )
    }
}

/// All that was measured.
#[derive(Default)]
pub(crate) struct Report(Vec<(Case, Measured)>);

impl Report {
    pub(crate) fn add(&mut self, case: Case, measured: Measured) {
        self.0.push((case, measured));
    }

    pub(crate) fn print(&self) {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "guest",
            "GB/s",
            "reads",
            "median",
            "p99",
            "longest",
            "ctl",
            "median",
            "p99",
            "longest",
            "in flight",
            "private",
            "resident",
            "budget",
        ]);
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        for (case, measured) in &self.0 {
            let Budget { resident_peak, image, .. } = &measured.budget;
            let memory = [
                image.bytes_in_flight.peak,
                image.private_memory.peak,
                *resident_peak,
                measured.budget.bytes(),
            ];
            let cells = [format!("{:.2}", measured.per_second / 1e9)]
                .into_iter()
                .chain(measured.reads.cells())
                .chain(measured.answers.cells())
                .chain(memory.map(|bytes| (bytes >> 20).to_string()));
            table.add_row(std::iter::once(Cell::new(case.name())).chain(cells.map(right)));
        }
        println!("{table}");
        println!(
            "Times are in ms, memory in MiB: the most that was in flight, in private memory and resident."
        );
    }

    /// What missed a limit.
    pub(crate) fn broken(&self) -> Vec<String> {
        let broken = self.0.iter().filter(|(_, measured)| !measured.is_within_limits());
        broken.map(|(case, measured)| format!("{}: {}", case.name(), measured.in_words())).collect()
    }
}
