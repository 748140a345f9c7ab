//! The other half of a cell: the explorer's verdict.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blk_core::sim::{self, DiskConfig, Report};
use blk_core::storage::CacheMode;
use host_std::proof::{Era, Front, GuestKind, guests};
use indicatif::ProgressBar;
use serde::Serialize;

/// What the explorer found of one cell, all of its variants together.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Proof {
    /// Every promise held in every state of every variant.
    pub(crate) safe: bool,
    /// Distinct states explored.
    pub(crate) states: u64,
    /// Transitions between them.
    pub(crate) transitions: u64,
    /// Distinct programs.
    pub(crate) programs: u64,
    /// Seconds of one core.
    pub(crate) seconds: f64,
    /// The kinds of guest and host that were explored.
    pub(crate) variants: Vec<String>,
    /// Of each variant that breaks a promise: a minimal history, in words.
    pub(crate) counterexamples: BTreeMap<String, Vec<String>>,
}

/// How much to explore.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Longest program.
    pub(crate) length: u8,
    /// Completions that the front may see late.
    pub(crate) late_polls: u8,
}

impl Bounds {
    /// Up to three steps a late poll is explored too; beyond, it would double what takes long already.
    pub(crate) const fn new(length: u8) -> Self {
        Self { length, late_polls: if length <= 3 { 1 } else { 0 } }
    }
}

/// One guest on one kind of host.
pub(crate) struct Job {
    cell: usize,
    guest: GuestKind,
    bounds: sim::Cell,
}

impl Job {
    fn variant(&self) -> String {
        let host = if self.bounds.disk.native_fua { ", native FUA" } else { "" };
        format!("{}{host}", self.guest.name)
    }
}

/// The explorations that make up a cell.
pub(crate) fn jobs(index: usize, front: Front, mode: CacheMode, era: Era, bounds: Bounds) -> Vec<Job> {
    // Where completed writes are volatile, FUA is native on some hosts and a flush afterwards on others.
    let hosts: &[bool] = match mode {
        CacheMode::WriteBack | CacheMode::None => &[true, false],
        CacheMode::WriteThrough | CacheMode::DirectSync | CacheMode::Unsafe => &[false],
    };
    let mut jobs = Vec::new();
    for &native_fua in hosts {
        let disk = DiskConfig { native_fua, ..DiskConfig::new(mode) };
        let bounds = sim::Cell { disk, late_polls: bounds.late_polls, ..sim::Cell::new(mode, bounds.length) };
        jobs.extend(guests(front, era).into_iter().map(|guest| Job { cell: index, guest, bounds }));
    }
    jobs
}

/// Runs all jobs, as many at a time as there are cores, and returns each cell's proof. A cell that was not finished when
/// `stop` was set has none.
pub(crate) fn run(jobs: Vec<Job>, bar: &ProgressBar, stop: &AtomicBool) -> BTreeMap<usize, Proof> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len().max(1));
    // Later cells have the richer fronts: the longest explorations first, so that the threads end together.
    let queue = Mutex::new(jobs);
    let proofs = Mutex::new(BTreeMap::<usize, Proof>::new());
    let unfinished = Mutex::new(Vec::new());
    let states = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = take(&queue) {
                    let mut counted = 0;
                    let report = job.guest.explore(job.bounds, &mut |progress| {
                        let all =
                            states.fetch_add(progress.states.saturating_sub(counted), Ordering::Relaxed);
                        counted = progress.states;
                        bar.set_message(format!("exploring: {} states", all));
                        if stop.load(Ordering::Relaxed) {
                            ControlFlow::Break(())
                        } else {
                            ControlFlow::Continue(())
                        }
                    });
                    bar.inc(1);
                    if matches!(report.verdict, sim::Verdict::Stopped) {
                        lock(&unfinished).push(job.cell);
                        continue;
                    }
                    lock(&proofs).entry(job.cell).or_default().add(job.variant(), report);
                }
            });
        }
    });
    let mut proofs = proofs.into_inner().unwrap_or_else(PoisonError::into_inner);
    for cell in lock(&unfinished).iter() {
        proofs.remove(cell);
    }
    proofs
}

fn take(queue: &Mutex<Vec<Job>>) -> Option<Job> {
    lock(queue).pop()
}

/// A thread that panicked takes the program down when the scope ends; what it left is not looked at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proof {
    fn add(&mut self, variant: String, report: Report) {
        self.safe = report.is_safe() && (self.variants.is_empty() || self.safe);
        self.states += report.explored.states;
        self.transitions += report.explored.transitions;
        self.programs += report.explored.programs;
        self.seconds += report.elapsed.as_secs_f64();
        if let Some(counterexample) = report.counterexample() {
            self.counterexamples.insert(variant.clone(), counterexample.events.clone());
        }
        self.variants.push(variant);
        self.variants.sort();
    }
}
