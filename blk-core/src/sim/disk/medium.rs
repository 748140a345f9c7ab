//! Medium of a simulated disk, which its handles share: sectors, and the effect of operations on them.

use std::vec::Vec;

use heapless::Vec as FixedVec;
use serde::Serialize;

use super::choice::{Choices, Fate};
use super::config::SEGMENTS_MAX;
use crate::mutant::{Mutant, active};
use crate::op::{Op, Segment};
use crate::sim::value::{INITIAL, ValueSet, ZEROES};
use crate::storage::{IoError, IoErrorKind};
use crate::units::{Extent, Lba, StateKey, Tag};

/// Sectors whose contents are kept: those that programs use. The others hold the initial data, and a mutation that
/// reaches one is noted.
pub const TRACKED: usize = 2;

/// State that the handles share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DiskState {
    /// A completed plain write is stable: the image is open `O_DSYNC`.
    pub(super) writes_stable: bool,
    /// A flush does something.
    pub(super) flushes: bool,
    pub(super) latched: bool,
    /// A mutation of a sector that no program uses was submitted.
    pub(super) strayed: bool,
    pub(super) sectors: [Sector; TRACKED],
    /// Those that were ever stored, in that order.
    pub(super) records: Vec<Record>,
    pub(super) holds: Vec<Hold>,
    /// Of each handle, in the order of submission.
    pub(super) in_flight: Vec<Vec<InFlight>>,
    /// What the submissions of the event that happens now come to.
    #[serde(skip)]
    pub(super) choices: Choices,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Sector {
    /// What a read returns.
    pub(super) live: u8,
    /// What the medium holds as far as flushes and stable writes have settled it.
    pub(super) base: ValueSet,
    /// Completed, not yet flushed mutations in the order of their completion.
    pub(super) volatile: Vec<Volatile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Volatile {
    /// What the sector holds if this is the last that persists.
    pub(super) values: ValueSet,
    pub(super) handle: u8,
    /// Its completion, while nobody has polled it: no flush covers it yet.
    pub(super) unpolled: Option<Tag>,
}

/// What a record holds, and what else it may hold after a power cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Record {
    pub(super) key: StateKey,
    pub(super) live: Vec<u8>,
    pub(super) perhaps: Vec<Vec<u8>>,
}

/// A hold that has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Hold {
    pub(super) handle: u8,
    pub(super) slot: u16,
    pub(super) extent: Extent,
}

