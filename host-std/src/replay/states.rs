//! Crash states, position by position.

use std::path::PathBuf;
use std::sync::Arc;

use fastrand::Rng;

use super::crash_choices::{CrashChoices, State};
use super::image::{Base, Image, View};
use super::medium::Medium;
use crate::recording::{Log, LogError, Mark};

/// At which positions the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Wherever another set of states is possible, or more is owed, than before.
    Every,
    /// Right after each mark and right before the next one, and at the end.
    Marks,
    /// So many of [`Self::Every`], spread over the recording, and the last one.
    Sample(usize),
    /// So many of them that at least this many states come of it, if there are that many.
    Total(usize),
    /// This one.
    At(u64),
}

/// Which crash states to go through.
#[derive(Clone, Debug)]
pub struct Options {
    /// The same seed gives the same states.
    pub seed: u64,
    /// Where the power is cut.
    pub positions: Positions,
    /// Most states for each position.
    pub states_per_position: usize,
    /// No position before this one: the mark, for example, at which the file system had been made.
    pub from: u64,
    /// The image at the start, where the recording does not begin with zeroes.
    pub base: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, positions: Positions::Every, states_per_position: 16, from: 0, base: None }
    }
}

/// An image that a power cut can leave.
#[derive(Clone)]
pub struct CrashState {
    log: Arc<Log>,
    /// The power was cut after so many records.
    pub position: u64,
    /// Its number among the states of this position.
    pub number: usize,
    /// How it came about.
    pub description: String,
    /// The image.
    pub image: Image,
}

impl CrashState {
    /// The marks that had been set by then: what the image must keep.
    #[must_use]
    pub fn marks(&self) -> &[Mark] {
        self.log.marks_until(self.position)
    }
}

/// Goes through crash states in ascending order of their positions. Each state shares what it can with the others: thousands of
/// them cost what differs.
pub struct CrashStates {
    log: Arc<Log>,
    base: Arc<Base>,
    medium: Medium,
    seed: u64,
    states_per_position: usize,
    /// Still to come, in descending order.
    positions: Vec<u64>,
    /// Still to come at the position of `medium`.
    states: std::iter::Enumerate<std::vec::IntoIter<State>>,
    position: u64,
}

impl CrashStates {
    /// Chooses the positions.
    ///
    /// # Errors
    /// [`LogError`] if the image at the start is needed and missing, or another one, or if there is no such position.
    pub fn open(log: &Arc<Log>, options: &Options) -> Result<Self, LogError> {
        let base = Arc::new(Base::open(log, options.base.as_deref())?);
        let mut positions = positions(log, options)?;
        if let Positions::Total(wanted) = options.positions {
            positions = spread(log, options, &positions, wanted);
        }
        positions.reverse();
        Ok(Self {
            log: Arc::clone(log),
            base,
            medium: Medium::new(Arc::clone(log)),
            seed: options.seed,
            states_per_position: options.states_per_position,
            positions,
            states: Vec::new().into_iter().enumerate(),
            position: 0,
        })
    }

    /// The image at the start, for other views of the same recording.
    #[must_use]
    pub const fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Positions still to come.
    #[must_use]
    pub fn positions_left(&self) -> usize {
        self.positions.len()
    }
}

impl Iterator for CrashStates {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        loop {
            if let Some((number, State { picks, description })) = self.states.next() {
                let view = View::Cut(picks.into());
                let image = Image::new(&self.log, &self.base, self.medium.runs(), self.position, view);
                let log = Arc::clone(&self.log);
                return Some(CrashState { log, position: self.position, number, description, image });
            }
            let position = self.positions.pop()?;
            self.medium.advance(position);
            self.position = position;
            let states = states_at(&self.log, &self.medium, position, self.states_per_position, self.seed);
            self.states = states.into_iter().enumerate();
        }
    }
}

fn states_at(log: &Arc<Log>, medium: &Medium, position: u64, most: usize, seed: u64) -> Vec<State> {
    // A seed for each position, so that its states do not depend on which others are tried.
    let seed = Rng::with_seed(seed ^ position.wrapping_mul(0x9e37_79b9_7f4a_7c15)).u64(..);
    CrashChoices::at(log, medium, position).states(most, seed)
}

/// As few positions as have `wanted` states together.
fn spread(log: &Arc<Log>, options: &Options, every: &[u64], wanted: usize) -> Vec<u64> {
    let most = options.states_per_position.max(1);
    let mut count = wanted.div_ceil(most);
    loop {
        let positions = sample(every, count, options.seed);
        let mut medium = Medium::new(Arc::clone(log));
        let states: usize = positions
            .iter()
            .map(|&position| {
                medium.advance(position);
                states_at(log, &medium, position, most, options.seed).len()
            })
            .sum();
        if states >= wanted || positions.len() == every.len() {
            return positions;
        }
        // As many more as are missing, by what these gave.
        count += ((wanted - states) * positions.len()).div_ceil(states.max(1)).max(1);
    }
}

/// In ascending order, each once.
fn positions(log: &Log, options: &Options) -> Result<Vec<u64>, LogError> {
    let last = log.positions();
    let from = options.from;
    if let Some(position) = Some(from).filter(|&from| from > last) {
        return Err(LogError::NoPosition { log: log.path().into(), position, last });
    }
    let mut every: Vec<_> =
        log.history().steps.iter().map(|(at, _)| at + 1).filter(|&at| at >= from).collect();
    every.dedup();
    if every.is_empty() {
        every.push(last);
    }
    Ok(match options.positions {
        Positions::Every | Positions::Total(_) => every,
        Positions::Marks => {
            let marks: Vec<_> = log.marks().iter().map(|mark| mark.position).collect();
            let before_next =
                every.windows(2).filter(|pair| marks.binary_search(&pair[1]).is_ok()).map(|pair| pair[0]);
            let mut chosen: Vec<_> =
                before_next.chain(marks.iter().copied()).chain(every.last().copied()).collect();
            chosen.retain(|&position| position >= from);
            chosen.sort_unstable();
            chosen.dedup();
            chosen
        }
        Positions::Sample(wanted) => sample(&every, wanted, options.seed),
        Positions::At(position) if position > last => {
            return Err(LogError::NoPosition { log: log.path().into(), position, last });
        }
        Positions::At(position) => vec![position],
    })
}

/// One out of each of `wanted` equal parts, and the last.
fn sample(every: &[u64], wanted: usize, seed: u64) -> Vec<u64> {
    let mut rng = Rng::with_seed(seed);
    let parts = wanted.clamp(1, every.len());
    let chosen = (0..parts).map(|part| {
        let (start, end) = (part * every.len() / parts, (part + 1) * every.len() / parts);
        every[if part + 1 == parts { end - 1 } else { rng.usize(start..end) }]
    });
    chosen.collect()
}
