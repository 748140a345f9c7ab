//! A disk that completes when, in which order and how the fuzzer says, and that keeps its medium apart from its cache.
//!
//! An operation is in flight until [`Event::Complete`] ends it, or is done as it is submitted: see [`Event::AtOnce`].

mod choice;

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::{Extent, SECTOR_BYTES, Tag};

use crate::contents::value;
use crate::memory::Memory;

use choice::{BUSY_AFTER, STAGING_BYTES, SUCCEEDS};

pub use choice::{Event, Kind};

const SECTOR: usize = SECTOR_BYTES as usize;

/// An operation that was accepted and has not been polled.
struct Flying {
    handle: u16,
    tag: Tag,
    op: Op,
    segments: Vec<Segment>,
    /// For a flush: what was polled by the time it was submitted.
    covers: u64,
    /// Its place among all operations.
    number: u64,
}

/// A value that is not on the medium yet.
struct Cached {
    value: u64,
    number: u64,
    /// When its completion was polled.
    polled: Option<u64>,
}

struct Sector {
    medium: u64,
    /// Newer values, oldest first.
    cached: Vec<Cached>,
}

/// The disk behind all handles.
pub struct Disk {
    info: Info,
    bytes: Vec<u8>,
    sectors: Vec<Sector>,
    flying: Vec<Flying>,
    done: VecDeque<(u16, Op, u64, Completion)>,
    busy: bool,
    prompt: bool,
    /// Bit n: the n-th operation from now on is done at once. It rotates.
    at_once: u8,
    /// How the next one that is done at once ends.
    how: u8,
    latched: bool,
    /// Holds that have begun: handle, slot, sectors.
    holds: Vec<(u16, u16, Extent)>,
    submitted: u64,
    polled: u64,
}

impl Disk {
    /// A disk of zeroes, and handles to it.
    pub fn open(kind: Kind, sectors: u64, handles: u16) -> Vec<Handle> {
        let handles = Self::with_info(kind.info(sectors), handles);
        handles[0].disk.borrow_mut().at_once = kind.at_once();
        handles
    }

    /// A disk of zeroes described by `info`, and handles to it.
    pub fn with_info(info: Info, handles: u16) -> Vec<Handle> {
        let count = usize::try_from(info.sectors).expect("small");
        let disk = Rc::new(RefCell::new(Self {
            info,
            bytes: vec![0; count * SECTOR],
            sectors: (0..count).map(|_| Sector { medium: 0, cached: Vec::new() }).collect(),
            flying: Vec::new(),
            done: VecDeque::new(),
            busy: false,
            prompt: false,
            at_once: 0,
            how: SUCCEEDS,
            latched: false,
            holds: Vec::new(),
            submitted: 0,
            polled: 0,
        }));
        let handle = |number| Handle { disk: Rc::clone(&disk), number, info, staging: Staging::default() };
        (0..handles).map(handle).collect()
    }

    /// What it is.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Whether a durable operation has failed.
    pub fn is_latched(&self) -> bool {
        self.latched
    }

    /// Whether it takes nothing.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// The operations that were accepted and have not ended, with handle and slot.
    pub fn flying(&self) -> impl Iterator<Item = (u16, Tag, Op)> {
        self.flying.iter().map(|flying| (flying.handle, flying.tag, flying.op))
    }

    /// Whether an operation of this slot has not ended, or not been polled for.
    pub fn has_operation(&self, handle: u16, slot: u16) -> bool {
        let flying = self.flying.iter().map(|flying| (flying.handle, flying.tag.slot));
        let done = self.done.iter().map(|(handle, _, _, completion)| (*handle, completion.tag.slot));
        flying.chain(done).any(|used| used == (handle, slot))
    }

