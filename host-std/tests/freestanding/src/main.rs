//! All three models in a program without `std`, without `alloc`, without an allocator and without a C library.
//!
//! It is what a firmware's or a type-1 hypervisor's glue comes down to, run as a bare process so that any machine with Linux
//! can run it: each model writes a block to a RAM disk through its own registers, rings or command blocks, flushes, and
//! reads it back. The exit status names the first step that went wrong; 0 is none.

#![no_std]
#![no_main]

use core::ops::Range;

use ata_model::{Channel, DriveConfig};
use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::op::Segment;
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::{Cache, Storage};
use blk_core::units::GuestAddr;
use freestanding::memory::SharedMemory;
use scsi_model::{
    Attribute, Cdb, DataError, Direction, LogicalUnit, Nexus, Outcome, Polled, SegmentList, Task, Transport,
};
use spin::Mutex;
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::front::pci::{common, structure};
use virtio_blk_model::front::{Mmio, Pci};

const RAM_BYTES: usize = 64 << 10;
const DISK_BYTES: usize = 64 << 10;
const STAGING_BYTES: usize = 4 * 4096;

/// Where the guests keep the data that they write, and where they read it back to.
const OUT: GuestAddr = GuestAddr(0x4000);
const IN: GuestAddr = GuestAddr(0x6000);
const PATTERN: [u8; 512] = [0xa5; 512];

type Disk = RamDisk<'static, 4>;

/// Static memory, handed out for good: each use of the macro has its own.
macro_rules! fresh {
    ($bytes:expr) => {{
        static BYTES: Mutex<Page<$bytes>> = Mutex::new(Page([0; $bytes]));
        spin::MutexGuard::leak(BYTES.lock()).0.as_mut_slice()
    }};
}

/// Aligned as memory is, so that what is aligned for the guest is aligned for its devices.
#[repr(align(4096))]
struct Page<const BYTES: usize>([u8; BYTES]);

freestanding::entry!(run);

/// Runs the guests.
fn run() -> u8 {
    for (step, guest) in [(10, virtio_mmio as fn() -> Option<()>), (20, scsi), (30, ata), (40, virtio_pci)] {
        if guest().is_none() {
            return step;
        }
    }
    0
}

fn check(memory: &SharedMemory) -> Option<()> {
    let mut back = [0; 512];
    memory.read(IN, &mut back).ok()?;
    (back == PATTERN).then_some(())
}

/// The device is shared, as between vCPUs, and made by the compiler.
fn virtio_mmio() -> Option<()> {
    let memory = SharedMemory::new(fresh!(RAM_BYTES));
    let mut disk = [Disk::new(Ram::new(fresh!(DISK_BYTES)).with_cache(Cache::WriteBack), &mut [])];
    static DEVICE: Mutex<Mmio<1, 4>> = Mutex::new(Mmio::new(Blk::new(Config::DEFAULT)));
    virtio(&memory, |offset, value| {
        DEVICE.lock().write(Region::Bar(0), offset, Width::Dword, value, &memory, &mut disk[..]);
        while DEVICE.lock().poll(&memory, &mut disk[..]).again {}
    })
}

/// The same behind PCI, with memory and bus mastering enabled.
fn virtio_pci() -> Option<()> {
    let memory = SharedMemory::new(fresh!(RAM_BYTES));
    let mut disk = [Disk::new(Ram::new(fresh!(DISK_BYTES)).with_cache(Cache::WriteBack), &mut [])];
    let mut function =
        PciFunction::<_, 2>::new(Pci::new(Blk::<1, 4>::new(Config::DEFAULT)), MsixOwner::Function);
    function.write(Region::Config, 4, Width::Word, 6, &memory, &mut disk[..]);
    virtio(&memory, |register, value| {
        let (offset, width) = match register {
            register::STATUS => (common::DEVICE_STATUS, Width::Byte),
            register::DRIVER_FEATURES_SEL => (common::DRIVER_FEATURE_SELECT, Width::Dword),
            register::DRIVER_FEATURES => (common::DRIVER_FEATURE, Width::Dword),
            register::QUEUE_SIZE => (common::QUEUE_SIZE, Width::Word),
            register::QUEUE_DESC_LOW => (common::QUEUE_DESC, Width::Dword),
            register::QUEUE_DRIVER_LOW => (common::QUEUE_DRIVER, Width::Dword),
            register::QUEUE_DEVICE_LOW => (common::QUEUE_DEVICE, Width::Dword),
            register::QUEUE_READY => (common::QUEUE_ENABLE, Width::Word),
            _ => (structure::NOTIFY, Width::Word),
        };
        function.write(Region::Bar(0), offset, width, value, &memory, &mut disk[..]);
        while function.poll(&memory, &mut disk[..]).again {}
    })
}

