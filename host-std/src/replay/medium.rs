//! Possible contents of the medium: for each run of sectors, the changes of which any one may be on it.
//!
//! Blocks persist independently of each other, so this is a set for each block and not a set of images. A block may hold what any
//! change wrote that was submitted, unless a stable change was submitted after that one had ended:
//!
//! ```text
//! allowed(t) = { v submitted by t : no w that is stable by t has end(v) < submission(w) }
//! ```
//!
//! Changes that were in flight together may have reached the medium in either order, also once both are stable. A change that
//! ended with an error, or with its server, stays "perhaps" until a later one is stable.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use blk_core::units::Extent;
use imbl::OrdMap;

use crate::recording::Contents;
use crate::recording::Log;
use crate::recording::history::{Change, ChangeId, Content, End, Step};

/// Stands for what the image held at the start.
pub(super) const BASE: ChangeId = ChangeId::MAX;

/// Sectors that have the same history.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// The sector after the last.
    pub(super) end: u64,
    /// What may be on them, in the order of submission: one at least.
    pub(super) versions: Arc<[ChangeId]>,
}

/// The runs that were ever changed, by their first sector. A clone shares everything until one of them changes.
pub(super) type Runs = OrdMap<u64, Run>;

/// The medium at a position, which only goes up.
#[derive(Clone)]
pub(super) struct Medium {
    log: Arc<Log>,
    position: u64,
    /// Steps of the history that were taken.
    taken: usize,
    runs: Runs,
    /// The runs of which more than one thing is possible.
    open: BTreeSet<u64>,
}

impl Medium {
    pub(super) fn new(log: Arc<Log>) -> Self {
        Self { log, position: 0, taken: 0, runs: Runs::new(), open: BTreeSet::new() }
    }

    pub(super) const fn runs(&self) -> &Runs {
        &self.runs
    }

    /// The runs of which more than one thing is possible.
    pub(super) fn open(&self) -> impl Iterator<Item = (Range<u64>, &Arc<[ChangeId]>)> {
        self.open.iter().filter_map(|start| self.runs.get(start).map(|run| (*start..run.end, &run.versions)))
    }

    /// Goes on to a position. One that lies behind changes nothing.
    pub(super) fn advance(&mut self, position: u64) {
        let log = Arc::clone(&self.log);
        let history = log.history();
        while let Some((at, step)) = history.steps.get(self.taken).filter(|(at, _)| *at < position) {
            debug_assert!(*at >= self.position, "in order");
            match step {
                Step::Begins(id) => self.begins(*id, history.change(*id)),
                Step::Stable(ids) => ids.iter().for_each(|id| self.stable(*id)),
                Step::Mark => {}
            }
            self.taken += 1;
        }
        self.position = self.position.max(position);
    }

    fn begins(&mut self, id: ChangeId, change: &Change) {
        let Range { start, end } = sectors(change.extent);
        self.split(start);
        self.split(end);
        let inside: Vec<_> = self.runs.range(start..end).map(|(at, run)| (*at, run.clone())).collect();
        let mut at = start;
        for (first, run) in inside {
            self.put_beside_base(at..first, id, change);
            self.put_beside(first..run.end, &run.versions, id, change);
            at = run.end;
        }
        self.put_beside_base(at..end, id, change);
    }

    fn put_beside_base(&mut self, run: Range<u64>, id: ChangeId, change: &Change) {
        if !run.is_empty() {
            self.put_beside(run, &[BASE], id, change);
        }
    }

    fn put_beside(&mut self, run: Range<u64>, versions: &[ChangeId], id: ChangeId, change: &Change) {
        let nothing_new =
            versions.iter().all(|&version| is_zero(&self.log, version)) && self.comes_alone(id, change);
        if !nothing_new {
            self.put(run, versions.iter().copied().chain([id]).collect());
        }
    }

    /// Whether a change is a discard during which nothing else was submitted for its sectors. Of what is zero anyhow, as a whole
    /// new disk is to mkfs, such a discard changes nothing, now or later.
    fn comes_alone(&self, id: ChangeId, change: &Change) -> bool {
        let during = |other: &&Change| other.submitted < change.end.at();
        change.content == Content::Discarded && {
            let mut later = self.log.history().changes[id as usize + 1..].iter().take_while(during);
            change.end != End::InFlight && !later.any(|other| other.extent.overlaps(change.extent))
        }
    }

    fn put(&mut self, run: Range<u64>, versions: Arc<[ChangeId]>) {
        if versions.len() > 1 {
            self.open.insert(run.start);
        } else {
            self.open.remove(&run.start);
        }
        self.runs.insert(run.start, Run { end: run.end, versions });
    }

    /// Makes `at` the border of a run, if it lies within one.
    fn split(&mut self, at: u64) {
        let Some((&start, run)) = self.runs.get_prev(&at) else { return };
        if start < at && at < run.end {
            let (end, versions) = (run.end, Arc::clone(&run.versions));
            self.put(start..at, Arc::clone(&versions));
            self.put(at..end, versions);
        }
    }

    fn stable(&mut self, id: ChangeId) {
        let log = Arc::clone(&self.log);
        let history = log.history();
        let change = history.change(id);
        if change.content == Content::Discarded {
            // It may have left what was there.
            return;
        }
        let survives =
            |&version: &ChangeId| version != BASE && history.change(version).end.at() > change.submitted;
        let range = sectors(change.extent);
        // A run without it was overwritten by a change that is stable already, and which has had the same effect.
        let inside: Vec<_> = self.runs.range(range).map(|(at, run)| (*at, run.clone())).collect();
        let mut last: Option<(Range<u64>, Arc<[ChangeId]>)> = None;
        for (start, run) in inside {
            let versions = if run.versions.contains(&id) {
                run.versions.iter().copied().filter(survives).collect()
            } else {
                run.versions
            };
            last = match last {
                // Neighbours with the same history become one.
                Some((before, same)) if before.end == start && same == versions => {
                    self.runs.remove(&start);
                    self.open.remove(&start);
                    Some((before.start..run.end, same))
                }
                before => {
                    if let Some((run, versions)) = before {
                        self.put(run, versions);
                    }
                    Some((start..run.end, versions))
                }
            };
        }
        if let Some((run, versions)) = last {
            self.put(run, versions);
        }
    }
}

/// Whether a version is zeroes, in any case.
pub(super) fn is_zero(log: &Log, version: ChangeId) -> bool {
    match version {
        BASE => log.contents() == Contents::Zeroes,
        id => !matches!(log.history().change(id).content, Content::Data(_)),
    }
}

/// The version that is there if as much is lost as can be.
pub(super) fn floor(log: &Log, position: u64, versions: &[ChangeId]) -> ChangeId {
    let stable = versions.iter().copied().filter(|&id| {
        id != BASE && {
            let change = log.history().change(id);
            change.content != Content::Discarded && change.stable.is_some_and(|at| at < position)
        }
    });
    // Without a stable one, what was there at the start has not been superseded and comes first.
    stable.max_by_key(|&id| log.history().change(id).end.at()).unwrap_or(versions[0])
}

/// The version that a read returns: the last that completed.
pub(super) fn live(log: &Log, position: u64, versions: &[ChangeId]) -> ChangeId {
    let done = versions.iter().copied().filter_map(|id| match id {
        BASE => None,
        id => match log.history().change(id).end {
            End::Done(at) if at < position => Some((at, id)),
            _ => None,
        },
    });
    done.max().map_or_else(|| floor(log, position, versions), |(_, id)| id)
}

fn sectors(extent: Extent) -> Range<u64> {
    extent.start.0..extent.end().unwrap_or(u64::MAX)
}