    /// Whether every operation has ended and was polled for.
    pub fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.done.is_empty()
    }

    /// Whether sectors are kept from other handles.
    pub fn is_held(&self) -> bool {
        !self.holds.is_empty()
    }

    /// Whether an operation waits for a hold to end.
    fn waits(&self, flying: &Flying) -> bool {
        let Some(extent) = flying.op.extent() else { return false };
        let is_hold = matches!(flying.op, Op::Hold { .. });
        self.holds.iter().any(|&(handle, _, held)| {
            let other = is_hold || flying.op.mutates() && handle != flying.handle;
            other && held.overlaps(extent)
        })
    }

    /// What the medium holds, sector by sector: what is there after a power cut.
    pub fn medium(&self) -> impl Iterator<Item = u64> {
        self.sectors.iter().map(|sector| sector.medium)
    }

    /// What a read would return.
    pub fn contents(&self) -> impl Iterator<Item = u64> {
        self.bytes.chunks_exact(SECTOR).map(value)
    }

    /// Ends an operation in flight.
    fn complete(&mut self, memory: &Memory, staging: &mut Staging, which: u8, how: u8) {
        let free: Vec<_> = (0..self.flying.len()).filter(|&at| !self.waits(&self.flying[at])).collect();
        if free.is_empty() {
            return;
        }
        let flying = self.flying.remove(free[usize::from(which) % free.len()]);
        let result = self.finish(memory, staging, &flying, how);
        let completion = Completion { tag: flying.tag, result };
        self.done.push_back((flying.handle, flying.op, flying.number, completion));
    }

    /// Does an operation, and fails what is durable from the first failure on.
    fn finish(
        &mut self,
        memory: &Memory,
        staging: &mut Staging,
        flying: &Flying,
        how: u8,
    ) -> Result<(), IoError> {
        let refused = self.latched && flying.op.fails_when_latched();
        let result = match how % 16 {
            _ if refused => Err(IoErrorKind::Latched),
            0 => Err([IoErrorKind::Medium, IoErrorKind::NoSpace][usize::from(how >> 4) % 2]),
            1 => self.run(memory, staging, flying, how).and(Err(IoErrorKind::Medium)),
            _ => self.run(memory, staging, flying, how),
        };
        let durable = match flying.op {
            Op::Flush | Op::Write { fua: true, .. } | Op::StoreState { .. } => true,
            Op::Write { .. } => self.info.cache == Cache::WriteThrough,
            Op::WriteZeroes { .. } | Op::Discard { .. } => self.info.range_stable,
            Op::Read { .. } | Op::Hold { .. } | Op::LoadState { .. } => false,
        };
        self.latched |= durable && matches!(result, Err(IoErrorKind::Medium | IoErrorKind::NoSpace));
        result.map_err(IoError::new)
    }

    fn run(
        &mut self,
        memory: &Memory,
        staging: &mut Staging,
        flying: &Flying,
        how: u8,
    ) -> Result<(), IoErrorKind> {
        let slot = flying.tag.slot;
        match flying.op {
            Op::Read { extent } => {
                let mut from = &self.bytes[start(extent)..];
                for segment in &flying.segments {
                    let (piece, rest) = from.split_at(segment.len() as usize);
                    match *segment {
                        Segment::Guest { addr, .. } => memory.write(addr, piece).map_err(memory_error)?,
                        Segment::Staging { offset, len } => {
                            staging.piece(slot, offset, len).copy_from_slice(piece);
                        }
                    }
                    from = rest;
                }
            }
            Op::Write { extent, fua } => {
                let mut into = &mut self.bytes[start(extent)..];
                for segment in &flying.segments {
                    let (piece, rest) = into.split_at_mut(segment.len() as usize);
                    match *segment {
                        Segment::Guest { addr, .. } => memory.read(addr, piece).map_err(memory_error)?,
                        Segment::Staging { offset, len } => {
                            piece.copy_from_slice(staging.piece(slot, offset, len));
                        }
                    }
                    into = rest;
                }
                self.changed(extent, flying.number, fua || self.info.cache == Cache::WriteThrough);
            }
            Op::WriteZeroes { extent, .. } => self.zero(extent, flying.number),
            Op::Discard { extent } if how & 0x80 != 0 => self.zero(extent, flying.number),
            Op::Discard { .. } => {}
            Op::Flush => self.flush(flying.covers),
            Op::Hold { extent } => self.holds.push((flying.handle, slot, extent)),
            Op::LoadState { .. } | Op::StoreState { .. } => return Err(IoErrorKind::Unsupported),
        }
        Ok(())
    }

    fn zero(&mut self, extent: Extent, number: u64) {
        let from = start(extent);
        self.bytes[from..from + bytes(extent)].fill(0);
        self.changed(extent, number, self.info.range_stable);
    }

    fn changed(&mut self, extent: Extent, number: u64, stable: bool) {
        for index in sectors(extent) {
            let value = value(&self.bytes[index * SECTOR..(index + 1) * SECTOR]);
            let sector = &mut self.sectors[index];
            if stable {
                *sector = Sector { medium: value, cached: Vec::new() };
            } else {
                sector.cached.push(Cached { value, number, polled: None });
            }
        }
    }

    /// Exactly what it must: the writes that were polled before the flush was submitted, and what they overwrote.
    fn flush(&mut self, covers: u64) {
        if self.info.cache == Cache::Unsafe {
            return;
        }
        for sector in &mut self.sectors {
            let covered = |cached: &Cached| cached.polled.is_some_and(|polled| polled <= covers);
            if let Some(last) = sector.cached.iter().rposition(covered) {
                sector.medium = sector.cached[last].value;
                sector.cached.drain(..=last);
            }
        }
    }

    /// Whether an operation of this slot uses its staging buffer.
    fn is_staged(&self, handle: u16, slot: u16) -> bool {
        self.flying.iter().any(|flying| {
            let staged = flying.segments.iter().any(|segment| matches!(segment, Segment::Staging { .. }));
            staged && (flying.handle, flying.tag.slot) == (handle, slot)
        })
    }

    fn submit(
        &mut self,
        memory: &Memory,
        staging: &mut Staging,
        (handle, tag): (u16, Tag),
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        if self.busy {
            return Err(Busy);
        }
        let taken = self.has_operation(handle, tag.slot);
        assert!(!taken, "{tag:?} has an operation in flight, and now {op:?}");
        self.check((handle, tag), op, segments);
        self.submitted += 1;
        let (covers, number) = (self.polled, self.submitted);
        let flying = Flying { handle, tag, op, segments: segments.to_vec(), covers, number };
        let at_once = self.at_once & 1 != 0 && !self.waits(&flying);
        self.at_once = self.at_once.rotate_right(1);
        if !at_once {
            self.flying.push(flying);
            return Ok(Submission::Pending);
        }
        let how = self.how;
        self.how = how & !BUSY_AFTER | SUCCEEDS;
        let result = self.finish(memory, staging, &flying, how);
        self.was_polled(op, number);
        self.busy = how & BUSY_AFTER != 0;
        Ok(Submission::Done(result))
    }

    /// What the models promise of every operation.
    fn check(&self, at: (u16, Tag), op: Op, segments: &[Segment]) {
        let info = &self.info;
        if let Some(extent) = op.extent() {
            assert!(extent.fits(info.sectors), "{op:?} leaves the disk");
            assert_ne!(extent.sectors, 0, "{op:?} is of nothing");
        }
        assert!(!(op.mutates() && info.read_only), "{op:?} on a read-only disk");
        if let (Op::Hold { .. }, handle, slot) = (op, at.0, at.1.slot) {
            let again = self.holds.iter().any(|&(of, held_by, _)| (of, held_by) == (handle, slot));
            assert!(!again, "slot {slot} holds already");
        }
        assert!(info.fua || !matches!(op, Op::Write { fua: true, .. }), "FUA where it is not honoured");
        if let Op::Read { extent } | Op::Write { extent, .. } = op {
            assert_eq!(total_bytes(segments), extent.bytes(), "{op:?}");
            assert!(extent.bytes() <= Some(u64::from(info.transfer_max_bytes)), "{op:?} is too long");
            for segment in segments {
                let end = match *segment {
                    Segment::Guest { .. } => 0,
                    Segment::Staging { offset, len } => u64::from(offset) + u64::from(len),
                };
                assert!(!segment.is_empty() && end <= STAGING_BYTES as u64, "{segment:?} of {op:?}");
            }
        } else {
            assert!(segments.is_empty(), "{op:?} moves no data");
        }
    }

    fn poll(&mut self, memory: &Memory, staging: &mut Staging, handle: u16) -> Option<Completion> {
        if self.prompt {
            while !self.flying.iter().all(|flying| self.waits(flying)) {
                self.complete(memory, staging, 0, SUCCEEDS);
            }
        }
        let index = self.done.iter().position(|(of, ..)| *of == handle)?;
        let (_, op, number, completion) = self.done.remove(index)?;
        self.was_polled(op, number);
        Some(completion)
    }

    /// The owner knows how an operation ended: a later flush covers it.
    fn was_polled(&mut self, op: Op, number: u64) {
        self.polled += 1;
        if let (true, Some(extent)) = (op.mutates(), op.extent()) {
            for sector in &mut self.sectors[sectors(extent)] {
                let own = sector.cached.iter_mut().filter(|cached| cached.number == number);
                own.for_each(|cached| cached.polled = Some(self.polled));
            }
        }
    }
}

