//! virtio-blk through the crate virtio-drivers: a real `no_std` guest driver, on our register interface.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::rc::Rc;

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::units::GuestAddr;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{GuestDisk, GuestError, Machine};
use crate::backend::FileStorage;
use crate::memory::{HostMemory as _, MappedMemory};

const REGISTERS: Region = Region::Bar(0);

// virtio-mmio registers (VIRTIO 1.3, 4.2.2).
const DEVICE_ID: u64 = 0x008;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_SIZE_MAX: u64 = 0x034;
const QUEUE_SIZE: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG_GENERATION: u64 = 0x0fc;
const CONFIG: u64 = 0x100;

/// Offset of `writeback` in the device's configuration space (VIRTIO 1.3, 5.2.4).
const CONFIG_WRITEBACK: u64 = CONFIG + 0x20;

thread_local! {
    /// The memory of the guest that runs on this thread, and the first address not handed out: `Hal` has no `self`.
    static GUEST: RefCell<Option<(MappedMemory, u64)>> = const { RefCell::new(None) };
}

/// Gives the driver pages of this thread's guest memory, and copies its buffers in and out of there.
struct ThreadHal;

impl ThreadHal {
    fn allocate(pages: usize) -> (u64, MappedMemory) {
        GUEST.with_borrow_mut(|guest| {
            let (memory, next) = guest.as_mut().expect("a driver runs on the thread that made it");
            let at = *next;
            *next += (pages * PAGE_SIZE) as u64;
            assert!(memory.contains(GuestAddr(at), (pages * PAGE_SIZE) as u64), "guest memory is used up");
            (at, memory.clone())
        })
    }

    /// Gives pages back if they are the last ones handed out, which the bounce buffers of a blocking driver are.
    fn release(at: u64, pages: usize) {
        GUEST.with_borrow_mut(|guest| {
            if let Some((_, next)) = guest
                && at + (pages * PAGE_SIZE) as u64 == *next
            {
                *next = at;
            }
        });
    }
}

// SAFETY: `allocate` hands out page-aligned, zeroed (fresh from the kernel, or zeroed below) pages of a mapping that no
// Rust reference points into and that the machine beside the driver keeps mapped; no page is handed out twice before
// it is given back. `share` returns pages of the same kind.
unsafe impl Hal for ThreadHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let (at, memory) = Self::allocate(pages);
        let zeroes = vec![0; pages * PAGE_SIZE];
        memory.write(GuestAddr(at), &zeroes).expect("allocated pages are memory");
        let range = memory.host_range(GuestAddr(at), zeroes.len()).expect("allocated pages are memory");
        assert_eq!(range.len, zeroes.len(), "guest memory is one region");
        (at, range.start)
    }

    unsafe fn dma_dealloc(at: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        Self::release(at, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("only the PCI transport maps BARs")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let (at, memory) = Self::allocate(buffer.len().div_ceil(PAGE_SIZE));
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the caller vouches for a valid buffer that no other thread accesses during this call.
            let bytes = unsafe { buffer.as_ref() };
            memory.write(GuestAddr(at), bytes).expect("allocated pages are memory");
        }
        at
    }

    unsafe fn unshare(at: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        let pages = buffer.len().div_ceil(PAGE_SIZE);
        if direction != BufferDirection::DriverToDevice {
            let memory = GUEST.with_borrow(|guest| guest.as_ref().map(|(memory, _)| memory.clone()));
            // SAFETY: the caller vouches for a valid buffer that no other thread accesses during this call.
            let bytes = unsafe { buffer.as_mut() };
            memory.expect("set by new").read(GuestAddr(at), bytes).expect("shared pages are memory");
        }
        Self::release(at, pages);
    }
}

/// The driver's view of our virtio-mmio registers. Shared, because the driver keeps its transport to itself.
struct Registers<D> {
    machine: Rc<RefCell<Machine<D>>>,
    /// Where the used index is, and what it was when the driver last waited for it.
    used_index: GuestAddr,
    used: u16,
}

impl<D: Device<MappedMemory, [FileStorage]>> Registers<D> {
    fn get(&self, offset: u64) -> u32 {
        self.machine.borrow_mut().read(REGISTERS, offset, Width::Dword) as u32
    }

    fn set(&self, offset: u64, value: u32) {
        let written = self.machine.borrow_mut().write(REGISTERS, offset, Width::Dword, u64::from(value));
        written.expect("the device completes its register writes");
    }

    fn set_address(&self, offset: u64, address: u64) {
        self.set(offset, address as u32);
        self.set(offset + 4, (address >> 32) as u32);
    }
}

