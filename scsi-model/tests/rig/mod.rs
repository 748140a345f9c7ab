//! A disk on a bench: memory, a storage whose completions can be held back, a transport with one buffer.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, Storage, Submission};
use blk_core::units::{GuestAddr, Tag};
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, Ended, LogicalUnit, Outcome, Polled, SegmentList, Task,
    Transport,
};

pub const BLOCK: usize = 512;
/// Where the data of the task with a tag is: `BUFFER` bytes from `tag * BUFFER` on.
pub const BUFFER: usize = 0x1_0000;
pub const TAGS: usize = 8;

pub struct Memory(pub RefCell<Vec<u8>>);

impl GuestMemory for Memory {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(addr.0).map_err(|_| MemoryError)?;
        let end = start.checked_add(into.len()).ok_or(MemoryError)?;
        into.copy_from_slice(self.0.borrow().get(start..end).ok_or(MemoryError)?);
        Ok(())
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        let start = usize::try_from(addr.0).map_err(|_| MemoryError)?;
        let end = start.checked_add(from.len()).ok_or(MemoryError)?;
        self.0.borrow_mut().get_mut(start..end).ok_or(MemoryError)?.copy_from_slice(from);
        Ok(())
    }

    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        let mut bytes = [0; 2];
        self.read(addr, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        self.write(addr, &value.to_le_bytes())
    }

    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        addr.0.checked_add(len).is_some_and(|end| end <= self.0.borrow().len() as u64)
    }
}

/// A disk of 1 MiB that does what it is asked when its completion is let go.
pub struct Disk {
    pub info: Info,
    /// A size that is taken over with the next poll.
    pub resized: Option<u64>,
    pub bytes: Vec<u8>,
    pub staging: Vec<Vec<u8>>,
    pub log: Vec<Op>,
    /// Operations are completed by [`Disk::release`] only.
    pub held: bool,
    /// Operations that may be held back at once; more is busy.
    pub room: usize,
    /// Errors for the next operations, in order.
    pub errors: VecDeque<Option<IoError>>,
    pub waiting: Vec<(Tag, Op, Vec<Segment>)>,
    done: VecDeque<Completion>,
    /// Changes what is written, once: a disk that lies.
    pub corrupt: bool,
    /// Which operations are done when they are submitted.
    pub at_once: AtOnce,
    /// Slots that hold sectors.
    pub holds: Vec<u16>,
}

/// Which operations a disk does when they are submitted, unless it holds them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtOnce {
    None,
    All,
    /// Some, by a seed that is not 0.
    Some(u64),
}

impl AtOnce {
    fn next(&mut self) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Some(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                *state & 1 == 0
            }
        }
    }
}

impl Disk {
    pub fn new(cache: Cache) -> Self {
        let info = Info {
            sectors: 2048,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            optimal_io_bytes: 0,
            read_only: false,
            rotational: false,
            cache,
            fua: true,
            range_stable: false,
            discard: true,
            staging_bytes: 4096,
            segments_max: 16,
            transfer_max_bytes: 1 << 16,
            holds: true,
            state_bytes: 0,
        };
        Self {
            info,
            resized: None,
            bytes: (0..2048).flat_map(|lba: usize| [lba as u8; BLOCK]).collect(),
            staging: vec![vec![0; 4096]; TAGS],
            log: Vec::new(),
            held: false,
            room: usize::MAX,
            errors: VecDeque::new(),
            waiting: Vec::new(),
            done: VecDeque::new(),
            corrupt: false,
            at_once: AtOnce::None,
            holds: Vec::new(),
        }
    }

    /// Completes the `index`th operation that is held back.
    pub fn release(&mut self, memory: &Memory, index: usize) {
        let (tag, op, segments) = self.waiting.remove(index);
        self.finish(memory, tag, op, &segments);
    }

    fn finish(&mut self, memory: &Memory, tag: Tag, op: Op, segments: &[Segment]) {
        let result = self.result(memory, tag, op, segments);
        self.done.push_back(Completion { tag, result });
    }

    fn result(&mut self, memory: &Memory, tag: Tag, op: Op, segments: &[Segment]) -> Result<(), IoError> {
        match self.errors.pop_front().flatten() {
            Some(error) => Err(error),
            None => {
                self.run(memory, tag, op, segments);
                Ok(())
            }
        }
    }

