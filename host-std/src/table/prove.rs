//! The other half of a cell: the explorer's verdict.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ata_model::sim::{DriverConfig, IdeGuest, ResetBy, Transport};
use blk_core::sim::{self, DiskConfig, Progress, Report, SimGuest, SimHandle, SimMemory, explore};
use blk_core::storage::CacheMode;
use indicatif::ProgressBar;
use scsi_model::sim::{Driver as ScsiDriver, Variant as ScsiVariant};
use serde::Serialize;
use virtio_blk_model::sim::{Driver, Variant};

use super::{Cell, Era, Front};

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
}

/// One guest on one kind of host.
pub(crate) struct Job {
    cell: usize,
    variant: String,
    explore: Box<Explore>,
}

type Explore = dyn Fn(&mut dyn FnMut(Progress) -> ControlFlow<()>) -> Report + Send;

/// The explorations that make up a cell.
pub(crate) fn jobs(index: usize, cell: &Cell, bounds: Bounds) -> Vec<Job> {
    let mode = cell.mode;
    // Where completed writes are volatile, FUA is native on some hosts and a flush afterwards on others.
    let hosts: &[bool] = match mode {
        CacheMode::WriteBack | CacheMode::None => &[true, false],
        CacheMode::WriteThrough | CacheMode::DirectSync | CacheMode::Unsafe => &[false],
    };
    let mut jobs = Vec::new();
    for &native_fua in hosts {
        let host = if native_fua { ", native FUA" } else { "" };
        let disk = DiskConfig { native_fua, ..DiskConfig::new(mode) };
        let bounds = sim::Cell { disk, ..sim::Cell::new(mode, bounds.length) };
        for (guest, explore) in guests(cell.front, cell.era, bounds) {
            jobs.push(Job { cell: index, variant: format!("{guest}{host}"), explore });
        }
    }
    jobs
}

/// The kinds of guest that a front has, each with its exploration.
fn guests(front: Front, era: Era, bounds: sim::Cell) -> Vec<(&'static str, Box<Explore>)> {
    match (era, front) {
        (Era::Today, Front::IdePio) => vec![("SRST", ide(DriverConfig::new(Transport::Pio), bounds))],
        (Era::Today, Front::IdeDma) => {
            let driver = DriverConfig::new(Transport::Dma);
            let stopping = DriverConfig { reset: ResetBy::BusMasterStop, ..driver };
            vec![("SRST", ide(driver, bounds)), ("bus-master stop", ide(stopping, bounds))]
        }
        (Era::Today, Front::Scsi) => vec![
            ("sd", scsi(ScsiVariant::Sd, bounds)),
            ("firmware before the OS", scsi(ScsiVariant::FirmwareThenOld, bounds)),
        ],
        (Era::Today, Front::VirtioBlk) => vec![
            ("BARRIER", virtio::<1>(Variant::Barrier, bounds)),
            ("FLUSH", virtio::<1>(Variant::Modern, bounds)),
            ("two queues", virtio::<2>(Variant::Modern, bounds)),
            ("no FLUSH", virtio::<1>(Variant::NoFlush, bounds)),
            ("experimental FUA", virtio::<1>(Variant::Fua, bounds)),
        ],
        (Era::Of2009, Front::IdePio) => {
            vec![("no write-cache bit", ide(DriverConfig::of_2009(Transport::Pio), bounds))]
        }
        (Era::Of2009, Front::IdeDma) => {
            vec![("no write-cache bit", ide(DriverConfig::of_2009(Transport::Dma), bounds))]
        }
        // SCSI was safe then as it is now.
        (Era::Of2009, Front::Scsi) => Vec::new(),
        (Era::Of2009, Front::VirtioBlk) => {
            let ordering = sim::Cell { needs_barriers: true, ..bounds };
            vec![
                ("no flush", virtio::<1>(Variant::Of2009, bounds)),
                ("no barrier, no drain", virtio::<1>(Variant::Of2009, ordering)),
            ]
        }
    }
}

fn ide(driver: DriverConfig, bounds: sim::Cell) -> Box<Explore> {
    boxed(bounds, move |memory, storage| IdeGuest::boot(driver, memory, storage))
}

fn scsi(variant: ScsiVariant, bounds: sim::Cell) -> Box<Explore> {
    boxed(bounds, move |memory, storage| ScsiDriver::boot(variant, memory, storage))
}

fn virtio<const Q: usize>(variant: Variant, mut bounds: sim::Cell) -> Box<Explore> {
    bounds.disk.handles = Q;
    boxed(bounds, move |memory, storage| Driver::<Q>::boot(variant, memory, storage))
}

fn boxed<G: SimGuest + 'static>(
    bounds: sim::Cell,
    boot: impl Fn(&SimMemory, &mut [SimHandle]) -> G + Send + 'static,
) -> Box<Explore> {
    Box::new(move |watch| explore(&boot, &bounds, watch))
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
                    let report = (job.explore)(&mut |progress| {
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
                    lock(&proofs).entry(job.cell).or_default().add(job.variant, report);
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