impl<D: Device<MappedMemory, [FileStorage]>> Transport for Registers<D> {
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.get(DEVICE_ID)).expect("the device id is one of virtio's")
    }

    fn read_device_features(&mut self) -> u64 {
        self.set(DEVICE_FEATURES_SEL, 0);
        let low = u64::from(self.get(DEVICE_FEATURES));
        self.set(DEVICE_FEATURES_SEL, 1);
        low | u64::from(self.get(DEVICE_FEATURES)) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for (select, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.set(DRIVER_FEATURES_SEL, select);
            self.set(DRIVER_FEATURES, bits);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.set(QUEUE_SEL, u32::from(queue));
        self.get(QUEUE_SIZE_MAX)
    }

    /// The driver then spins until the used index moves, so the device runs here until it has.
    fn notify(&mut self, queue: u16) {
        self.set(QUEUE_NOTIFY, u32::from(queue));
        let (used_index, before) = (self.used_index, self.used);
        let moved = self.machine.borrow_mut().run_until(|machine, _| {
            let used = machine.memory().load_u16_acquire(used_index).expect("the ring is memory");
            (used != before).then_some(used)
        });
        self.used = moved.expect("the device answers");
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.get(STATUS))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.set(STATUS, status.bits());
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, queue: u16, size: u32, desc: PhysAddr, driver: PhysAddr, device: PhysAddr) {
        self.set(QUEUE_SEL, u32::from(queue));
        self.set(QUEUE_SIZE, size);
        self.set_address(QUEUE_DESC, desc);
        self.set_address(QUEUE_DRIVER, driver);
        self.set_address(QUEUE_DEVICE, device);
        self.used_index = GuestAddr(device + 2);
        self.used = 0;
        self.set(QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.set(QUEUE_SEL, u32::from(queue));
        self.set(QUEUE_READY, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.set(QUEUE_SEL, u32::from(queue));
        self.get(QUEUE_READY) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let pending = self.get(INTERRUPT_STATUS);
        self.set(INTERRUPT_ACK, pending);
        InterruptStatus::from_bits_retain(pending)
    }

    fn read_config_generation(&self) -> u32 {
        self.get(CONFIG_GENERATION)
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let mut value = T::new_zeroed();
        for (at, byte) in (CONFIG + offset as u64..).zip(value.as_mut_bytes()) {
            *byte = self.machine.borrow_mut().read(REGISTERS, at, Width::Byte) as u8;
        }
        Ok(value)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        for (at, byte) in (CONFIG + offset as u64..).zip(value.as_bytes()) {
            let written = self.machine.borrow_mut().write(REGISTERS, at, Width::Byte, u64::from(*byte));
            written.expect("the device completes its register writes");
        }
        Ok(())
    }
}

/// A virtio-blk device behind virtio-mmio registers, driven by the crate virtio-drivers.
///
/// The driver's buffers live in the guest memory of the thread that made it: it stays on that thread, and there is one at
/// a time.
pub struct VirtioBlk<D: Device<MappedMemory, [FileStorage]>> {
    driver: VirtIOBlk<ThreadHal, Registers<D>>,
    machine: Rc<RefCell<Machine<D>>>,
}

impl<D: Device<MappedMemory, [FileStorage]>> VirtioBlk<D> {
    /// Initialises the device. The driver takes its rings and buffers from guest memory at 1 MiB and above.
    ///
    /// # Errors
    /// [`GuestError::Unknown`] if the driver does not accept the device.
    pub fn new(machine: Machine<D>) -> Result<Self, GuestError> {
        GUEST.set(Some((machine.memory().clone(), 1 << 20)));
        let machine = Rc::new(RefCell::new(machine));
        let registers = Registers { machine: Rc::clone(&machine), used_index: GuestAddr(0), used: 0 };
        let driver = VirtIOBlk::new(registers).map_err(|error| GuestError::Unknown(error.to_string()))?;
        Ok(Self { driver, machine })
    }
}

fn failed(error: virtio_drivers::Error) -> GuestError {
    GuestError::Failed(error.to_string())
}

impl<D: Device<MappedMemory, [FileStorage]>> GuestDisk for VirtioBlk<D> {
    fn sectors(&self) -> u64 {
        self.driver.capacity()
    }

    /// `writeback`, as it reads whether or not the driver negotiated CONFIG_WCE.
    fn write_cache(&mut self) -> Result<bool, GuestError> {
        Ok(self.machine.borrow_mut().read(REGISTERS, CONFIG_WRITEBACK, Width::Byte) != 0)
    }

    fn has_fua(&self) -> bool {
        false
    }

    fn write(&mut self, lba: u64, data: &[u8], fua: bool) -> Result<(), GuestError> {
        if fua {
            return Err(GuestError::Unknown("virtio-blk has no Force Unit Access".into()));
        }
        self.driver.write_blocks(lba as usize, data).map_err(failed)
    }

    fn read(&mut self, lba: u64, into: &mut [u8]) -> Result<(), GuestError> {
        self.driver.read_blocks(lba as usize, into).map_err(failed)
    }

    fn flush(&mut self) -> Result<(), GuestError> {
        self.driver.flush().map_err(failed)
    }
}
