//! virtio-scsi behind both of its transports.

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory as _;
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use blk_core::virtio::mmio::register;
use host_std::memory::MappedMemory;
use scsi_model::Config as Identity;
use scsi_model::front::virtio_scsi::{Address, Config, Mmio, Pci, REQUEST, Scsi};

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
const RESPONSES: u64 = 0x4000;
/// Bytes of a request's header and of its response (VIRTIO 1.3, 5.6.6.1), and what chains have for them.
const HEADER_BYTES: u32 = 51;
const RESPONSE_BYTES: u32 = 108;
const APART: u64 = 128;

/// EVENT_IDX, VERSION_1.
const FEATURES: u64 = 1 << 29 | 1 << 32;

/// A unit on a controller with one request queue, EVENT_IDX negotiated, and a driver that polls and notifies once for
/// `BATCH` requests, each a chain of header, data and response.
pub(crate) struct VirtioScsi<D, const BATCH: u16> {
    device: D,
    available: u16,
}

pub(crate) type OverMmio<const BATCH: u16> = VirtioScsi<Mmio<1, 1, DEPTH>, BATCH>;
/// A vector for each ring, and one for changes of the configuration; MSI-X is on.
pub(crate) type OverPci<const BATCH: u16> = VirtioScsi<PciFunction<Pci<1, 1, DEPTH>, 4>, BATCH>;

fn controller<S: Storage<MappedMemory>>(storage: &[S]) -> Scsi<1, 1, DEPTH> {
    let mut scsi = Scsi::new(Config::default());
    let identity = Identity::new("BLK", "bench disk", "1", "0");
    scsi.controller_mut()
        .insert(Address { target: 0, lun: 0 }, identity, storage[0].info())
        .expect("512-byte blocks");
    scsi
}

impl<const BATCH: u16> OverMmio<BATCH> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let mut device = Mmio::new(controller(storage));
        #[rustfmt::skip]
        let boot = [
            (register::STATUS, KNOWN.bits().into()), (register::DRIVER_FEATURES, FEATURES & 0xffff_ffff),
            (register::DRIVER_FEATURES_SEL, 1), (register::DRIVER_FEATURES, FEATURES >> 32),
            (register::STATUS, AGREED.bits().into()),
            (register::QUEUE_SEL, REQUEST as u64), (register::QUEUE_SIZE, RING.into()),
            (register::QUEUE_DESC_LOW, DESCRIPTORS), (register::QUEUE_DRIVER_LOW, DRIVER_AREA),
            (register::QUEUE_DEVICE_LOW, DEVICE_AREA), (register::QUEUE_READY, 1),
            (register::STATUS, LIVE.bits().into()),
        ];
        for (offset, value) in boot {
            let _ = device.write(Region::Bar(0), offset, Width::Dword, value, memory, storage);
        }
        Self::with_chains(device, operation, memory, storage)
    }
}

impl<const BATCH: u16> OverPci<BATCH> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let mut device = PciFunction::new(Pci::new(controller(storage)), MsixOwner::Function);
        let ring = Ring {
            index: REQUEST as u16,
            entries: RING,
            descriptors: DESCRIPTORS,
            driver: DRIVER_AREA,
            device: DEVICE_AREA,
        };
        bring_up(&mut device, FEATURES, ring, memory, storage);
        Self::with_chains(device, operation, memory, storage)
    }
}

impl<D, const BATCH: u16> VirtioScsi<D, BATCH> {
    fn with_chains<S: Storage<MappedMemory>>(
        device: D,
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self
    where
        D: Device<MappedMemory, [S]>,
    {
        for entry in 0..RING {
            put(memory, DRIVER_AREA + 4 + 2 * u64::from(entry), &(3 * (entry % CHAINS)).to_le_bytes());
        }
        let mut front = Self { device, available: 0 };
        (0..CHAINS).for_each(|chain| put_chain(memory, chain, operation));
        // The first command of all is told of the power-on.
        for _ in 0..2 {
            Front::<S>::prepare(&mut front, memory);
            Front::<S>::serve(&mut front, memory, storage);
        }
        front
    }
}

fn put_chain(memory: &MappedMemory, chain: u16, operation: Operation) {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let number = u64::from(chain);
    let (header, response) = (HEADERS + APART * number, RESPONSES + APART * number);
    let data = DATA + u64::from(BYTES) * number;
    let (opcode, count) = match operation {
        Operation::Read => (0x28, SECTORS),
        Operation::Write => (0x2a, SECTORS),
        Operation::Flush => (0x35, 0),
    };
    // LUN 0 of target 0, an identifier, a SIMPLE task; the command block.
    let mut request = [0; HEADER_BYTES as usize];
    request[..4].copy_from_slice(&[1, 0, 0x40, 0]);
    request[8..16].copy_from_slice(&number.to_le_bytes());
    let [high, low] = (u16::from(SECTORS) * chain).to_be_bytes();
    request[19..29].copy_from_slice(&[opcode, 0, 0, 0, high, low, 0, 0, count, 0]);
    put(memory, header, &request);
    let descriptor = |index: u16, (at, len): (u64, u32), flags: u16, next: u16| {
        let descriptor = DESCRIPTORS + 16 * u64::from(3 * chain + index);
        put(memory, descriptor, &at.to_le_bytes());
        put(memory, descriptor + 8, &len.to_le_bytes());
        put(memory, descriptor + 12, &flags.to_le_bytes());
        put(memory, descriptor + 14, &(3 * chain + next).to_le_bytes());
    };
    let (response, data) = ((response, RESPONSE_BYTES), (data, BYTES));
    descriptor(0, (header, HEADER_BYTES), NEXT, 1);
    // Data to the device comes before the response, data from it after.
    match operation {
        Operation::Read => {
            descriptor(1, response, NEXT | WRITE, 2);
            descriptor(2, data, WRITE, 0);
        }
        Operation::Write => {
            descriptor(1, data, NEXT, 2);
            descriptor(2, response, WRITE, 0);
        }
        Operation::Flush => descriptor(1, response, WRITE, 0),
    }
}

impl<S: Storage<MappedMemory>, D: Device<MappedMemory, [S]>, const BATCH: u16> Front<S>
    for VirtioScsi<D, BATCH>
{
    const REQUESTS: u32 = BATCH as u32;

    fn prepare(&mut self, memory: &MappedMemory) {
        self.available = self.available.wrapping_add(BATCH);
        let _ = memory.store_u16_release(GuestAddr(DRIVER_AREA + 2), self.available);
    }

    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        while self.device.poll(memory, storage).again {}
    }

    fn check(&self, memory: &MappedMemory) {
        let used = memory.load_u16_acquire(GuestAddr(DEVICE_AREA + 2));
        assert_eq!(used, Ok(self.available), "every request is done");
        let mut answer = [0xff; RESPONSE_BYTES as usize];
        for chain in 0..u64::from(BATCH) {
            memory.read(GuestAddr(RESPONSES + APART * chain), &mut answer).expect("memory");
            assert_eq!((answer[10], answer[11]), (0, 0), "and well");
        }
    }
}
