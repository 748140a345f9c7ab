//! A SCSI logical unit, without a transport.

use std::ops::Range;

use blk_core::op::Segment;
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Outcome, Polled, SegmentList, Task, Transport,
};

use crate::front::{BYTES, DATA, Front, SECTORS};
use crate::{DEPTH, Operation};

/// A SCSI logical unit: 10-byte command blocks.
pub(crate) struct Scsi {
    unit: LogicalUnit<DEPTH>,
    task: Task,
}

/// The data is one piece of guest memory.
struct OnePage;

impl Transport for OnePage {
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

impl Scsi {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let (opcode, out_bytes, in_bytes) = match operation {
            Operation::Read => (0x28, 0, BYTES),
            Operation::Write => (0x2a, BYTES, 0),
            Operation::Flush => (0x35, 0, 0),
        };
        let count = if operation == Operation::Flush { 0 } else { SECTORS };
        let task = |cdb: &[u8], out_bytes: u32, in_bytes: u32| Task {
            tag: 1,
            nexus: scsi_model::Nexus::default(),
            attribute: Attribute::Simple,
            cdb: Cdb::new(cdb),
            data_out_bytes: out_bytes.into(),
            data_in_bytes: in_bytes.into(),
        };
        let config = Config::new("BLK", "bench disk", "1", "0");
        let unit = LogicalUnit::new(config, storage[0].info()).expect("512-byte blocks");
        let mut scsi = Self { unit, task: task(&[0; 6], 0, 0) };
        // TEST UNIT READY takes the unit attention.
        let ended = scsi.execute(memory, &mut storage[0]);
        assert!(matches!(ended, Some(Outcome::CheckCondition(_))));
        scsi.task = task(&[opcode, 0, 0, 0, 0, 8, 0, 0, count, 0], out_bytes, in_bytes);
        scsi
    }

    fn execute<S: Storage<MappedMemory>>(
        &mut self,
        memory: &MappedMemory,
        storage: &mut S,
    ) -> Option<Outcome> {
        let mut outcome = None;
        self.unit.enqueue(self.task).ok()?;
        loop {
            match self.unit.poll(memory, storage, &mut OnePage) {
                Polled::Ended(ended) => outcome = Some(ended.outcome),
                Polled::Again => {}
                Polled::Idle => return outcome,
            }
        }
    }
}

impl<S: Storage<MappedMemory>> Front<S> for Scsi {
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        let outcome = self.execute(memory, &mut storage[0]);
        assert!(matches!(outcome, Some(Outcome::Good)));
    }

    fn check(&self, _memory: &MappedMemory) {
        assert!(self.unit.is_idle());
    }
}