/// One of the handles to a disk: that of a queue or a drive.
pub struct Handle {
    disk: Rc<RefCell<Disk>>,
    number: u16,
    info: Info,
    staging: Staging,
}

/// One buffer for each slot, as they are used.
#[derive(Default)]
struct Staging(Vec<Vec<u8>>);

impl Staging {
    fn buffer(&mut self, slot: u16) -> &mut [u8] {
        let slot = usize::from(slot);
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, Vec::new);
        }
        let buffer = &mut self.0[slot];
        buffer.resize(STAGING_BYTES, 0);
        buffer
    }

    fn piece(&mut self, slot: u16, offset: u32, len: u32) -> &mut [u8] {
        &mut self.buffer(slot)[offset as usize..][..len as usize]
    }
}

impl Handle {
    /// The disk.
    pub fn disk(&self) -> Ref<'_, Disk> {
        self.disk.borrow()
    }

    /// Lets `event` happen.
    pub fn happen(&mut self, memory: &Memory, event: Event) {
        let mut disk = self.disk.borrow_mut();
        match event {
            Event::Complete { which, how } => disk.complete(memory, &mut self.staging, which, how),
            Event::Busy { on } => disk.busy = on,
            Event::Prompt { on } => disk.prompt = on,
            Event::AtOnce { which, how } => (disk.at_once, disk.how) = (which, how),
        }
    }

    /// Whether nothing that was submitted is still to land.
    pub fn has_landed(&self) -> bool {
        self.disk().flying().count() == 0
    }

    /// Ends what is in flight, and from now on everything well, at once or as it is polled for.
    pub fn settle(&mut self, memory: &Memory) {
        self.happen(memory, Event::Busy { on: false });
        self.happen(memory, Event::Prompt { on: true });
        let mut disk = self.disk.borrow_mut();
        disk.how = disk.how & !BUSY_AFTER | SUCCEEDS;
    }
}

