//! A type-1 hypervisor: a disk that several vCPUs share behind a spinlock, dispatched by an object, on a controller that
//! interrupts. Everything is in statics.
//!
//! `cargo run -p virtio-blk-model --example hypervisor`

#[path = "controller/driver.rs"]
mod driver;
mod guest;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use blk_core::atomic_memory::{AtomicMemory, Region};
use blk_core::bus::{IrqChange, Width};
use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::shared_device::{MmioDevice, SharedDevice};
use blk_core::units::GuestAddr;
use driver::{Controller, Driver};
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Mmio;

type Disk = SharedDevice<Mmio<1, 64>, &'static AtomicMemory<'static>, Driver, fn(&Mmio<1, 64>, IrqChange)>;

const BASE: GuestAddr = GuestAddr(0x0a00_0000);
const REGISTERS: Range<GuestAddr> = BASE..GuestAddr(BASE.0 + 0x200);
/// The guest's memory; `AtomicMemory` says how memory at an address becomes such words.
static RAM: [AtomicU32; 0x2000] = [const { AtomicU32::new(0) }; 0x2000];
static MEMORY: AtomicMemory<'static> = AtomicMemory::new([Region::new(GuestAddr(0), &RAM)]);
static CONTROLLER: Controller = Controller::new();
const DRIVER: Driver = Driver::new(&CONTROLLER, 1 << 16);
static DISK: Disk =
    SharedDevice::new(REGISTERS, Mmio::new(Blk::new(Config::DEFAULT)), &MEMORY, [DRIVER], irq);
static DEVICES: [&dyn MmioDevice; 1] = [&DISK];
/// The virtual interrupt controller: the disk's line.
static LINE: AtomicBool = AtomicBool::new(false);

/// Called with the disk's lock held, and from the interrupt handler: it sets a bit, and waits for nothing.
fn irq(_: &Mmio<1, 64>, change: IrqChange) {
    change.line(0).into_iter().for_each(|level| LINE.store(level, Ordering::Release));
}

fn device(addr: GuestAddr) -> Option<&'static dyn MmioDevice> {
    DEVICES.iter().copied().find(|device| device.address_range().contains(&addr))
}

/// A vCPU's exits.
struct Vcpu;

impl guest::Machine for Vcpu {
    fn memory(&self) -> &impl GuestMemory {
        &MEMORY
    }

    fn load(&mut self, offset: u64) -> u32 {
        let addr = GuestAddr(BASE.0.wrapping_add(offset));
        device(addr).map_or(u32::MAX, |device| device.read(addr, Width::Dword) as u32)
    }

    fn store(&mut self, offset: u64, value: u32) {
        let addr = GuestAddr(BASE.0.wrapping_add(offset));
        if let Some(device) = device(addr) {
            device.write(addr, Width::Dword, value.into());
            while device.poll() {}
        }
    }

    fn halt(&mut self) {
        while !LINE.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

fn main() -> Result<(), MemoryError> {
    thread::spawn(|| {
        driver::play_hardware(&CONTROLLER, &MEMORY, 1 << 16, || {
            // The host's interrupt handler, on whatever processor and in whatever code.
            CONTROLLER.handle_interrupt();
            DISK.handle_interrupt();
        })
    });
    guest::run(&mut Vcpu)
}