    fn run(&mut self, memory: &Memory, tag: Tag, op: Op, segments: &[Segment]) {
        let Some(extent) = op.extent() else { return };
        if let Op::Hold { .. } = op {
            return self.holds.push(tag.slot);
        }
        assert!(extent.fits(self.info.sectors), "the model checks ranges");
        let start = extent.offset_bytes().unwrap() as usize;
        let len = extent.bytes().unwrap() as usize;
        let total: u32 = segments.iter().map(Segment::len).sum();
        match op {
            Op::Read { .. } | Op::Write { .. } => assert_eq!(total as usize, len, "segments add up"),
            _ => assert!(segments.is_empty()),
        }
        assert!(segments.len() <= usize::from(self.info.segments_max));
        let mut at = start;
        for segment in segments {
            let len = segment.len() as usize;
            let disk = &mut self.bytes[at..at + len];
            match (op, *segment) {
                (Op::Read { .. }, Segment::Guest { addr, .. }) => memory.write(addr, disk).unwrap(),
                (Op::Read { .. }, Segment::Staging { offset, .. }) => {
                    self.staging[usize::from(tag.slot)][offset as usize..][..len].copy_from_slice(disk);
                }
                (_, Segment::Guest { addr, .. }) => memory.read(addr, disk).unwrap(),
                (_, Segment::Staging { offset, .. }) => {
                    disk.copy_from_slice(&self.staging[usize::from(tag.slot)][offset as usize..][..len]);
                }
            }
            at += len;
        }
        if let Op::WriteZeroes { .. } = op {
            self.bytes[start..start + len].fill(0);
        }
        if matches!(op, Op::Write { .. }) && std::mem::take(&mut self.corrupt) {
            self.bytes[start + len - 1] ^= 1;
        }
    }
}

impl Storage<Memory> for Disk {
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
        if self.waiting.len() >= self.room {
            return Err(Busy);
        }
        self.log.push(op);
        if self.at_once.next() {
            return Ok(Submission::Done(self.result(memory, tag, op, segments)));
        }
        if self.held {
            self.waiting.push((tag, op, segments.to_vec()));
        } else {
            self.finish(memory, tag, op, segments);
        }
        Ok(Submission::Pending)
    }

    fn poll(&mut self, _: &Memory) -> Option<Completion> {
        if let Some(sectors) = self.resized.take() {
            self.info.sectors = sectors;
        }
        self.done.pop_front()
    }

    fn release_hold(&mut self, slot: u16) {
        self.holds.retain(|of| *of != slot);
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        let len = self.info.staging_bytes as usize;
        self.staging.get_mut(usize::from(slot)).map_or(&mut [], |buffer| &mut buffer[..len])
    }
}

/// Cuts every buffer into pieces of `piece` bytes.
pub struct Pieces {
    pub piece: u64,
    /// Tasks that a device before this one has begun.
    pub begun: Vec<u64>,
    /// Tasks that this one has begun.
    pub noted: Vec<u64>,
}

impl Transport for Pieces {
    fn segments(
        &mut self,
        tag: u64,
        _: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let mut at = range.start;
        while at < range.end && !list.is_full() {
            let end = ((at / self.piece + 1) * self.piece).min(range.end);
            let addr = GuestAddr(tag * BUFFER as u64 + at);
            list.push(Segment::Guest { addr, len: (end - at) as u32 }).map_err(|_| DataError)?;
            at = end;
        }
        Ok(())
    }

    fn has_begun(&self, tag: u64) -> bool {
        self.begun.contains(&tag)
    }

    fn note_begun(&mut self, tag: u64) {
        self.noted.push(tag);
    }
}

pub struct Rig {
    pub unit: LogicalUnit<TAGS>,
    pub memory: Memory,
    pub disk: Disk,
    pub transport: Pieces,
}

/// How a command went: its outcome, and the bytes that moved.
pub type Went = (Outcome, u64);

impl Rig {
    /// A disk with a volatile cache whose unit attention has been heard.
    pub fn new() -> Self {
        Self::on(Disk::new(Cache::WriteBack))
    }

    pub fn on(disk: Disk) -> Self {
        let mut rig = Self::fresh(disk);
        let heard = rig.sense(&[0; 6], &[]);
        assert_eq!(heard, (0x6, 0x2900));
        rig
    }