/// An operation that was submitted and has not completed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct InFlight {
    pub(super) tag: Tag,
    pub(super) op: Op,
    pub(super) work: Work,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Work {
    Read(FixedVec<Segment, SEGMENTS_MAX>),
    Mutate {
        changes: [Change; TRACKED],
        /// Stable when it completes.
        stable: bool,
    },
    /// For each sector, how many of its volatile entries the flush covers.
    Flush {
        covered: [u8; TRACKED],
    },
    Hold(Extent),
    Load(FixedVec<Segment, SEGMENTS_MAX>),
    Store(StateKey, Vec<u8>),
    /// It never touches the medium.
    Refused(IoErrorKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Change {
    Keep,
    Set(u8),
    /// Leaves the old data or zeroes.
    Discard,
}

impl DiskState {
    /// Does an operation other than a read: its effect happens now.
    pub(super) fn perform(&mut self, handle: usize, tag: Tag, work: Work, fate: Fate) -> Result<(), IoError> {
        match work {
            Work::Read(_) | Work::Load(_) => Ok(()),
            Work::Hold(extent) => {
                self.holds.push(Hold { handle: handle as u8, slot: tag.slot, extent });
                Ok(())
            }
            Work::Store(key, bytes) => self.store(key, bytes, fate),
            Work::Refused(kind) => Err(kind.into()),
            Work::Mutate { changes, .. } if self.latched => {
                self.persist_perhaps(handle, tag, changes);
                Err(IoErrorKind::Latched.into())
            }
            Work::Mutate { changes, stable } => match fate {
                Fate::Succeeds => {
                    let settled = self.apply(handle, tag, changes, stable);
                    self.uncover(settled);
                    Ok(())
                }
                Fate::Fails => {
                    self.persist_perhaps(handle, tag, changes);
                    self.fail();
                    Err(IoErrorKind::Medium.into())
                }
            },
            Work::Flush { .. } if self.latched => Err(IoErrorKind::Latched.into()),
            Work::Flush { covered } => match fate {
                Fate::Succeeds => {
                    let settled = self.flush(handle, covered);
                    self.uncover(settled);
                    Ok(())
                }
                Fate::Fails => {
                    let lba = self.sectors.iter().position(|s| !s.volatile.is_empty());
                    self.fail();
                    Err(IoError { kind: IoErrorKind::Medium, lba: lba.map(|sector| Lba(sector as u64)) })
                }
            },
        }
    }

    /// Whether an injected error can hit this operation: a flush, or a write that must be stable when it completes.
    pub(super) fn can_fail(&self, work: &Work) -> bool {
        !self.latched
            && match *work {
                Work::Flush { .. } => self.flushes,
                Work::Mutate { stable, .. } => stable,
                Work::Store(..) => true,
                Work::Read(_) | Work::Hold(_) | Work::Load(_) | Work::Refused(_) => false,
            }
    }

    /// Whether an operation of `handle` waits for a hold of another to end.
    pub(super) fn waits(&self, handle: usize, work: &Work, op: Op) -> bool {
        let Some(extent) = op.extent() else { return false };
        let (writes, holds) = (matches!(work, Work::Mutate { .. }), matches!(work, Work::Hold(_)));
        let others = |hold: &&Hold| holds || usize::from(hold.handle) != handle;
        (writes || holds) && self.holds.iter().filter(others).any(|hold| hold.extent.overlaps(extent))
    }

    /// A record is replaced.
    fn store(&mut self, key: StateKey, bytes: Vec<u8>, fate: Fate) -> Result<(), IoError> {
        if self.latched {
            return Err(IoErrorKind::Latched.into());
        }
        if fate == Fate::Fails {
            self.store_perhaps(key, bytes);
            self.fail();
            return Err(IoErrorKind::Medium.into());
        }
        let flushes = self.flushes;
        let record = self.record_mut(key);
        let before = core::mem::replace(&mut record.live, bytes);
        // Nothing is promised of a disk without flushes.
        if flushes {
            record.perhaps.clear();
        } else {
            record.perhaps.push(before);
        }
        Ok(())
    }

    /// A record's store ends without success: the record may hold it all the same.
    pub(super) fn store_perhaps(&mut self, key: StateKey, bytes: Vec<u8>) {
        self.record_mut(key).perhaps.push(bytes);
    }

    fn record_mut(&mut self, key: StateKey) -> &mut Record {
        let at = self.records.iter().position(|record| record.key == key).unwrap_or_else(|| {
            self.records.push(Record { key, live: Vec::new(), perhaps: Vec::new() });
            self.records.len() - 1
        });
        &mut self.records[at]
    }

    /// What a load of a record returns.
    pub(super) fn record(&self, key: StateKey) -> &[u8] {
        self.records.iter().find(|record| record.key == key).map_or(&[], |record| &record.live)
    }

    /// Takes entries that were settled off the coverage of the flushes in flight.
    fn uncover(&mut self, settled: [u8; TRACKED]) {
        for pending in self.in_flight.iter_mut().flatten() {
            if let Work::Flush { covered } = &mut pending.work {
                for (covered, settled) in covered.iter_mut().zip(settled) {
                    *covered = covered.saturating_sub(settled);
                }
            }
        }
    }

    /// The value of each sector that the operation reads.
    pub(super) fn read(&self, op: Op) -> Vec<u8> {
        let Some(extent) = op.extent() else { return Vec::new() };
        (extent.start.0..extent.end().unwrap_or(0))
            .map(|sector| self.sectors.get(sector as usize).map_or(INITIAL, |s| s.live))
            .collect()
    }

    /// A mutation succeeds. Returns, for each sector, how many volatile entries it settled.
    fn apply(&mut self, handle: usize, tag: Tag, changes: [Change; TRACKED], stable: bool) -> [u8; TRACKED] {
        let mut settled = [0; TRACKED];
        for ((sector, change), settled) in self.sectors.iter_mut().zip(changes).zip(&mut settled) {
            let values = match change {
                Change::Keep => continue,
                Change::Set(value) => ValueSet::of(value),
                Change::Discard => ValueSet::of(sector.live).with(ValueSet::of(ZEROES)),
            };
            sector.live = match change {
                Change::Set(value) => value,
                _ => ZEROES,
            };
            if stable {
                *settled = sector.volatile.len() as u8;
                sector.volatile.clear();
                sector.base = values;
            } else {
                sector.volatile.push(Volatile { values, handle: handle as u8, unpolled: Some(tag) });
            }
        }
        settled
    }

    /// A mutation fails: it may be on the medium all the same.
    pub(super) fn persist_perhaps(&mut self, handle: usize, tag: Tag, changes: [Change; TRACKED]) {
        for (sector, change) in self.sectors.iter_mut().zip(changes) {
            let new = change.new_values();
            if !new.is_empty() {
                let values = sector.settled_or_volatile().with(new);
                sector.volatile.push(Volatile { values, handle: handle as u8, unpolled: Some(tag) });
            }
        }
    }

    /// A flush succeeds: of each sector the last entry that it covers, and with it what came before, is settled.
    fn flush(&mut self, handle: usize, covered: [u8; TRACKED]) -> [u8; TRACKED] {
        let mut settled = [0; TRACKED];
        if !self.flushes {
            return settled;
        }
        for ((sector, covered), settled) in self.sectors.iter_mut().zip(covered).zip(&mut settled) {
            let covered = &sector.volatile[..usize::from(covered)];
            let last = covered.iter().rposition(|entry| entry.covered_by(handle));
            if let Some(last) = last {
                sector.base = sector.volatile[last].values;
                sector.volatile.drain(..=last);
                *settled = last as u8 + 1;
            }
        }
        settled
    }

    /// A durable operation fails.
    fn fail(&mut self) {
        if !active(Mutant::FlushErrorForgotten) {
            self.latched = true;
            return;
        }
        // What the kernel does: the pages count as clean, whatever became of them.
        let mut settled = [0; TRACKED];
        for (sector, settled) in self.sectors.iter_mut().zip(&mut settled) {
            sector.base = sector.settled_or_volatile();
            *settled = sector.volatile.len() as u8;
            sector.volatile.clear();
        }
        self.uncover(settled);
    }

    /// How many of each sector's volatile entries a flush that is submitted now on `handle` covers.
    pub(super) fn coverage(&self, handle: usize) -> [u8; TRACKED] {
        core::array::from_fn(|sector| {
            let entries = &self.sectors[sector].volatile;
            let last = entries.iter().rposition(|e| e.unpolled.is_none() && e.covered_by(handle));
            last.map_or(0, |last| last as u8 + 1)
        })
    }

    /// The completion of `tag` on `handle` was polled.
    pub(super) fn polled(&mut self, handle: u8, tag: Tag) {
        for entry in self.sectors.iter_mut().flat_map(|sector| &mut sector.volatile) {
            if entry.handle == handle && entry.unpolled == Some(tag) {
                entry.unpolled = None;
            }
        }
    }
}

impl Sector {
    pub(super) fn holding(value: u8) -> Self {
        Self { live: value, base: ValueSet::of(value), volatile: Vec::new() }
    }

    pub(super) fn settled_or_volatile(&self) -> ValueSet {
        self.volatile.iter().fold(self.base, |set, entry| set.with(entry.values))
    }
}

impl Volatile {
    pub(super) fn covered_by(&self, handle: usize) -> bool {
        !active(Mutant::FlushOwnQueueOnly) || usize::from(self.handle) == handle
    }
}

impl Change {
    /// What it may put on the medium that was not there.
    pub(super) fn new_values(self) -> ValueSet {
        match self {
            Self::Keep => ValueSet::EMPTY,
            Self::Set(value) => ValueSet::of(value),
            Self::Discard => ValueSet::of(ZEROES),
        }
    }
}
