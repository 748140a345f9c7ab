//! A real guest driver, the crate virtio-drivers, on the device: modern with indirect descriptors and EVENT_IDX, and
//! legacy.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::arithmetic_side_effects, reason = "tests")]

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::Op;
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::{Busy, Cache, Completion, Info, Storage, Submission};
use blk_core::units::{GuestAddr, Tag};
use virtio_blk_model::device::{Blk, Config, Interface};
use virtio_blk_model::front::mmio::{Mmio, register};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Error, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const ARENA_BYTES: usize = 1 << 20;
/// Where the guest sees the arena.
const BASE: u64 = 0x4000_0000;

/// A page of the guest's memory, which driver and device share, both through raw pointers only.
#[derive(Clone, Copy)]
#[repr(align(4096))]
struct Page(#[allow(dead_code, reason = "reached through pointers")] [u8; PAGE_SIZE]);

thread_local! {
    static ARENA: NonNull<u8> = NonNull::from(vec![Page([0; PAGE_SIZE]); ARENA_BYTES / PAGE_SIZE].leak()).cast();
    /// Bytes given out. Nothing is given back: a test is short.
    static GIVEN: Cell<usize> = const { Cell::new(0) };
}

struct Guest;

impl Guest {
    fn give(bytes: usize, alignment: usize) -> (PhysAddr, NonNull<u8>) {
        let at = GIVEN.get().next_multiple_of(alignment);
        let next = at + bytes;
        assert!(next <= ARENA_BYTES, "the arena is large enough");
        GIVEN.set(next);
        // SAFETY: `at + bytes` lies within the arena.
        (BASE + at as u64, ARENA.with(|arena| unsafe { arena.add(at) }))
    }

    fn range(addr: GuestAddr, len: usize) -> Result<NonNull<u8>, MemoryError> {
        let at = addr.0.checked_sub(BASE).and_then(|at| usize::try_from(at).ok()).ok_or(MemoryError)?;
        if at.checked_add(len).is_none_or(|end| end > ARENA_BYTES) {
            return Err(MemoryError);
        }
        // SAFETY: the range lies within the arena.
        Ok(ARENA.with(|arena| unsafe { arena.add(at) }))
    }
}

// SAFETY: pages are given out once, aligned and zeroed, from an arena that lives as long as the thread.
unsafe impl Hal for Guest {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        Self::give(pages * PAGE_SIZE, PAGE_SIZE)
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, _vaddr: NonNull<u8>, _pages: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(_paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        panic!("the transport has no mapped registers")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        let (paddr, shared) = Self::give(buffer.len(), 16);
        // SAFETY: both are valid for the length, and apart.
        unsafe { shared.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        paddr
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let shared = Self::range(GuestAddr(paddr), buffer.len()).unwrap();
            // SAFETY: both are valid for the length, and apart.
            unsafe { shared.copy_to_nonoverlapping(buffer.cast(), buffer.len()) };
        }
    }
}

impl GuestMemory for Guest {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = Self::range(addr, into.len())?;
        // SAFETY: `range` has checked it; one thread.
        unsafe { from.as_ptr().copy_to(into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        let into = Self::range(addr, from.len())?;
        // SAFETY: `range` has checked it; one thread.
        unsafe { into.as_ptr().copy_from(from.as_ptr(), from.len()) };
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
        usize::try_from(len).is_ok_and(|len| Self::range(addr, len).is_ok())
    }
}

/// A RAM disk that notes what it is asked.
struct Logged {
    disk: RamDisk<'static, 16>,
    log: Rc<RefCell<Vec<Op>>>,
}

impl Storage<Guest> for Logged {
    fn info(&self) -> &Info {
        Storage::<Guest>::info(&self.disk)
    }

    fn submit(
        &mut self,
        memory: &Guest,
        tag: Tag,
        op: Op,
        segments: &[blk_core::op::Segment],
    ) -> Result<Submission, Busy> {
        self.log.borrow_mut().push(op);
        self.disk.submit(memory, tag, op, segments)
    }

    fn poll(&mut self, memory: &Guest) -> Option<Completion> {
        self.disk.poll(memory)
    }

    fn staging(&mut self, _slot: u16) -> &mut [u8] {
        &mut []
    }
}

/// The device and its disk, reached by register accesses.
struct Machine {
    device: Mmio<1, 16>,
    storage: [Logged; 1],
}

struct Registers {
    legacy: bool,
    machine: RefCell<Machine>,
}

impl Registers {
    fn new(config: Config, ram: Ram<'static>, log: &Rc<RefCell<Vec<Op>>>) -> Self {
        let disk = RamDisk::new(ram, &mut []);
        let machine =
            Machine { device: Mmio::new(Blk::new(config)), storage: [Logged { disk, log: Rc::clone(log) }] };
        Self { legacy: config.interface != Interface::Modern, machine: RefCell::new(machine) }
    }

    fn read(&self, offset: u64, width: Width) -> u64 {
        let Machine { device, storage } = &mut *self.machine.borrow_mut();
        device.read(Region::Bar(0), offset, width, &Guest, storage.as_mut_slice()).value
    }

    fn write(&self, offset: u64, value: u32) {
        let Machine { device, storage } = &mut *self.machine.borrow_mut();
        let storage = storage.as_mut_slice();
        let _ = device.write(Region::Bar(0), offset, Width::Dword, value.into(), &Guest, storage);
        loop {
            let progress = device.poll(&Guest, storage);
            if !progress.again && !progress.pending_write {
                break;
            }
        }
    }

    fn get(&self, offset: u64) -> u32 {
        self.read(offset, Width::Dword) as u32
    }
}

impl Transport for Registers {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.get(register::DEVICE_ID)).unwrap()
    }

    fn read_device_features(&mut self) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, 0);
        let low = u64::from(self.get(register::DEVICE_FEATURES));
        self.write(register::DEVICE_FEATURES_SEL, 1);
        low | u64::from(self.get(register::DEVICE_FEATURES)) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for half in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(register::QUEUE_SEL, queue.into());
        self.get(register::QUEUE_SIZE_MAX)
    }

    fn notify(&mut self, queue: u16) {
        self.write(register::QUEUE_NOTIFY, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.get(register::STATUS))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.write(register::STATUS, status.bits());
    }

    fn set_guest_page_size(&mut self, guest_page_size: u32) {
        if self.legacy {
            self.write(register::GUEST_PAGE_SIZE, guest_page_size);
        }
    }

    fn requires_legacy_layout(&self) -> bool {
        self.legacy
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.write(register::QUEUE_SEL, queue.into());
        self.write(register::QUEUE_SIZE, size);
        if self.legacy {
            self.write(register::QUEUE_ALIGN, PAGE_SIZE as u32);
            self.write(register::QUEUE_PFN, (desc / PAGE_SIZE as u64) as u32);
            return;
        }
        let parts = [
            (register::QUEUE_DESC_LOW, desc),
            (register::QUEUE_DRIVER_LOW, driver),
            (register::QUEUE_DEVICE_LOW, device),
        ];
        for (offset, addr) in parts {
            self.write(offset, addr as u32);
            self.write(offset + 4, (addr >> 32) as u32);
        }
        self.write(register::QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.write(register::QUEUE_SEL, queue.into());
        self.write(if self.legacy { register::QUEUE_PFN } else { register::QUEUE_READY }, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(register::QUEUE_SEL, queue.into());
        self.get(if self.legacy { register::QUEUE_PFN } else { register::QUEUE_READY }) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.get(register::INTERRUPT_STATUS);
        self.write(register::INTERRUPT_ACK, status);
        InterruptStatus::from_bits_retain(status)
    }

    fn read_config_generation(&self) -> u32 {
        self.get(register::CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let width = Width::from_bytes(size_of::<T>()).ok_or(Error::InvalidParam)?;
        let bytes = self.read(register::CONFIG + offset as u64, width).to_le_bytes();
        T::read_from_prefix(&bytes).map(|(value, _)| value).map_err(|_| Error::InvalidParam)
    }

    fn write_config_space<T: IntoBytes + Immutable>(&mut self, _: usize, _: T) -> virtio_drivers::Result<()> {
        Err(Error::Unsupported)
    }
}

type Log = Rc<RefCell<Vec<Op>>>;

fn disk(sectors: usize) -> Ram<'static> {
    Ram::new(vec![0; sectors * SECTOR_SIZE].leak()).with_cache(Cache::WriteBack)
}

fn driver(config: Config, ram: Ram<'static>) -> (VirtIOBlk<Guest, Registers>, Log) {
    let log = Log::default();
    let driver = VirtIOBlk::new(Registers::new(config, ram, &log)).expect("the driver finds its device");
    (driver, log)
}

fn exercise(config: Config) {
    let (mut driver, log) = driver(config, disk(64));
    assert_eq!((driver.capacity(), driver.readonly()), (64, false));
    // Enough to go round the ring of sixteen several times.
    for turn in 0..40_usize {
        let sector = turn % 60;
        let data: Vec<u8> = (0..2 * SECTOR_SIZE).map(|byte| (byte + turn) as u8).collect();
        driver.write_blocks(sector, &data).unwrap();
        driver.flush().unwrap();
        let mut back = vec![0; 2 * SECTOR_SIZE];
        driver.read_blocks(sector, &mut back).unwrap();
        assert_eq!(back, data);
    }
    let flushes = log.borrow().iter().filter(|op| **op == Op::Flush).count();
    assert_eq!(flushes, 40, "each flush reaches the disk, and a driver with FLUSH has write-back");
    let mut id = [0; 20];
    assert_eq!(driver.device_id(&mut id), Ok(6));
    assert_eq!(&id[..6], b"serial");
    assert_eq!(driver.read_blocks(63, &mut [0; 2 * SECTOR_SIZE]), Err(Error::IoError));
    assert!(driver.ack_interrupt().contains(InterruptStatus::QUEUE_INTERRUPT));
}

fn config(interface: Interface) -> Config {
    Config { serial: *b"serial\0\0\0\0\0\0\0\0\0\0\0\0\0\0", interface, ..Config::default() }
}

#[test]
fn virtio_drivers_reads_writes_and_flushes_over_the_modern_interface() {
    exercise(config(Interface::Modern));
}

#[test]
fn virtio_drivers_reads_writes_and_flushes_over_the_legacy_interface() {
    exercise(config(Interface::Legacy { barrier: true }));
}

#[test]
fn several_requests_of_virtio_drivers_are_in_flight_at_once() {
    use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus};
    let (mut driver, _) = driver(config(Interface::Modern), disk(64));
    driver.write_blocks(0, &[1; SECTOR_SIZE]).unwrap();
    driver.write_blocks(1, &[2; SECTOR_SIZE]).unwrap();
    let mut requests = [BlkReq::default(), BlkReq::default()];
    let mut responses = [BlkResp::default(), BlkResp::default()];
    let mut buffers = [[0; SECTOR_SIZE]; 2];
    let mut tokens = Vec::new();
    for sector in 0..2 {
        let (request, response) = (&mut requests[sector], &mut responses[sector]);
        // SAFETY: the buffers are left alone until the request is complete.
        tokens
            .push(unsafe { driver.read_blocks_nb(sector, request, &mut buffers[sector], response) }.unwrap());
    }
    for (sector, token) in tokens.into_iter().enumerate() {
        assert_eq!(driver.peek_used(), Some(token));
        let (request, response) = (&requests[sector], &mut responses[sector]);
        // SAFETY: these are the buffers that were passed in.
        unsafe { driver.complete_read_blocks(token, request, &mut buffers[sector], response) }.unwrap();
        assert_eq!(response.status(), RespStatus::OK);
    }
    assert_eq!(buffers, [[1; SECTOR_SIZE], [2; SECTOR_SIZE]]);
}

#[test]
fn virtio_drivers_finds_a_read_only_disk_read_only() {
    let (mut driver, _) = driver(config(Interface::Modern), disk(8).read_only());
    assert!(driver.readonly());
    assert_eq!(driver.write_blocks(0, &[0; SECTOR_SIZE]), Err(Error::IoError));
    driver.flush().unwrap();
}
