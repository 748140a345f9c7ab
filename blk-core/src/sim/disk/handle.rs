//! A front's handle to the disk: takes operations, hands out completions.

use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use heapless::Vec as FixedVec;
use serde::{Serialize, Serializer};

use super::choice::{DoneAtOnce, Fate};
use super::config::{DiskConfig, SEGMENTS_MAX};
use super::medium::{Change, DiskState, InFlight, TRACKED, Work};
use super::segments::{gather, scatter};
use crate::op::{Op, Segment, total_bytes};
use crate::sim::memory::{Bytes, SimMemory, uniform};
use crate::sim::value::{GARBAGE, INITIAL, STEPS_MAX, ZEROES};
use crate::storage::{Busy, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use crate::units::{Extent, SECTOR_BYTES, Tag};

const SECTOR: usize = SECTOR_BYTES as usize;

/// One of the handles of a [`SimDisk`](super::SimDisk): tags are its own, the medium is shared.
#[derive(Clone, Debug)]
pub struct SimHandle {
    index: u8,
    depth: usize,
    cancels: bool,
    info: Info,
    pub(super) shared: Rc<RefCell<DiskState>>,
    /// In the order of completion.
    pub(super) completed: Vec<Completion>,
    /// The buffers that were touched, by slot. One that was not is all zeroes.
    staging: Vec<(u16, Vec<u8>)>,
}

impl SimHandle {
    pub(super) fn new(index: u8, config: &DiskConfig, info: Info, shared: Rc<RefCell<DiskState>>) -> Self {
        Self {
            index,
            depth: config.depth,
            cancels: config.cancels,
            info,
            shared,
            completed: Vec::new(),
            staging: Vec::new(),
        }
    }

    /// Does an operation: its effect, on the disk or in memory, happens now.
    pub(super) fn perform(
        &mut self,
        memory: &SimMemory,
        operation: InFlight,
        fate: Fate,
    ) -> Result<(), IoError> {
        let InFlight { tag, op, work } = operation;
        let (segments, mut data) = match (work, op) {
            (Work::Read(segments), _) => {
                let values = self.shared.borrow().read(op);
                (segments, values.iter().flat_map(|&value| [value; SECTOR]).collect::<Vec<u8>>())
            }
            (Work::Load(segments), Op::LoadState { key }) => {
                let mut data = self.shared.borrow().record(key).to_vec();
                data.resize(total_bytes(&segments).unwrap_or(0) as usize, 0);
                (segments, data)
            }
            (work, _) => return self.shared.borrow_mut().perform(usize::from(self.index), tag, work, fate),
        };
        scatter(memory, &segments, self.buffer(tag.slot), &mut data)
    }

    fn buffer(&mut self, slot: u16) -> &mut [u8] {
        let at = match self.staging.binary_search_by_key(&slot, |entry| entry.0) {
            Ok(at) => at,
            Err(at) => {
                self.staging.insert(at, (slot, std::vec![0; self.info.staging_bytes as usize]));
                at
            }
        };
        &mut self.staging[at].1
    }

    /// What is to be done for `op`, or why it is refused.
    fn work(
        &mut self,
        memory: &SimMemory,
        slot: u16,
        op: Op,
        segments: &[Segment],
    ) -> Result<Work, IoErrorKind> {
        self.check(op, segments)?;
        if self.shared.borrow().latched && op.fails_when_latched() {
            return Err(IoErrorKind::Latched);
        }
        let kept = || FixedVec::from_slice(segments).map_err(|_| IoErrorKind::OutOfRange);
        let (changes, stable) = match op {
            Op::Read { .. } => return kept().map(Work::Read),
            Op::LoadState { .. } => return kept().map(Work::Load),
            Op::StoreState { key } => return Ok(Work::Store(key, self.gathered(memory, slot, segments)?)),
            Op::Hold { extent } => return Ok(Work::Hold(extent)),
            Op::Flush => {
                let covered = self.shared.borrow().coverage(usize::from(self.index));
                return Ok(Work::Flush { covered });
            }
            Op::Write { fua: true, .. } if !self.info.fua => return Err(IoErrorKind::Unsupported),
            Op::Write { extent, fua } => {
                let shared = self.shared.borrow();
                let stable = (fua || shared.writes_stable) && shared.flushes;
                drop(shared);
                (self.written(memory, slot, extent, segments)?, stable)
            }
            Op::WriteZeroes { extent, .. } => (changes(extent, |_| Change::Set(ZEROES)), false),
            Op::Discard { extent } => (changes(extent, |_| Change::Discard), false),
        };
        let strays = op.extent().is_some_and(|extent| !extent.fits(TRACKED as u64));
        self.shared.borrow_mut().strayed |= strays;
        Ok(Work::Mutate { changes, stable })
    }

    fn check(&self, op: Op, segments: &[Segment]) -> Result<(), IoErrorKind> {
        let fits = op.extent().is_none_or(|extent| extent.fits(self.info.sectors));
        let (bytes, most) = match op.segment_bytes() {
            Some(bytes) => (Some(bytes), self.info.transfer_max_bytes),
            None => (total_bytes(segments), self.info.state_bytes),
        };
        let sound = bytes.is_some_and(|bytes| bytes <= u64::from(most))
            && total_bytes(segments) == bytes
            && segments.len() <= SEGMENTS_MAX;
        if fits && sound { Ok(()) } else { Err(IoErrorKind::OutOfRange) }
    }

    fn written(
        &mut self,
        memory: &SimMemory,
        slot: u16,
        extent: Extent,
        segments: &[Segment],
    ) -> Result<[Change; TRACKED], IoErrorKind> {
        let data = self.gathered(memory, slot, segments)?;
        Ok(changes(extent, |at| Change::Set(value_of(&data[at * SECTOR..(at + 1) * SECTOR]))))
    }

    /// The bytes of the segments.
    fn gathered(
        &mut self,
        memory: &SimMemory,
        slot: u16,
        segments: &[Segment],
    ) -> Result<Vec<u8>, IoErrorKind> {
        let mut data = std::vec![0; total_bytes(segments).unwrap_or(0) as usize];
        // Where no segment is staged, the buffer is not looked at, and not made.
        let staged = segments.iter().any(|segment| matches!(segment, Segment::Staging { .. }));
        let staging = if staged { self.buffer(slot) } else { &mut [] };
        gather(memory, segments, staging, &mut data).map_err(|error| error.kind)?;
        Ok(data)
    }
}

impl Storage<SimMemory> for SimHandle {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(
        &mut self,
        memory: &SimMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let handle = usize::from(self.index);
        if self.shared.borrow().in_flight[handle].len() + self.completed.len() >= self.depth {
            return Err(Busy);
        }
        let work = self.work(memory, tag.slot, op, segments).unwrap_or_else(Work::Refused);
        let mut shared = self.shared.borrow_mut();
        let (can_fail, waits) = (shared.can_fail(&work), shared.waits(handle, &work, op));
        let Some(fate) = shared.choices.next(can_fail, waits) else {
            shared.in_flight[handle].push(InFlight { tag, op, work });
            return Ok(Submission::Pending);
        };
        drop(shared);
        let result = self.perform(memory, InFlight { tag, op, work }, fate);
        let mut shared = self.shared.borrow_mut();
        shared.polled(self.index, tag);
        shared.choices.done.push(DoneAtOnce { handle, op, ok: result.is_ok() });
        Ok(Submission::Done(result))
    }

    fn poll(&mut self, _memory: &SimMemory) -> Option<Completion> {
        if self.completed.is_empty() {
            return None;
        }
        let completion = self.completed.remove(0);
        self.shared.borrow_mut().polled(self.index, completion.tag);
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        let in_use = self.shared.borrow().in_flight[usize::from(self.index)]
            .iter()
            .any(|pending| pending.tag.slot == slot && pending.op.segment_bytes() != Some(0));
        if in_use || self.info.staging_bytes == 0 { &mut [] } else { self.buffer(slot) }
    }

    fn release_hold(&mut self, slot: u16) {
        self.shared.borrow_mut().holds.retain(|hold| (hold.handle, hold.slot) != (self.index, slot));
    }

    fn cancel_in_flight(&mut self) -> bool {
        if !self.cancels {
            return false;
        }
        let mut shared = self.shared.borrow_mut();
        shared.holds.retain(|hold| hold.handle != self.index);
        let in_flight = core::mem::take(&mut shared.in_flight[usize::from(self.index)]);
        for InFlight { tag, work, .. } in in_flight {
            match work {
                Work::Mutate { changes, .. } => {
                    shared.persist_perhaps(usize::from(self.index), tag, changes);
                    shared.polled(self.index, tag);
                }
                Work::Store(key, bytes) => shared.store_perhaps(key, bytes),
                _ => {}
            }
        }
        for completion in self.completed.drain(..) {
            shared.polled(self.index, completion.tag);
        }
        true
    }
}

impl Serialize for SimHandle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let staging: Vec<_> = self.staging.iter().map(|(slot, bytes)| (slot, Bytes(bytes))).collect();
        (&self.completed, staging).serialize(serializer)
    }
}

/// The changes to the tracked sectors of `extent`; `change` gets the position within the extent.
fn changes(extent: Extent, change: impl Fn(usize) -> Change) -> [Change; TRACKED] {
    core::array::from_fn(|sector| {
        let sector = Extent::new(sector as u64, 1);
        if extent.overlaps(sector) {
            change((sector.start.0 - extent.start.0) as usize)
        } else {
            Change::Keep
        }
    })
}

fn value_of(bytes: &[u8]) -> u8 {
    match uniform(bytes) {
        Some(value) if value <= STEPS_MAX || value == INITIAL => value,
        _ => GARBAGE,
    }
}
