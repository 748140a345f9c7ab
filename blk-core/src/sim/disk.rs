//! The disk that loses power.
//!
//! Its physics is what a host file or device does in a [`CacheMode`]; what it *says* about itself is that mode's
//! [`Info`]. The two agree unless a mutant makes them disagree.
//!
//! - A mutation takes effect on the live image when it completes, and may be on the medium from its submission on.
//! - Completed, it is stable at once (`O_DSYNC`, native FUA) or volatile until a flush that was submitted after its
//!   completion was polled has completed. Until then any subset of the volatile sectors may be on the medium. Zeroes
//!   and discards are volatile even under `O_DSYNC`: holes are metadata.
//! - A sector is never torn, and sectors persist independently of each other. So what a power cut can leave is one set
//!   of values for each sector.
//! - A failed flush or durable write may have persisted anything, and latches: flushes and mutations fail from then on.

mod handle;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use heapless::Vec as FixedVec;
use serde::{Serialize, Serializer};

use crate::memory::GuestMemory;
use crate::mutant::{Mutant, active};
use crate::op::{Op, Segment};
use crate::sim::memory::SimMemory;
use crate::sim::value::{INITIAL, ValueSet, ZEROES};
use crate::storage::{CacheMode, Completion, Info, IoError, IoErrorKind};
use crate::units::{Lba, SECTOR_BYTES, Tag};

pub use handle::SimHandle;

/// Sectors whose contents are kept: those that programs use. The others hold the initial data, and a mutation that
/// reaches one is noted.
pub const TRACKED: usize = 2;

/// Most segments of an operation on the disk.
pub(super) const SEGMENTS_MAX: usize = 4;

/// What disk to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// How the host opened it: decides both the physics and what the disk says about itself.
    pub mode: CacheMode,
    /// Whether `fua: true` is honoured, and advertised.
    pub native_fua: bool,
    /// Storage handles: one for each queue or drive of the front.
    pub handles: usize,
    /// Operations that a handle takes before it is busy.
    pub depth: usize,
    /// Capacity in 512-byte sectors.
    pub sectors: u64,
    /// Bytes of each staging buffer.
    pub staging_bytes: u32,
    /// Whether `fence` drops what is in flight and promises that it does not land; elsewhere it promises nothing.
    pub fence: bool,
}

impl DiskConfig {
    /// A disk of 64 KiB with one handle, room for 8 operations and no native FUA.
    #[must_use]
    pub const fn new(mode: CacheMode) -> Self {
        Self {
            mode,
            native_fua: false,
            handles: 1,
            depth: 8,
            sectors: 128,
            staging_bytes: 1024,
            fence: false,
        }
    }

    fn info(&self) -> Info {
        Info {
            sectors: self.sectors,
            logical_block_bytes: SECTOR_BYTES,
            physical_block_bytes: SECTOR_BYTES,
            optimal_io_bytes: 0,
            read_only: false,
            rotational: false,
            cache: self.mode.cache(),
            fua: self.native_fua,
            range_stable: false,
            discard: true,
            staging_bytes: self.staging_bytes,
            segments_max: SEGMENTS_MAX as u16,
            transfer_max_bytes: 1 << 16,
        }
    }
}

/// How an operation in flight ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It succeeds, unless the latch or a wrong range fails it.
    Succeeds,
    /// The host reports an error.
    Fails,
}

/// Several handles to one disk.
#[derive(Debug)]
pub struct SimDisk {
    shared: Rc<RefCell<Shared>>,
    handles: Vec<SimHandle>,
}

