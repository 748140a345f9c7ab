//! The fronts, each with a guest that repeats one operation.

use std::ops::Range;

use ata_model::drive::DriveConfig;
use ata_model::front::IdeController;
use blk_core::bus::{Device as _, Region, Width};
use blk_core::memory::GuestMemory as _;
use blk_core::op::Segment;
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Outcome, Polled, SegmentList, Task, Transport,
};
use virtio_blk_model::device;
use virtio_blk_model::front::mmio::{Mmio, register};
use virtio_blk_model::wire::{DeviceStatus, Features};

use crate::{DEPTH, Operation};

/// Bytes of the read and the write.
const BYTES: u32 = 4096;
const SECTORS: u8 = 8;
/// Where the data is; all below belongs to the fronts.
const DATA: u64 = 0x4_0000;

/// A front with a guest.
pub(crate) trait Front<S> {
    /// Requests that [`Self::serve`] serves.
    const REQUESTS: u32 = 1;

    /// What the guest does that is no access to the device: it is not counted.
    fn prepare(&mut self, _memory: &MappedMemory) {}

    /// The guest's accesses to the device, and the device's work.
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]);

    /// Panics unless everything was done, and well.
    fn check(&self, memory: &MappedMemory);
}

/// virtio-blk behind virtio-mmio, EVENT_IDX negotiated, a driver that polls and notifies once for `BATCH` requests, each a
/// chain of three descriptors.
pub(crate) struct VirtioBlk<const BATCH: u16> {
    device: Mmio<1, DEPTH>,
    available: u16,
}

/// Entries of the ring: 32 chains of three have room.
const RING: u16 = 128;
const CHAINS: u16 = 32;
const DESCRIPTORS: u64 = 0;
const DRIVER_AREA: u64 = 0x1000;
const DEVICE_AREA: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const STATUSES: u64 = 0x4000;

impl<const BATCH: u16> VirtioBlk<BATCH> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let config = device::Config { queue_size_max: RING, ..device::Config::default() };
        let mut device = Mmio::new(config);
        let mut set = |offset, value: u64| {
            let _ = device.write(Region::Bar(0), offset, Width::Dword, value, memory, storage);
        };
        let features = (Features::VERSION_1 | Features::EVENT_IDX | Features::FLUSH).bits();
        let status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        set(register::STATUS, status.bits().into());
        for half in [0, 1] {
            set(register::DRIVER_FEATURES_SEL, half);
            set(register::DRIVER_FEATURES, features >> (32 * half) & 0xffff_ffff);
        }
        let status = status | DeviceStatus::FEATURES_OK;
        set(register::STATUS, status.bits().into());
        set(register::QUEUE_SIZE, RING.into());
        set(register::QUEUE_DESC_LOW, DESCRIPTORS);
        set(register::QUEUE_DRIVER_LOW, DRIVER_AREA);
        set(register::QUEUE_DEVICE_LOW, DEVICE_AREA);
        set(register::QUEUE_READY, 1);
        set(register::STATUS, (status | DeviceStatus::DRIVER_OK).bits().into());
        (0..CHAINS).for_each(|chain| put_chain(memory, chain, operation));
        // The ring repeats the same chains, so that a driver only has to move its index.
        for entry in 0..RING {
            let head = 3 * (entry % CHAINS);
            put(memory, DRIVER_AREA + 4 + 2 * u64::from(entry), &head.to_le_bytes());
        }
        Self { device, available: 0 }
    }
}

fn put(memory: &MappedMemory, at: u64, bytes: &[u8]) {
    memory.write(GuestAddr(at), bytes).expect("memory");
}

/// Header, data, status.
fn put_chain(memory: &MappedMemory, chain: u16, operation: Operation) {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let number = u64::from(chain);
    let (header, status, data) = (HEADERS + 16 * number, STATUSES + number, DATA + u64::from(BYTES) * number);
    let (kind, data_flags): (u32, u16) = match operation {
        Operation::Read => (0, WRITE),
        Operation::Write => (1, 0),
        Operation::Flush => (4, 0),
    };
    put(memory, header, &kind.to_le_bytes());
    put(memory, header + 8, &(u64::from(SECTORS) * number).to_le_bytes());
    put(memory, status, &[0xff]);
    let descriptor = |index: u16, at: u64, len: u32, flags: u16, next: u16| {
        let descriptor = DESCRIPTORS + 16 * u64::from(3 * chain + index);
        put(memory, descriptor, &at.to_le_bytes());
        put(memory, descriptor + 8, &len.to_le_bytes());
        put(memory, descriptor + 12, &flags.to_le_bytes());
        put(memory, descriptor + 14, &(3 * chain + next).to_le_bytes());
    };
    // A flush has no data.
    descriptor(0, header, 16, NEXT, if operation == Operation::Flush { 2 } else { 1 });
    descriptor(1, data, BYTES, NEXT | data_flags, 2);
    descriptor(2, status, 1, WRITE, 0);
}

impl<S: Storage<MappedMemory>, const BATCH: u16> Front<S> for VirtioBlk<BATCH> {
    const REQUESTS: u32 = BATCH as u32;