impl Storage<Memory> for Handle {
    fn info(&self) -> &Info {
        &self.info
    }

    fn submit(
        &mut self,
        memory: &Memory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let at = (self.number, tag);
        self.disk.borrow_mut().submit(memory, &mut self.staging, at, op, segments)
    }

    fn poll(&mut self, memory: &Memory) -> Option<Completion> {
        self.disk.borrow_mut().poll(memory, &mut self.staging, self.number)
    }

    fn release_hold(&mut self, slot: u16) {
        self.disk.borrow_mut().holds.retain(|&(handle, by, _)| (handle, by) != (self.number, slot));
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        if self.disk().is_staged(self.number, slot) { &mut [] } else { self.staging.buffer(slot) }
    }
}

fn memory_error(MemoryError: MemoryError) -> IoErrorKind {
    IoErrorKind::Memory
}

fn start(extent: Extent) -> usize {
    usize::try_from(extent.start.0).expect("checked") * SECTOR
}

fn bytes(extent: Extent) -> usize {
    usize::try_from(extent.sectors).expect("checked") * SECTOR
}

fn sectors(extent: Extent) -> std::ops::Range<usize> {
    start(extent) / SECTOR..(start(extent) + bytes(extent)) / SECTOR
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR_0: Extent = Extent::new(0, 1);

    fn submit(disk: &mut Handle, slot: u16, op: Op) -> Submission {
        let tag = Tag { slot, generation: 0 };
        let segments = [Segment::Staging { offset: 0, len: SECTOR_BYTES }];
        let segments = if op == Op::Flush { &[][..] } else { &segments };
        disk.submit(&Memory::new(0), tag, op, segments).expect("it is not busy")
    }

    #[test]
    fn a_write_done_at_once_is_covered_by_the_next_flush_and_not_by_one_in_flight() {
        let (mut disk, memory) = (Disk::open(Kind::WRITE_BACK, 1, 1).remove(0), Memory::new(0));
        // Only the second operation is done at once.
        disk.happen(&memory, Event::AtOnce { which: 0b10, how: SUCCEEDS });
        disk.staging(1).fill(1);
        assert_eq!(submit(&mut disk, 0, Op::Flush), Submission::Pending);
        assert_eq!(
            submit(&mut disk, 1, Op::Write { extent: SECTOR_0, fua: false }),
            Submission::Done(Ok(()))
        );
        disk.happen(&memory, Event::Complete { which: 0, how: SUCCEEDS });
        let on_medium = |disk: &Handle| disk.disk().medium().next().expect("a sector") != 0;
        assert!(!on_medium(&disk));
        disk.happen(&memory, Event::AtOnce { which: 1, how: SUCCEEDS | BUSY_AFTER });
        assert_eq!(submit(&mut disk, 1, Op::Flush), Submission::Done(Ok(())));
        assert!(on_medium(&disk) && disk.disk().is_busy());
    }

    #[test]
    fn of_those_done_at_once_the_first_may_fail() {
        let (mut disk, memory) = (Disk::open(Kind::AT_ONCE, 1, 1).remove(0), Memory::new(0));
        disk.happen(&memory, Event::AtOnce { which: 0xff, how: 0 });
        let write = Op::Write { extent: SECTOR_0, fua: false };
        let failed = Submission::Done(Err(IoError::new(IoErrorKind::Medium)));
        assert_eq!(submit(&mut disk, 0, write), failed);
        assert_eq!(submit(&mut disk, 0, write), Submission::Done(Ok(())));
        assert!(!disk.disk().is_latched());
    }
}