/// What the handles share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Shared {
    /// A completed plain write is stable: the image is open `O_DSYNC`.
    writes_stable: bool,
    /// A flush does something.
    flushes: bool,
    latched: bool,
    /// A mutation of a sector that no program uses was submitted.
    strayed: bool,
    sectors: [Sector; TRACKED],
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Sector {
    /// What a read returns.
    live: u8,
    /// What the medium holds as far as flushes and stable writes have settled it.
    base: ValueSet,
    /// Completed, not yet flushed mutations in the order of their completion.
    volatile: Vec<Volatile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Volatile {
    /// What the sector holds if this is the last that persists.
    values: ValueSet,
    handle: u8,
    /// Its completion, while nobody has polled it: no flush covers it yet.
    unpolled: Option<Tag>,
}

/// An operation that was submitted and has not completed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct InFlight {
    tag: Tag,
    op: Op,
    work: Work,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
enum Work {
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
    /// It never touches the medium.
    Refused(IoErrorKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Change {
    Keep,
    Set(u8),
    /// Leaves the old data or zeroes.
    Discard,
}

impl SimDisk {
    /// A disk of which every sector holds [`INITIAL`].
    #[must_use]
    pub fn new(config: &DiskConfig) -> Self {
        let shared = Rc::new(RefCell::new(Shared {
            writes_stable: config.mode.dsync(),
            flushes: !matches!(config.mode, CacheMode::Unsafe),
            latched: false,
            strayed: false,
            sectors: [INITIAL; TRACKED].map(Sector::holding),
        }));
        let handles = (0..config.handles as u8)
            .map(|index| SimHandle::new(index, config, config.info(), Rc::clone(&shared)))
            .collect();
        Self { shared, handles }
    }

    /// The handles, for a front.
    pub fn handles(&mut self) -> &mut [SimHandle] {
        &mut self.handles
    }

    /// Whether nothing is in flight on any handle, and no completion waits to be polled.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.handles.iter().all(|handle| handle.in_flight.is_empty() && handle.completed.is_empty())
    }

    /// Whether a completion waits to be polled.
    #[must_use]
    pub fn has_unpolled(&self) -> bool {
        self.handles.iter().any(|handle| !handle.completed.is_empty())
    }

    /// Operations in flight: handle, position among those of the handle, and the operation.
    pub fn in_flight(&self) -> impl Iterator<Item = (usize, usize, Op)> {
        self.handles.iter().enumerate().flat_map(|(handle, h)| {
            h.in_flight.iter().enumerate().map(move |(index, pending)| (handle, index, pending.op))
        })
    }

    /// Whether an injected error can hit this operation: a flush, or a write that must be stable when it completes.
    #[must_use]
    pub fn can_fail(&self, handle: usize, index: usize) -> bool {
        let shared = self.shared.borrow();
        let pending = self.handles.get(handle).and_then(|handle| handle.in_flight.get(index));
        !shared.latched
            && pending.is_some_and(|pending| match pending.work {
                Work::Flush { .. } => shared.flushes,
                Work::Mutate { stable, .. } => stable,
                Work::Read(_) | Work::Refused(_) => false,
            })
    }

    /// Completes an operation in flight: its effect happens now, its completion waits to be polled.
    ///
    /// # Panics
    /// If there is no such operation.
    pub fn complete(&mut self, memory: &SimMemory, handle: usize, index: usize, fate: Fate) {
        let InFlight { tag, op, work } = self.handles[handle].in_flight.remove(index);
        let mut shared = self.shared.borrow_mut();
        let result = match work {
            Work::Refused(kind) => Err(kind.into()),
            Work::Read(segments) => {
                let data = shared.read(op);
                self.handles[handle].scatter(memory, tag.slot, &segments, &data)
            }
            Work::Mutate { changes, .. } if shared.latched => {
                shared.persist_perhaps(handle, tag, changes);
                Err(IoErrorKind::Latched.into())
            }
            Work::Mutate { changes, stable } => match fate {
                Fate::Succeeds => {
                    let settled = shared.apply(handle, tag, changes, stable);
                    uncover(&mut self.handles, settled);
                    Ok(())
                }
                Fate::Fails => {
                    shared.persist_perhaps(handle, tag, changes);
                    uncover(&mut self.handles, shared.fail());
                    Err(IoErrorKind::Medium.into())
                }
            },
            Work::Flush { .. } if shared.latched => Err(IoErrorKind::Latched.into()),
            Work::Flush { covered } => match fate {
                Fate::Succeeds => {
                    let settled = shared.flush(handle, covered);
                    uncover(&mut self.handles, settled);
                    Ok(())
                }
                Fate::Fails => {
                    let lba = shared.sectors.iter().position(|s| !s.volatile.is_empty());
                    uncover(&mut self.handles, shared.fail());
                    Err(IoError { kind: IoErrorKind::Medium, lba: lba.map(|sector| Lba(sector as u64)) })
                }
            },
        };
        self.handles[handle].completed.push(Completion { tag, result });
    }

    /// What `sector` can hold if the power is cut now.
    #[must_use]
    pub fn reachable(&self, sector: usize) -> ValueSet {
        let in_flight = self.handles.iter().flat_map(|handle| &handle.in_flight);
        in_flight.fold(self.shared.borrow().sectors[sector].settled_or_volatile(), |set, pending| {
            match pending.work {
                Work::Mutate { changes, .. } => set.with(changes[sector].new_values()),
                _ => set,
            }
        })
    }

    /// What a read of `sector` would return now.
    #[must_use]
    pub fn live(&self, sector: usize) -> u8 {
        self.shared.borrow().sectors[sector].live
    }

    /// Whether a sector that no program uses was written.
    #[must_use]
    pub fn strayed(&self) -> bool {
        self.shared.borrow().strayed
    }

    /// Replaces the contents of an idle disk, as after a power cut that left `values`.
    pub fn fill(&mut self, values: [u8; TRACKED]) {
        self.shared.borrow_mut().sectors = values.map(Sector::holding);
    }
}

impl Clone for SimDisk {
    fn clone(&self) -> Self {
        let shared = Rc::new(RefCell::new(self.shared.borrow().clone()));
        let mut handles = self.handles.clone();
        for handle in &mut handles {
            handle.shared = Rc::clone(&shared);
        }
        Self { shared, handles }
    }
}

impl Serialize for SimDisk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.shared.borrow(), &self.handles).serialize(serializer)
    }
}