    /// As after power-on.
    pub fn fresh(disk: Disk) -> Self {
        let config =
            Config { naa: Some(0x5000_0000_0000_0001), ..Config::new("BLK", "bench disk", "1", "S123") };
        Self {
            unit: LogicalUnit::new(config, &disk.info).unwrap(),
            memory: Memory(RefCell::new(vec![0xee; TAGS * BUFFER])),
            disk,
            transport: Pieces { piece: 4096, begun: Vec::new(), noted: Vec::new() },
        }
    }

    pub fn enqueue(&mut self, tag: u64, attribute: Attribute, cdb: &[u8], out: &[u8], in_bytes: u64) {
        self.memory.write(GuestAddr(tag * BUFFER as u64), out).unwrap();
        let task = Task {
            tag,
            nexus: scsi_model::Nexus::default(),
            attribute,
            cdb: Cdb::new(cdb),
            data_out_bytes: out.len() as u64,
            data_in_bytes: in_bytes,
        };
        self.unit.enqueue(task).unwrap();
    }

    /// Polls until nothing more happens, and returns what ended.
    pub fn poll(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        loop {
            match self.unit.poll(&self.memory, &mut self.disk, &mut self.transport) {
                Polled::Ended(one) => ended.push(one),
                Polled::Again => {}
                Polled::Idle => return ended,
            }
        }
    }

    /// Tags of what ended, in order.
    pub fn tags(&mut self) -> Vec<u64> {
        self.poll().iter().map(|ended| ended.tag).collect()
    }

    fn run(&mut self, cdb: &[u8], out: &[u8], in_bytes: u64) -> Went {
        self.enqueue(0, Attribute::Simple, cdb, out, in_bytes);
        let mut ended = self.poll();
        assert_eq!(ended.len(), 1, "{ended:?}");
        let ended = ended.remove(0);
        (ended.outcome, ended.transferred_bytes)
    }

    /// Data of a command that ends with GOOD. The buffer beyond it must be untouched.
    pub fn data_in(&mut self, cdb: &[u8], room: usize) -> Vec<u8> {
        self.memory.0.borrow_mut()[..BUFFER].fill(0xee);
        let (outcome, moved) = self.run(cdb, &[], room as u64);
        assert_eq!(outcome, Outcome::Good, "{cdb:02x?}");
        assert!(moved <= room as u64);
        let memory = self.memory.0.borrow();
        assert!(memory[moved as usize..BUFFER].iter().all(|byte| *byte == 0xee), "nothing beyond is touched");
        memory[..moved as usize].to_vec()
    }

    /// A command that takes data and ends with GOOD.
    pub fn data_out(&mut self, cdb: &[u8], out: &[u8]) {
        let (outcome, moved) = self.run(cdb, out, 0);
        assert_eq!(outcome, Outcome::Good, "{cdb:02x?}");
        assert_eq!(moved, out.len() as u64, "{cdb:02x?}");
    }

    pub fn outcome(&mut self, cdb: &[u8], out: &[u8], in_bytes: u64) -> Outcome {
        self.run(cdb, out, in_bytes).0
    }

    pub fn sense_bytes(&mut self, cdb: &[u8], out: &[u8]) -> Vec<u8> {
        match self.run(cdb, out, BUFFER as u64).0 {
            Outcome::CheckCondition(sense) => sense.to_vec(),
            other => panic!("{cdb:02x?}: {other:?}"),
        }
    }

    /// Sense key, and additional sense code with its qualifier, of a command that fails.
    pub fn sense(&mut self, cdb: &[u8], out: &[u8]) -> (u8, u16) {
        let sense = self.sense_bytes(cdb, out);
        match sense[0] & 0x7f {
            0x70 | 0x71 => (sense[2] & 0xf, u16::from_be_bytes([sense[12], sense[13]])),
            0x72 | 0x73 => (sense[1] & 0xf, u16::from_be_bytes([sense[2], sense[3]])),
            other => panic!("response code {other:#x}"),
        }
    }

    /// What was asked of the storage since the last call.
    pub fn log(&mut self) -> Vec<Op> {
        std::mem::take(&mut self.disk.log)
    }

    pub fn sector(&self, lba: usize) -> Vec<u8> {
        self.disk.bytes[lba * BLOCK..][..BLOCK].to_vec()
    }
}
