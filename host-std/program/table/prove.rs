//! The other half of a cell: the explorer's verdict.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use blk_core::sim::{self, DiskConfig, History, Report};
use blk_core::storage::CacheMode;
use host_std::proof::{Era, Front, GuestKind, guests};
use serde::{Deserialize, Serialize};

use super::progress::Progress;

/// What the explorer found of one cell, all of its variants together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
    /// The same histories, event by event.
    pub(crate) histories: BTreeMap<String, History>,
    /// One of the histories that were explored, of a program that writes, flushes and writes.
    pub(crate) example: Option<Example>,
}

/// A history that was explored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Example {
    /// The kind of guest and host.
    pub(crate) variant: String,
    /// What happened.
    pub(crate) history: History,
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
    /// It gives the cell's example.
    is_first: bool,
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
        for guest in guests(front, era) {
            jobs.push(Job { cell: index, guest, bounds, is_first: jobs.is_empty() });
        }
    }
    jobs
}

/// Explorations under way, on as many threads as there are cores.
pub(crate) struct Explorers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Later cells have the richer fronts: the longest explorations first, so that the threads end together.
    queue: Mutex<Vec<Job>>,
    proofs: Mutex<BTreeMap<usize, Proof>>,
    /// Jobs of each cell that are not done.
    left: Mutex<BTreeMap<usize, usize>>,
    threads: Mutex<usize>,
    ended: Condvar,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

impl Explorers {
    pub(crate) fn start(
        jobs: Vec<Job>,
        progress: &Arc<Progress>,
        stop: &Arc<AtomicBool>,
    ) -> std::io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
        let mut left = BTreeMap::new();
        for job in &jobs {
            *left.entry(job.cell).or_default() += 1;
        }
        let shared = Arc::new(Shared {
            queue: Mutex::new(jobs),
            proofs: Mutex::default(),
            left: Mutex::new(left),
            threads: Mutex::new(count),
            ended: Condvar::new(),
            progress: Arc::clone(progress),
            stop: Arc::clone(stop),
        });
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("explorer".into()).spawn(move || shared.explore())
        };
        let threads = (0..count).map(spawn).collect::<Result<_, _>>()?;
        Ok(Self { shared, threads })
    }

    /// Waits for the end, or until it is to stop, and returns the proofs of the cells that are done. A thread that is stopped is
    /// not waited for: to give back the memory of what it explored takes seconds.
    pub(crate) fn wait(self) -> anyhow::Result<BTreeMap<usize, Proof>> {
        let Self { shared, threads } = self;
        let mut running = lock(&shared.threads);
        while *running != 0 && !shared.stop.load(Ordering::Relaxed) {
            let waited = shared.ended.wait_timeout(running, LOOK_EVERY);
            running = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let ended = *running == 0;
        drop(running);
        if ended {
            for thread in threads {
                thread.join().map_err(|_| anyhow::anyhow!("the explorer panicked"))?;
            }
        }
        let mut proofs = std::mem::take(&mut *lock(&shared.proofs));
        let left = lock(&shared.left);
        proofs.retain(|cell, _| left.get(cell).is_none_or(|jobs| *jobs == 0));
        Ok(proofs)
    }
}

/// How often it is seen that the explorers are to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Shared {
    fn explore(&self) {
        // Also if it panics.
        let _counted = Counted(self);
        while let Some(job) = self.next() {
            let mut counted = 0;
            let report = job.guest.explore(job.bounds, &mut |explored| {
                self.progress.states(explored.states.saturating_sub(counted));
                counted = explored.states;
                if self.stop.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            if matches!(report.verdict, sim::Verdict::Stopped) {
                return;
            }
            self.progress.step();
            let example = job.is_first.then(|| job.guest.example(job.bounds));
            lock(&self.proofs).entry(job.cell).or_default().add(job.variant(), report, example);
            if let Some(left) = lock(&self.left).get_mut(&job.cell) {
                *left -= 1;
            }
        }
    }

    fn next(&self) -> Option<Job> {
        lock(&self.queue).pop().filter(|_| !self.stop.load(Ordering::Relaxed))
    }
}

struct Counted<'a>(&'a Shared);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *lock(&self.0.threads) -= 1;
        self.0.ended.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proof {
    fn add(&mut self, variant: String, report: Report, example: Option<History>) {
        self.safe = report.is_safe() && (self.variants.is_empty() || self.safe);
        self.states += report.explored.states;
        self.transitions += report.explored.transitions;
        self.programs += report.explored.programs;
        self.seconds += report.elapsed.as_secs_f64();
        if let Some(counterexample) = report.counterexample() {
            self.counterexamples.insert(variant.clone(), counterexample.history.sentences());
            self.histories.insert(variant.clone(), counterexample.history.clone());
        }
        if let Some(history) = example {
            self.example = Some(Example { variant: variant.clone(), history });
        }
        self.variants.push(variant);
        self.variants.sort();
    }
}
