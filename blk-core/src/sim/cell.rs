//! Cell of an exploration: its bounds and its result.

use core::fmt;
use core::time::Duration;
use std::string::ToString;
use std::vec::Vec;

use crate::mutant::Mutant;
use crate::sim::disk::DiskConfig;
use crate::sim::guest::{Action, SectorRun};
use crate::sim::history::History;
use crate::sim::oracle::Violation;
use crate::storage::CacheMode;

/// The modes in which every promise holds: all but `unsafe`.
pub const SAFE_MODES: [CacheMode; 4] =
    [CacheMode::WriteThrough, CacheMode::WriteBack, CacheMode::None, CacheMode::DirectSync];

/// One cell of the integrity table: a disk, and bounds on what happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The disk.
    pub disk: DiskConfig,
    /// Longest program, in steps: [`STEPS_MAX`](crate::sim::STEPS_MAX) at most.
    pub length: u8,
    /// Durable operations that the host may fail.
    pub errors: u8,
    /// Power cuts from which the program goes on, on a disk whose latch is cleared, as after an operator has checked the
    /// image. What one would leave is checked in every state anyway.
    pub power_cuts: u8,
    /// Completions that the front may see late: the host has completed the operation, and something else happens before
    /// the front polls.
    pub late_polls: u8,
    /// Whether the host may do operations at once, when they are submitted. It chooses for each.
    pub at_once: bool,
    /// The program needs its ordered writes to be barriers, although the guest issues them as plain writes and does not
    /// drain: I8.
    pub needs_barriers: bool,
}

impl Cell {
    /// All programs of up to `length` steps on a disk opened in `mode`, with one error and one power cut on the way, and, since it doubles the states, one late poll in programs of up to two steps only.
    #[must_use]
    pub const fn new(mode: CacheMode, length: u8) -> Self {
        Self {
            disk: DiskConfig::new(mode),
            length,
            errors: 1,
            power_cuts: 1,
            late_polls: if length <= 2 { 1 } else { 0 },
            at_once: true,
            needs_barriers: false,
        }
    }

    /// The cell in which `mutant` shows, if the front can have it at all and its programs are long enough.
    #[must_use]
    pub const fn showing(mutant: Mutant, length: u8) -> Self {
        let mode = match mutant {
            Mutant::DirectTakenAsDurable => CacheMode::None,
            Mutant::DsyncDropped => CacheMode::WriteThrough,
            _ => CacheMode::WriteBack,
        };
        let mut cell = Self::new(mode, length);
        if matches!(mutant, Mutant::FlushOwnQueueOnly | Mutant::ResetOneQueueOnly) {
            cell.disk.handles = 2;
        }
        cell
    }
}

/// Progress of an exploration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Distinct states seen.
    pub states: u64,
    /// Transitions tried.
    pub transitions: u64,
    /// Distinct programs begun, of whatever length.
    pub programs: u64,
}

/// Result of an exploration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether the promises hold.
    pub verdict: Verdict,
    /// How much was explored. Of a violation: before it was found.
    pub explored: Progress,
    /// Time taken, the search for a minimal counterexample included.
    pub elapsed: Duration,
}

/// Whether the promises hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In every state that was explored, and all were, if this is not of a sampler.
    Safe,
    /// Not here.
    Unsafe(Counterexample),
    /// The caller stopped it; nothing was found so far.
    Stopped,
}

/// A history that breaks a promise: of an exploration the shortest program, and of that the fewest events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The program.
    pub program: Vec<Action>,
    /// What happened; the last event says what is broken.
    pub history: History,
    /// What is broken.
    pub violation: Violation,
    /// The seed of the random walk that found it.
    pub seed: Option<u64>,
}

impl Report {
    /// Whether everything was explored and every promise held.
    #[must_use]
    pub const fn is_safe(&self) -> bool {
        matches!(self.verdict, Verdict::Safe)
    }

    /// The counterexample, if there is one.
    #[must_use]
    pub const fn counterexample(&self) -> Option<&Counterexample> {
        match &self.verdict {
            Verdict::Unsafe(counterexample) => Some(counterexample),
            Verdict::Safe | Verdict::Stopped => None,
        }
    }

    /// Fails a test in which not every promise held.
    ///
    /// # Panics
    /// With the counterexample, or if the exploration was stopped.
    #[track_caller]
    pub fn assert_safe(&self) {
        let found = self.counterexample().map_or("stopped".to_string(), ToString::to_string);
        assert!(self.is_safe(), "\n{found}");
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(seed) = self.seed {
            writeln!(f, "seed {seed}")?;
        }
        self.history.sentences().iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(run) => write!(f, "write to {run}"),
            Self::WriteFua(run) => write!(f, "FUA write to {run}"),
            Self::WriteOrdered(run) => write!(f, "ordered write to {run}"),
            Self::WriteZeroes(run) => write!(f, "write zeroes to {run}"),
            Self::Discard(run) => write!(f, "discard of {run}"),
            Self::Read(run) => write!(f, "read of {run}"),
            Self::Flush => f.write_str("flush"),
            Self::CacheOff => f.write_str("turn the write cache off"),
            Self::CacheOn => f.write_str("turn the write cache on"),
            Self::Reset => f.write_str("reset"),
        }
    }
}

impl fmt::Display for SectorRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => write!(f, "sector {}", self.first),
            _ => write!(f, "sectors {} to {}", self.first, self.sectors().end.saturating_sub(1)),
        }
    }
}
