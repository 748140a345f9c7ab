//! Does what the models have messages for, with a logger that writes them to standard output.

#![no_std]
#![no_main]

use core::ops::Range;

use ata_model::{Channel, DriveConfig};
use blk_core::bus::{Device, Region, Width};
use blk_core::latch::LatchingStorage;
use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment};
use blk_core::ram::plain_info;
use blk_core::storage::{Busy, Cache, Completion, Info, IoErrorKind, Storage, Submission};
use blk_core::units::{GuestAddr, Tag};
use freestanding::memory::SharedMemory;
use scsi_model::{
    Attribute, Cdb, DataError, Direction, LogicalUnit, Nexus, Polled, ResetCause, SegmentList, Task,
    Transport,
};
use spin::Mutex;
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Mmio;
use virtio_blk_model::front::mmio::register;

/// One thread, so that a frame is not interrupted.
#[defmt::global_logger]
struct Logger;

static ENCODER: Mutex<defmt::Encoder> = Mutex::new(defmt::Encoder::new());

// SAFETY: there is one thread, and no interrupt: `acquire` is not entered twice.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        ENCODER.lock().start_frame(freestanding::glue::print);
    }

    unsafe fn flush() {}

    unsafe fn release() {
        ENCODER.lock().end_frame(freestanding::glue::print);
    }

    unsafe fn write(bytes: &[u8]) {
        ENCODER.lock().write(bytes, freestanding::glue::print);
    }
}

/// A disk that fails every flush.
struct Failing(Info);

impl<M: ?Sized> Storage<M> for Failing {
    fn info(&self) -> &Info {
        &self.0
    }

    fn submit(&mut self, _: &M, _: Tag, op: Op, _: &[Segment]) -> Result<Submission, Busy> {
        Ok(Submission::Done(if op == Op::Flush { Err(IoErrorKind::Medium.into()) } else { Ok(()) }))
    }

    fn poll(&mut self, _: &M) -> Option<Completion> {
        None
    }

    fn staging(&mut self, _: u16) -> &mut [u8] {
        &mut []
    }
}

static RAM: Mutex<[u64; 0x1000]> = Mutex::new([0; 0x1000]);

freestanding::entry!(run);

fn run() -> u8 {
    let words = spin::MutexGuard::leak(RAM.lock());
    // SAFETY: the bytes of words, for as long as the words live, which are not used any more.
    let bytes =
        unsafe { core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), size_of_val(words)) };
    let memory = SharedMemory::new(bytes);
    let done = virtio_blk(&memory);
    ata(&memory);
    scsi(&memory);
    u8::from(done.is_none())
}

/// A request of an unknown type, a flush that fails, an index that no driver could have, and a reset.
fn virtio_blk(memory: &SharedMemory) -> Option<()> {
    let mut disk = [LatchingStorage::<_, 4>::new(Failing(plain_info(1 << 20, Cache::WriteBack)))];
    let mut device = Mmio::<1, 4>::new(Blk::new(Config::DEFAULT));
    let mut store = |offset, value| {
        device.write(Region::Bar(0), offset, Width::Dword, value, memory, &mut disk[..]);
        while device.poll(memory, &mut disk[..]).again {}
    };
    for (offset, value) in [
        (register::STATUS, 3),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, 1),
        (register::STATUS, 11),
        (register::QUEUE_SIZE, 4),
        (register::QUEUE_DESC_LOW, 0x1000),
        (register::QUEUE_DRIVER_LOW, 0x2000),
        (register::QUEUE_DEVICE_LOW, 0x3000),
        (register::QUEUE_READY, 1),
        (register::STATUS, 15),
    ] {
        store(offset, value);
    }
    // A header and a status byte: address, and length, flags (NEXT; WRITE) and next descriptor.
    for (at, word) in
        [(0x1000, 0x100), (0x1008, 16 | 1 << 32 | 1 << 48), (0x1010, 0x200), (0x1018, 1 | 2 << 32)]
    {
        memory.write(GuestAddr(at), &u64::to_le_bytes(word)).ok()?;
    }
    for (index, kind) in [(1, 0x77), (2, 4), (1000, 4)] {
        memory.write(GuestAddr(0x100), &u64::to_le_bytes(kind)).ok()?;
        memory.store_u16_release(GuestAddr(0x2002), index).ok()?;
        store(register::QUEUE_NOTIFY, 0);
    }
    store(register::STATUS, 0);
    Some(())
}

/// A command that is not supported, a flush that fails, and SRST.
fn ata(memory: &SharedMemory) {
    let mut disk = [Failing(plain_info(1 << 20, Cache::WriteBack))];
    let mut channel = Channel::new([Some(DriveConfig::new("LOG", "1")), None]);
    for (bar, offset, value) in [(0, 7, 0xff), (0, 7, 0xe7), (1, 2, 4), (1, 2, 0)] {
        channel.write(Region::Bar(bar), offset, Width::Byte, value, memory, &mut disk[..]);
        while channel.poll(memory, &mut disk[..]).again {}
    }
}

/// A reset, and an operation code that is not supported.
fn scsi(memory: &SharedMemory) {
    let info = plain_info(1 << 20, Cache::WriteBack);
    let Ok(mut unit) = LogicalUnit::<4>::new(scsi_model::Config::new("LOG", "LOG", "1", "1"), &info) else {
        return;
    };
    unit.reset(ResetCause::Hard);
    for operation in [0xff, 0xff] {
        let task = Task {
            tag: 1,
            nexus: Nexus::default(),
            attribute: Attribute::Simple,
            cdb: Cdb::new(&[operation, 0, 0, 0, 0, 0]),
            data_out_bytes: 0,
            data_in_bytes: 0,
        };
        if unit.enqueue(task).is_ok() {
            while !matches!(unit.poll(memory, &mut Failing(info), &mut NoData), Polled::Ended(_)) {}
        }
    }
}

/// No task has data.
struct NoData;

impl Transport for NoData {
    fn segments(
        &mut self,
        _: u64,
        _: Direction,
        _: Range<u64>,
        _: &mut SegmentList,
    ) -> Result<(), DataError> {
        Err(DataError)
    }
}