/// Writes sector 3, flushes and reads it back through a virtqueue. `store` writes a register, by virtio-mmio's name, and lets
/// the device work.
fn virtio(memory: &SharedMemory, mut store: impl FnMut(u64, u64)) -> Option<()> {
    // ACKNOWLEDGE, DRIVER; VERSION_1 and FLUSH; FEATURES_OK; the queue; DRIVER_OK (VIRTIO 1.3, 3.1.1).
    for (offset, value) in [
        (register::STATUS, 3),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, 1),
        (register::DRIVER_FEATURES_SEL, 0),
        (register::DRIVER_FEATURES, 1 << 9),
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
    memory.write(OUT, &PATTERN).ok()?;
    // VIRTIO_BLK_T_OUT, _FLUSH, _IN: header, data and status of each in descriptors 0, 1, 2.
    for (index, (kind, data, flags)) in (0_u16..).zip([(1_u8, OUT, 1_u16), (4, OUT, 1), (0, IN, 3)]) {
        let header = [[kind, 0, 0, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]].concat_16();
        memory.write(GuestAddr(0x100), &header).ok()?;
        memory.write(GuestAddr(0x200), &[0xff]).ok()?;
        let after_header = if kind == 4 { 2 } else { 1 };
        for (place, addr, len, flags, next) in
            [(0, 0x100, 16, 1, after_header), (1, data.0, 512, flags, 2), (2, 0x200, 1, 2, 0)]
        {
            memory.write(GuestAddr(0x1000 + place * 16), &descriptor(addr, len, flags, next)).ok()?;
        }
        memory.write(GuestAddr(0x2004 + u64::from(index % 4) * 2), &[0, 0]).ok()?;
        memory.store_u16_release(GuestAddr(0x2002), index + 1).ok()?;
        store(register::QUEUE_NOTIFY, 0);
        let mut status = [0];
        memory.read(GuestAddr(0x200), &mut status).ok()?;
        (status == [0] && memory.load_u16_acquire(GuestAddr(0x3002)) == Ok(index + 1)).then_some(())?;
    }
    check(memory)
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

trait Concat {
    fn concat_16(self) -> [u8; 16];
}

impl Concat for [[u8; 8]; 2] {
    fn concat_16(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self[0]);
        bytes[8..].copy_from_slice(&self[1]);
        bytes
    }
}

/// Lends the unit one buffer for each direction.
struct Buffers;

impl Transport for Buffers {
    fn segments(
        &mut self,
        _: u64,
        direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let buffer = if direction == Direction::In { IN } else { OUT };
        let addr = buffer.checked_add(range.start).ok_or(DataError)?;
        let len = u32::try_from(range.end - range.start).map_err(|_| DataError)?;
        list.push(Segment::Guest { addr, len }).map_err(|_| DataError)
    }
}

/// The same through command blocks.
fn scsi() -> Option<()> {
    let memory = SharedMemory::new(fresh!(RAM_BYTES));
    let mut disk =
        Disk::new(Ram::new(fresh!(DISK_BYTES)).with_cache(Cache::WriteBack), fresh!(STAGING_BYTES));
    let info = *Storage::<SharedMemory>::info(&disk);
    let mut unit =
        LogicalUnit::<4>::new(scsi_model::Config::new("FREE", "STANDING", "1", "1"), &info).ok()?;
    memory.write(OUT, &PATTERN).ok()?;
    // TEST UNIT READY takes the unit attention; WRITE(10) and READ(10) of block 3; SYNCHRONIZE CACHE(10) between.
    let write = [0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0];
    let read = [0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0];
    let synchronize = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (cdb, out, room) in [(&[0; 6][..], 0, 0), (&write, 512, 0), (&synchronize, 0, 0), (&read, 0, 512)] {
        let task = Task {
            tag: 1,
            nexus: Nexus::default(),
            attribute: Attribute::Simple,
            cdb: Cdb::new(cdb),
            data_out_bytes: out,
            data_in_bytes: room,
        };
        unit.enqueue(task).ok()?;
        let outcome = loop {
            if let Polled::Ended(ended) = unit.poll(&memory, &mut disk, &mut Buffers) {
                break ended.outcome;
            }
        };
        (cdb.len() == 6 || outcome == Outcome::Good).then_some(())?;
    }
    check(&memory)
}

/// The same through ports: WRITE SECTORS, FLUSH CACHE, READ SECTORS.
fn ata() -> Option<()> {
    let memory = SharedMemory::new(fresh!(RAM_BYTES));
    let mut disks =
        [Disk::new(Ram::new(fresh!(DISK_BYTES)).with_cache(Cache::WriteBack), fresh!(STAGING_BYTES))];
    let mut channel = Channel::new([Some(DriveConfig::new("FREESTANDING", "1")), None]);
    let mut back = [0; 512];
    for opcode in [0x30, 0xe7, 0x20] {
        for (offset, value) in [(6, 0xe0), (2, 1), (3, 3), (4, 0), (5, 0), (7, opcode)] {
            channel.write(Region::Bar(0), offset, Width::Byte, value, &memory, &mut disks[..]);
        }
        while channel.poll(&memory, &mut disks[..]).again {}
        match opcode {
            0x30 => PATTERN.chunks_exact(2).for_each(|word| {
                let word = u64::from(u16::from_le_bytes([word[0], word[1]]));
                channel.write(Region::Bar(0), 0, Width::Word, word, &memory, &mut disks[..]);
            }),
            0x20 => back.chunks_exact_mut(2).for_each(|word| {
                let value = channel.read(Region::Bar(0), 0, Width::Word, &memory, &mut disks[..]).value;
                word.copy_from_slice(&(value as u16).to_le_bytes());
            }),
            _ => {}
        }
        while channel.poll(&memory, &mut disks[..]).again {}
        // BSY, DF, DRQ and ERR clear, DRDY set.
        let status = channel.read(Region::Bar(0), 7, Width::Byte, &memory, &mut disks[..]).value;
        (status & 0xe9 == 0x40).then_some(())?;
    }
    (back == PATTERN).then_some(())
}