    fn prepare(&mut self, memory: &MappedMemory) {
        self.available = self.available.wrapping_add(BATCH);
        let _ = memory.store_u16_release(GuestAddr(DRIVER_AREA + 2), self.available);
    }

    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        let progress = self.device.poll(memory, storage);
        debug_assert!(!progress.again);
    }

    fn check(&self, memory: &MappedMemory) {
        let used = memory.load_u16_acquire(GuestAddr(DEVICE_AREA + 2));
        assert_eq!(used, Ok(self.available), "every request is done");
        for chain in 0..u64::from(CHAINS) {
            let mut status = [0xff];
            memory.read(GuestAddr(STATUSES + chain), &mut status).expect("memory");
            assert_eq!(status, [0], "and well");
        }
    }
}

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

/// One drive on a PCI IDE controller, LBA28, and every register access of a command.
struct Ide {
    controller: IdeController,
    operation: Operation,
}

const COMMAND: Region = Region::Bar(0);
const BUS_MASTER: Region = Region::Bar(4);
/// Error, Device Fault, DRQ and BSY of Status.
const BUSY: u64 = 0x80;
const DRQ: u64 = 0x08;
const FAILED: u64 = 0x21;

impl Ide {
    fn new(operation: Operation) -> Self {
        let drives = [Some(DriveConfig::new("BENCH DISK", "1")), None, None, None];
        Self { controller: IdeController::new(drives), operation }
    }

    fn write<S: Storage<MappedMemory>>(
        &mut self,
        (region, offset, width): (Region, u64, Width),
        value: u64,
        memory: &MappedMemory,
        storage: &mut [S],
    ) {
        let _ = self.controller.write(region, offset, width, value, memory, storage);
    }

    fn command<S: Storage<MappedMemory>>(&mut self, opcode: u8, memory: &MappedMemory, storage: &mut [S]) {
        let registers: &[(u64, u8)] = match self.operation {
            Operation::Flush => &[(6, 0xe0)],
            _ => &[(2, SECTORS), (3, 8), (4, 0), (5, 0), (6, 0xe0)],
        };
        for (offset, value) in registers.iter().copied().chain([(7, opcode)]) {
            self.write((COMMAND, offset, Width::Byte), value.into(), memory, storage);
        }
    }

    /// Polls, and reads Status, which takes the interrupt back.
    fn status<S: Storage<MappedMemory>>(&mut self, memory: &MappedMemory, storage: &mut [S]) -> u64 {
        while self.controller.poll(memory, storage).again {}
        let status = self.controller.read(COMMAND, 7, Width::Byte, memory, storage).value;
        assert_eq!(status & (BUSY | FAILED), 0);
        status
    }
}

/// READ DMA and WRITE DMA through a PRD table of one entry; FLUSH CACHE.
pub(crate) struct IdeDma(Ide);

impl IdeDma {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let mut ide = Ide::new(operation);
        put(memory, 0, &(DATA as u32).to_le_bytes());
        put(memory, 4, &(BYTES | 0x8000_0000).to_le_bytes());
        ide.write((BUS_MASTER, 4, Width::Dword), 0, memory, storage);
        Self(ide)
    }
}

impl<S: Storage<MappedMemory>> Front<S> for IdeDma {
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        let ide = &mut self.0;
        let (opcode, direction) = match ide.operation {
            Operation::Read => (0xc8, 0x08),
            Operation::Write => (0xca, 0x00),
            Operation::Flush => {
                ide.command(0xe7, memory, storage);
                ide.status(memory, storage);
                return;
            }
        };
        ide.write((BUS_MASTER, 0, Width::Byte), direction, memory, storage);
        ide.write((BUS_MASTER, 2, Width::Byte), 0x06, memory, storage);
        ide.command(opcode, memory, storage);
        ide.write((BUS_MASTER, 0, Width::Byte), direction | 1, memory, storage);
        ide.status(memory, storage);
        let status = ide.controller.read(BUS_MASTER, 2, Width::Byte, memory, storage).value;
        assert_eq!(status & 7, 4, "interrupt, no error, not active");
        ide.write((BUS_MASTER, 0, Width::Byte), direction, memory, storage);
    }

    fn check(&self, _memory: &MappedMemory) {
        assert!(!self.0.controller.channels()[0].is_busy());
    }
}

/// READ SECTORS and WRITE SECTORS, 32 bits at a time; FLUSH CACHE.
pub(crate) struct IdePio(Ide);

impl IdePio {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        _memory: &MappedMemory,
        _storage: &mut [S],
    ) -> Self {
        Self(Ide::new(operation))
    }
}

impl<S: Storage<MappedMemory>> Front<S> for IdePio {
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        const WORDS: u32 = 128;
        let data = (COMMAND, 0, Width::Dword);
        let ide = &mut self.0;
        let opcode = match ide.operation {
            Operation::Read => 0x20,
            Operation::Write => 0x30,
            Operation::Flush => 0xe7,
        };
        ide.command(opcode, memory, storage);
        let mut status = ide.status(memory, storage);
        let sectors = if ide.operation == Operation::Flush { 0 } else { SECTORS };
        for _ in 0..sectors {
            assert_eq!(status & DRQ, DRQ);
            for word in 0..WORDS {
                if ide.operation == Operation::Write {
                    ide.write(data, word.into(), memory, storage);
                } else {
                    ide.controller.read(COMMAND, 0, Width::Dword, memory, storage);
                }
            }
            status = ide.status(memory, storage);
        }
        assert_eq!(status & DRQ, 0);
    }

    fn check(&self, _memory: &MappedMemory) {
        assert!(!self.0.controller.channels()[0].is_busy());
    }
}
