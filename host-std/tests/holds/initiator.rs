//! A SCSI initiator with a logical unit of its own over a handle.

use std::ops::Range;
use std::time::{Duration, Instant};

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Completion, Info, Storage, Submission};
use blk_core::units::{GuestAddr, Tag};
use host_std::backend::{FileBackend, FileStorage};
use host_std::memory::MappedMemory;
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Outcome, Polled, SegmentList, Task, Transport,
};

use crate::common;

pub(crate) const BLOCK: usize = 512;
const DATA: u64 = 0x1000;

/// What becomes of the holds of a unit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    Kept,
    /// Granted at once, and worth nothing: the defect that the tests must find.
    Granted,
}

pub(crate) struct Initiator {
    unit: Box<LogicalUnit<4>>,
    storage: HeldOrNot,
    memory: MappedMemory,
}

impl Initiator {
    pub(crate) fn new(backend: &FileBackend, holds: Holds) -> Self {
        let storage = HeldOrNot { inner: backend.handle().unwrap(), holds };
        let config = Config::new("BLK", "held disk", "1", "0");
        let unit = Box::new(LogicalUnit::new(config, storage.inner.info()).unwrap());
        let mut initiator = Self { unit, storage, memory: common::memory() };
        // Takes the unit attention.
        let attention = initiator.execute(&[0; 6], 0, 0);
        assert!(matches!(attention, Outcome::CheckCondition(_)));
        initiator
    }

    pub(crate) fn read(&mut self, lba: u32) -> Block {
        assert_eq!(self.execute(&ten(0x28, lba), 0, BLOCK), Outcome::Good);
        Block(self.data().try_into().unwrap())
    }

    pub(crate) fn write(&mut self, lba: u32, block: &Block) {
        self.memory.write(GuestAddr(DATA), &block.0).unwrap();
        assert_eq!(self.execute(&ten(0x2a, lba), BLOCK, 0), Outcome::Good);
    }

    pub(crate) fn or_write(&mut self, lba: u32, block: &Block) {
        self.memory.write(GuestAddr(DATA), &block.0).unwrap();
        assert_eq!(self.execute(&sixteen(0x8b, lba), BLOCK, 0), Outcome::Good);
    }

    /// Returns whether what is there was what is compared.
    pub(crate) fn compare_and_write(&mut self, lba: u32, compare: &Block, write: &Block) -> bool {
        self.memory.write(GuestAddr(DATA), &[compare.0, write.0].concat()).unwrap();
        match self.execute(&sixteen(0x89, lba), 2 * BLOCK, 0) {
            Outcome::Good => true,
            Outcome::CheckCondition(_) => false,
            other => panic!("{other:?}"),
        }
    }

    /// Adds 1 to the counter of a block, however often somebody else comes before.
    pub(crate) fn increment(&mut self, lba: u32) {
        loop {
            let before = self.read(lba);
            if self.compare_and_write(lba, &before, &before.successor(1)) {
                return;
            }
        }
    }

    fn data(&self) -> Vec<u8> {
        common::peek(&self.memory, DATA, BLOCK)
    }

    fn execute(&mut self, cdb: &[u8], out_bytes: usize, in_bytes: usize) -> Outcome {
        let task = Task {
            tag: 1,
            nexus: scsi_model::Nexus::default(),
            attribute: Attribute::Simple,
            cdb: Cdb::new(cdb),
            data_out_bytes: out_bytes as u64,
            data_in_bytes: in_bytes as u64,
        };
        self.unit.enqueue(task).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match self.unit.poll(&self.memory, &mut self.storage, &mut OneBuffer) {
                Polled::Ended(ended) => return ended.outcome,
                Polled::Again => {}
                Polled::Idle => {
                    assert!(Instant::now() < deadline, "a command waits for ever");
                    self.storage.inner.wait(Some(Duration::from_millis(100)));
                }
            }
        }
    }
}

fn ten(opcode: u8, lba: u32) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    [opcode, 0, a, b, c, d, 0, 0, 1, 0]
}

fn sixteen(opcode: u8, lba: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[6..10].copy_from_slice(&lba.to_be_bytes());
    // ORWRITE counts in four bytes, COMPARE AND WRITE in the last of these.
    cdb[13] = 1;
    cdb
}

pub(crate) struct Block(pub(crate) [u8; BLOCK]);

impl Block {
    pub(crate) fn new(counter: u64) -> Self {
        let mut block = Self::filled(0);
        block.0[..8].copy_from_slice(&counter.to_le_bytes());
        block
    }

    pub(crate) fn filled(value: u8) -> Self {
        Self([value; BLOCK])
    }

    pub(crate) fn with(byte: usize, value: u8) -> Self {
        let mut block = Self::filled(0);
        block.0[byte] = value;
        block
    }

    pub(crate) fn counter(&self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().unwrap())
    }

    pub(crate) fn successor(&self, add: u64) -> Self {
        let mut block = Self(self.0);
        block.0[..8].copy_from_slice(&self.counter().wrapping_add(add).to_le_bytes());
        block
    }
}

/// The data is one piece of guest memory.
struct OneBuffer;

impl Transport for OneBuffer {
    fn segments(
        &mut self,
        _tag: u64,
        _direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let len = (range.end - range.start) as u32;
        list.push(Segment::Guest { addr: GuestAddr(DATA + range.start), len }).map_err(|_| DataError)
    }
}

struct HeldOrNot {
    inner: FileStorage,
    holds: Holds,
}

impl Storage<MappedMemory> for HeldOrNot {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        match op {
            Op::Hold { .. } if self.holds == Holds::Granted => Ok(Submission::Done(Ok(()))),
            _ => self.inner.submit(memory, tag, op, segments),
        }
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        self.inner.poll(memory)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        Storage::<MappedMemory>::staging(&mut self.inner, slot)
    }

    fn release_hold(&mut self, slot: u16) {
        Storage::<MappedMemory>::release_hold(&mut self.inner, slot);
    }
}
