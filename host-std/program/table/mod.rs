//! The integrity table: for each front end and cache mode a real run and a proof.

mod drive;
mod prove;
pub(crate) mod render;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blk_core::storage::CacheMode;
use host_std::proof::{Era, Front};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Serialize, Serializer};

use crate::cli::Args;
use drive::{Place, Run};
use prove::{Bounds, Proof};

/// What a proof must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Expected {
    /// Every promise holds.
    Safe,
    /// Declared: the mode is called unsafe, and a counterexample shows that the name is true.
    DeclaredUnsafe,
    /// A configuration of 2009 that loses data, kept so that the proof is seen to fail.
    Unsafe2009,
}

/// A cell of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Cell {
    #[serde(serialize_with = "front_name")]
    pub(crate) front: Front,
    #[serde(serialize_with = "mode_name")]
    pub(crate) mode: CacheMode,
    #[serde(skip)]
    pub(crate) era: Era,
    pub(crate) expected: Expected,
    pub(crate) run: Option<Run>,
    pub(crate) proof: Option<Proof>,
}

impl Cell {
    const fn new(front: Front, mode: CacheMode, era: Era) -> Self {
        let expected = match (era, front, mode) {
            (_, _, CacheMode::Unsafe) => Expected::DeclaredUnsafe,
            // Without a flush only the mode that needs none was safe, and that only where the guest had one request at a time.
            (Era::Of2009, Front::IdePio | Front::PciIde, CacheMode::WriteThrough) | (Era::Today, _, _) => {
                Expected::Safe
            }
            (Era::Of2009, _, _) => Expected::Unsafe2009,
        };
        Self { front, mode, era, expected, run: None, proof: None }
    }

    /// Whether the proof, if there is one, came out as it must.
    pub(crate) fn as_it_must_be(&self) -> bool {
        self.proof.as_ref().is_none_or(|proof| proof.safe == (self.expected == Expected::Safe))
    }
}

fn front_name<S: Serializer>(front: &Front, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(front.name())
}

fn mode_name<S: Serializer>(mode: &CacheMode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.name())
}

/// Everything that was run and proven.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) cells: Vec<Cell>,
    /// The front ends of 2009.
    pub(crate) history: Vec<Cell>,
    /// Longest program explored.
    pub(crate) length: u8,
    pub(crate) seconds: f64,
    pub(crate) as_it_must_be: bool,
}

/// The modes that there were in 2009.
const MODES_OF_2009: [CacheMode; 3] = [CacheMode::WriteThrough, CacheMode::WriteBack, CacheMode::None];

/// Runs and proves what `args` asks for; ends early, with what there is, once `stop` is set.
pub(crate) fn run(args: &Args, stop: &AtomicBool) -> anyhow::Result<Table> {
    let started = Instant::now();
    let mut cells = cells(args);
    let bounds = Bounds::new(if args.exhaustive { 4 } else { args.length });
    // A lost barrier takes two steps to show.
    let whole = args.front.is_empty() && args.mode.is_empty() && bounds.length >= 2;
    let mut history = if whole { history() } else { Vec::new() };
    let place = if args.prove_only { None } else { Some(Place::new(args.image.as_deref())?) };
    if args.run_only {
        history.clear();
    }
    let all = cells.iter().chain(&history).enumerate();
    let jobs: Vec<_> = if args.run_only {
        Vec::new()
    } else {
        all.flat_map(|(index, cell)| prove::jobs(index, cell.front, cell.mode, cell.era, bounds)).collect()
    };
    let runs = if args.prove_only { 0 } else { cells.len() };
    let bar = progress_bar(args.quiet, jobs.len() + runs);
    // The runs wait for the disk, the proofs for the processor.
    let mut proofs = std::thread::scope(|scope| {
        let proofs = scope.spawn(|| prove::run(jobs, &bar, stop));
        if let Some(place) = &place
            && let Err(error) = run_cells(&mut cells, place, &bar, stop)
        {
            stop.store(true, Ordering::Relaxed);
            return Err(error);
        }
        proofs.join().map_err(|_| anyhow::anyhow!("the explorer panicked"))
    })?;
    for (index, cell) in cells.iter_mut().chain(&mut history).enumerate() {
        cell.proof = proofs.remove(&index);
    }
    bar.finish_and_clear();
    // A cell that nobody proved has not been shown to be anything.
    let proven = |cell: &Cell| args.run_only || cell.proof.as_ref().is_some_and(|proof| proof.programs > 0);
    let as_it_must_be = cells.iter().chain(&history).all(|cell| proven(cell) && cell.as_it_must_be());
    let seconds = started.elapsed().as_secs_f64();
    Ok(Table { cells, history, length: bounds.length, seconds, as_it_must_be })
}

fn run_cells(cells: &mut [Cell], place: &Place, bar: &ProgressBar, stop: &AtomicBool) -> anyhow::Result<()> {
    for cell in cells {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        cell.run = Some(drive::run(cell.front, cell.mode, place)?);
        bar.inc(1);
    }
    Ok(())
}

fn cells(args: &Args) -> Vec<Cell> {
    let wanted = |front: &Front| args.front.is_empty() || args.front.iter().any(|given| given.0 == *front);
    let mode_wanted =
        |mode: &CacheMode| args.mode.is_empty() || args.mode.iter().any(|given| given.0 == *mode);
    let fronts = Front::ALL.into_iter().filter(wanted);
    let modes = || CacheMode::ALL.into_iter().filter(mode_wanted);
    fronts.flat_map(|front| modes().map(move |mode| Cell::new(front, mode, Era::Today))).collect()
}

/// IDE without a write-cache bit and virtio without FLUSH and BARRIER: six cells, of which five failed.
fn history() -> Vec<Cell> {
    let fronts = [Front::PciIde, Front::VirtioBlk].into_iter();
    fronts.flat_map(|front| MODES_OF_2009.map(|mode| Cell::new(front, mode, Era::Of2009))).collect()
}

fn progress_bar(quiet: bool, steps: usize) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos:>3}/{len} {elapsed:>4} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