impl Shared {
    /// The value of each sector that the operation reads.
    fn read(&self, op: Op) -> Vec<u8> {
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
    fn persist_perhaps(&mut self, handle: usize, tag: Tag, changes: [Change; TRACKED]) {
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

    /// A durable operation fails. Returns, for each sector, how many volatile entries can no longer be flushed.
    fn fail(&mut self) -> [u8; TRACKED] {
        if !active(Mutant::FlushErrorForgotten) {
            self.latched = true;
            return [0; TRACKED];
        }
        // What the kernel does: the pages count as clean, whatever became of them.
        let mut settled = [0; TRACKED];
        for (sector, settled) in self.sectors.iter_mut().zip(&mut settled) {
            sector.base = sector.settled_or_volatile();
            *settled = sector.volatile.len() as u8;
            sector.volatile.clear();
        }
        settled
    }

    /// How many of each sector's volatile entries a flush that is submitted now on `handle` covers.
    fn coverage(&self, handle: usize) -> [u8; TRACKED] {
        core::array::from_fn(|sector| {
            let entries = &self.sectors[sector].volatile;
            let last = entries.iter().rposition(|e| e.unpolled.is_none() && e.covered_by(handle));
            last.map_or(0, |last| last as u8 + 1)
        })
    }

    /// The completion of `tag` on `handle` was polled.
    fn polled(&mut self, handle: u8, tag: Tag) {
        for entry in self.sectors.iter_mut().flat_map(|sector| &mut sector.volatile) {
            if entry.handle == handle && entry.unpolled == Some(tag) {
                entry.unpolled = None;
            }
        }
    }
}

impl Sector {
    fn holding(value: u8) -> Self {
        Self { live: value, base: ValueSet::of(value), volatile: Vec::new() }
    }

    fn settled_or_volatile(&self) -> ValueSet {
        self.volatile.iter().fold(self.base, |set, entry| set.with(entry.values))
    }
}

impl Volatile {
    fn covered_by(&self, handle: usize) -> bool {
        !active(Mutant::FlushOwnQueueOnly) || usize::from(self.handle) == handle
    }
}

impl Change {
    /// What it may put on the medium that was not there.
    fn new_values(self) -> ValueSet {
        match self {
            Self::Keep => ValueSet::EMPTY,
            Self::Set(value) => ValueSet::of(value),
            Self::Discard => ValueSet::of(ZEROES),
        }
    }
}

/// Takes entries that were settled off the coverage of the flushes in flight.
fn uncover(handles: &mut [SimHandle], settled: [u8; TRACKED]) {
    for pending in handles.iter_mut().flat_map(|handle| &mut handle.in_flight) {
        if let Work::Flush { covered } = &mut pending.work {
            for (covered, settled) in covered.iter_mut().zip(settled) {
                *covered = covered.saturating_sub(settled);
            }
        }
    }
}

/// Copies between the bytes of an operation and its segments. `copy` gets the guest address and the bytes.
fn each_segment(
    segments: &[Segment],
    staging: &mut [u8],
    data: &mut [u8],
    mut guest: impl FnMut(crate::units::GuestAddr, &mut [u8]) -> Result<(), crate::memory::MemoryError>,
    to_staging: bool,
) -> Result<(), IoError> {
    let mut rest = data;
    for segment in segments {
        let (piece, after) =
            rest.split_at_mut_checked(segment.len() as usize).ok_or(IoErrorKind::OutOfRange)?;
        rest = after;
        match *segment {
            Segment::Guest { addr, .. } => guest(addr, piece).map_err(|_| IoErrorKind::Memory)?,
            Segment::Staging { offset, len } => {
                let at = offset as usize..(offset as usize).saturating_add(len as usize);
                let staging = staging.get_mut(at).ok_or(IoErrorKind::OutOfRange)?;
                if to_staging {
                    staging.copy_from_slice(piece);
                } else {
                    piece.copy_from_slice(staging);
                }
            }
        }
    }
    Ok(())
}

/// Reads the data of a write out of its segments.
fn gather<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    staging: &mut [u8],
    data: &mut [u8],
) -> Result<(), IoError> {
    each_segment(segments, staging, data, |addr, piece| memory.read(addr, piece), false)
}

/// Writes the data of a read into its segments.
fn scatter<M: GuestMemory + ?Sized>(
    memory: &M,
    segments: &[Segment],
    staging: &mut [u8],
    data: &mut [u8],
) -> Result<(), IoError> {
    each_segment(segments, staging, data, |addr, piece| memory.write(addr, piece), true)
}
