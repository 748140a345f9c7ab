//! virtio-blk behind both of its transports.

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory as _;
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;
use virtio_blk_model::device;
use virtio_blk_model::front::mmio::{Mmio, register};
use virtio_blk_model::front::pci::Pci;
use virtio_blk_model::wire::Features;

use crate::front::{BYTES, DATA, Front, SECTORS, put};
use crate::virtio::{AGREED, KNOWN, LIVE, Ring, bring_up};
use crate::{DEPTH, Operation};

/// Entries of the ring: 32 chains of three have room.
const RING: u16 = 128;
const CHAINS: u16 = 32;
const DESCRIPTORS: u64 = 0;
const DRIVER_AREA: u64 = 0x1000;
const DEVICE_AREA: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const STATUSES: u64 = 0x4000;

/// virtio-blk, EVENT_IDX negotiated, a driver that polls and notifies once for `BATCH` requests, each a chain of three
/// descriptors.
pub(crate) struct VirtioBlk<D, const BATCH: u16> {
    device: D,
    available: u16,
}

pub(crate) type OverMmio<const BATCH: u16> = VirtioBlk<Mmio<1, DEPTH>, BATCH>;
/// A vector for the ring, and one for changes of the configuration; MSI-X is on.
pub(crate) type OverPci<const BATCH: u16> = VirtioBlk<PciFunction<Pci<1, DEPTH>, 2>, BATCH>;

const FEATURES: u64 = Features::VERSION_1.bits() | Features::EVENT_IDX.bits() | Features::FLUSH.bits();
fn config() -> device::Config {
    device::Config { queue_size_max: RING, ..device::Config::default() }
}

impl<const BATCH: u16> OverMmio<BATCH> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let mut device = Mmio::new(device::Blk::new(config()));
        let mut set = |offset, value: u64| {
            let _ = device.write(Region::Bar(0), offset, Width::Dword, value, memory, storage);
        };
        set(register::STATUS, KNOWN.bits().into());
        for half in [0, 1] {
            set(register::DRIVER_FEATURES_SEL, half);
            set(register::DRIVER_FEATURES, FEATURES >> (32 * half) & 0xffff_ffff);
        }
        set(register::STATUS, AGREED.bits().into());
        set(register::QUEUE_SIZE, RING.into());
        set(register::QUEUE_DESC_LOW, DESCRIPTORS);
        set(register::QUEUE_DRIVER_LOW, DRIVER_AREA);
        set(register::QUEUE_DEVICE_LOW, DEVICE_AREA);
        set(register::QUEUE_READY, 1);
        set(register::STATUS, LIVE.bits().into());
        Self::with_chains(device, operation, memory)
    }
}

impl<const BATCH: u16> OverPci<BATCH> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let mut device = PciFunction::new(Pci::new(device::Blk::new(config())), MsixOwner::Function);
        let ring = Ring {
            index: 0,
            entries: RING,
            descriptors: DESCRIPTORS,
            driver: DRIVER_AREA,
            device: DEVICE_AREA,
        };
        bring_up(&mut device, FEATURES, ring, memory, storage);
        Self::with_chains(device, operation, memory)
    }
}

impl<D, const BATCH: u16> VirtioBlk<D, BATCH> {
    fn with_chains(device: D, operation: Operation, memory: &MappedMemory) -> Self {
        (0..CHAINS).for_each(|chain| put_chain(memory, chain, operation));
        // The ring repeats the same chains, so that a driver only has to move its index.
        for entry in 0..RING {
            let head = 3 * (entry % CHAINS);
            put(memory, DRIVER_AREA + 4 + 2 * u64::from(entry), &head.to_le_bytes());
        }
        Self { device, available: 0 }
    }
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

impl<S: Storage<MappedMemory>, D: Device<MappedMemory, [S]>, const BATCH: u16> Front<S>
    for VirtioBlk<D, BATCH>
{
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
