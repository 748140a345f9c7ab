//! A SCSI disk over a RAM disk: a transport in ten lines, and a driver that asks it who it is.
//!
//! `cargo run -p scsi-model --example inquiry`

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "an example may stop where it goes wrong"
)]

use std::ops::Range;

use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::op::Segment;
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::{Cache, Storage};
use blk_core::units::GuestAddr;
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Nexus, Polled, SegmentList, Task, Transport,
};

/// One data buffer, at address 0.
struct OneBuffer;

impl Transport for OneBuffer {
    fn segments(
        &mut self,
        _tag: u64,
        _: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let segment = Segment::Guest { addr: GuestAddr(range.start), len: (range.end - range.start) as u32 };
        list.push(segment).map_err(|_| DataError)
    }
}

fn main() {
    let (mut ram, mut image, mut staging) = (vec![0; 1 << 16], vec![0; 1 << 20], [0; 8192]);
    let memory = CellMemory::new(GuestAddr(0), &mut ram);
    let mut disk = RamDisk::<4>::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut staging);
    let info = *Storage::<CellMemory<'_>>::info(&disk);
    let mut unit = LogicalUnit::<4>::new(Config::new("BLK", "RAM DISK", "1", "0001"), &info).unwrap();

    let mut command = |cdb: &[u8], data_out_bytes, data_in_bytes| {
        let task = Task {
            tag: 0,
            nexus: Nexus::default(),
            attribute: Attribute::Simple,
            cdb: Cdb::new(cdb),
            data_out_bytes,
            data_in_bytes,
        };
        unit.enqueue(task).unwrap();
        loop {
            if let Polled::Ended(ended) = unit.poll(&memory, &mut disk, &mut OneBuffer) {
                return ended.outcome;
            }
        }
    };
    println!("TEST UNIT READY: {:02x?}", command(&[0; 6], 0, 0));
    println!("INQUIRY: {:?}", command(&[0x12, 0, 0, 0, 36, 0], 0, 36));
    let mut bytes = [0; 36];
    memory.read(GuestAddr(0), &mut bytes).unwrap();
    println!("{}", String::from_utf8_lossy(&bytes[8..]));
    memory.write(GuestAddr(0), &[0xa5; 512]).unwrap();
    println!("WRITE(10) with FUA: {:?}", command(&[0x2a, 0x08, 0, 0, 0, 7, 0, 0, 1, 0], 512, 0));
    println!("VERIFY(10), BYTCHK=1: {:?}", command(&[0x2f, 0x02, 0, 0, 0, 7, 0, 0, 1, 0], 512, 0));
}
