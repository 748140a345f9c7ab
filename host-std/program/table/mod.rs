//! The integrity table: for each front end and cache mode a real run and a proof.

mod drive;
mod place;
mod progress;
mod prove;
pub(crate) mod render;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use blk_core::storage::CacheMode;
use host_std::proof::{Era, Front};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cli::TableArgs;
use drive::Run;
use place::Place;
use progress::Progress;
use prove::{Bounds, Explorers};

pub(crate) use prove::Proof;

/// What a proof must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cell {
    #[serde(serialize_with = "front_name", deserialize_with = "front_named")]
    pub(crate) front: Front,
    #[serde(serialize_with = "mode_name", deserialize_with = "mode_named")]
    pub(crate) mode: CacheMode,
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

fn front_named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Front, D::Error> {
    let name = String::deserialize(deserializer)?;
    let front = Front::ALL.into_iter().find(|front| front.name() == name);
    front.ok_or_else(|| D::Error::custom(format_args!("{name}: not a front end")))
}

fn mode_named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CacheMode, D::Error> {
    let name = String::deserialize(deserializer)?;
    let mode = CacheMode::ALL.into_iter().find(|mode| mode.name() == name);
    mode.ok_or_else(|| D::Error::custom(format_args!("{name}: not a cache mode")))
}

/// Everything that was run and proven.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) cells: Vec<Cell>,
    /// The front ends of 2009.
    pub(crate) history: Vec<Cell>,
    /// Longest program explored.
    pub(crate) length: u8,
    pub(crate) seconds: f64,
    /// It was ended by a signal before it was complete.
    pub(crate) stopped: bool,
    /// Whether every cell is what it must be; `None` if a cell was not proven, and none is wrong.
    pub(crate) as_it_must_be: Option<bool>,
}

/// The modes that there were in 2009.
const MODES_OF_2009: [CacheMode; 3] = [CacheMode::WriteThrough, CacheMode::WriteBack, CacheMode::None];

/// Runs and proves what `args` asks for; ends early, with what there is, once `stop` is set.
pub(crate) fn run(args: &TableArgs, stop: &Arc<AtomicBool>) -> anyhow::Result<Table> {
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
    let progress = Arc::new(Progress::new(args.quiet, jobs.len() + runs));
    // The runs wait for the disk, the proofs for the processor.
    let explorers = Explorers::start(jobs, &progress, stop).context("cannot start the explorer's threads")?;
    if let Some(place) = &place {
        run_cells(&mut cells, place, &progress, stop)?;
    }
    let mut proofs = explorers.wait()?;
    for (index, cell) in cells.iter_mut().chain(&mut history).enumerate() {
        cell.proof = proofs.remove(&index);
    }
    progress.end();
    let as_it_must_be = verdict(cells.iter().chain(&history));
    let seconds = started.elapsed().as_secs_f64();
    let stopped = stop.load(Ordering::Relaxed);
    Ok(Table { cells, history, length: bounds.length, seconds, stopped, as_it_must_be })
}

/// False if a cell is not what it must be, `None` if that is not known of each: it was not proven.
fn verdict<'a>(mut cells: impl Iterator<Item = &'a Cell> + Clone) -> Option<bool> {
    if !cells.clone().all(Cell::as_it_must_be) {
        return Some(false);
    }
    let proven = |cell: &Cell| cell.proof.as_ref().is_some_and(|proof| proof.programs > 0);
    cells.all(proven).then_some(true)
}

fn run_cells(
    cells: &mut [Cell],
    place: &Place,
    progress: &Progress,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    for cell in cells {
        cell.run = drive::run(cell.front, cell.mode, place, stop)?;
        if cell.run.is_none() {
            break;
        }
        progress.step();
    }
    Ok(())
}

fn cells(args: &TableArgs) -> Vec<Cell> {
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
