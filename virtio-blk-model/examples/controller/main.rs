//! A disk on a controller that completes by interrupt: a guest uses it, and resets it in the middle of a write.
//!
//! `cargo run -p virtio-blk-model --example controller`

mod driver;
#[path = "../guest/mod.rs"]
mod guest;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use blk_core::atomic_memory::{AtomicMemory, Region};
use blk_core::bus::{self, IrqChange, Width};
use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::shared_device::SharedDevice;
use blk_core::units::GuestAddr;
use driver::{Controller, Driver};
use guest::{Kind, Machine};
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Mmio;
use virtio_blk_model::front::mmio::register;

type Memory = AtomicMemory<'static>;
type Disk = SharedDevice<Mmio<1, 64>, &'static Memory, Driver, fn(&Mmio<1, 64>, IrqChange)>;

const REGISTERS: Range<GuestAddr> = GuestAddr(0)..GuestAddr(0x200);
const DRIVER: Driver = Driver::new(&CONTROLLER, 1 << 16);
static RAM: [AtomicU32; 0x2000] = [const { AtomicU32::new(0) }; 0x2000];
static MEMORY: Memory = AtomicMemory::new([Region::new(GuestAddr(0), &RAM)]);
static CONTROLLER: Controller = Controller::new();
static DISK: Disk =
    SharedDevice::new(REGISTERS, Mmio::new(Blk::new(Config::DEFAULT)), &MEMORY, [DRIVER], irq);
static LINE: AtomicBool = AtomicBool::new(false);
/// The disk is slow from now on.
static SLOW: AtomicBool = AtomicBool::new(false);

fn irq(_: &Mmio<1, 64>, change: IrqChange) {
    change.line(0).into_iter().for_each(|level| LINE.store(level, Ordering::Release));
}

struct Vcpu;

impl Machine for Vcpu {
    fn memory(&self) -> &impl GuestMemory {
        &MEMORY
    }

    fn load(&mut self, offset: u64) -> u32 {
        DISK.read(bus::Region::Bar(0), offset, Width::Dword) as u32
    }

    fn store(&mut self, offset: u64, value: u32) {
        DISK.write(bus::Region::Bar(0), offset, Width::Dword, value.into());
        while DISK.poll() {}
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
            if SLOW.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
            }
            CONTROLLER.handle_interrupt();
            DISK.handle_interrupt();
        })
    });
    guest::run(&mut Vcpu)?;

    // A write is in flight, and the guest resets the device: its write to the register waits for the disk.
    SLOW.store(true, Ordering::Relaxed);
    guest::send(&mut Vcpu, 4, Kind::Out, 9)?;
    let begun = Instant::now();
    Vcpu.store(register::STATUS, 0);
    println!("guest: a reset with a write in flight took {} ms", begun.elapsed().as_millis());
    assert!(begun.elapsed() > Duration::from_millis(50));
    assert_eq!(Vcpu.load(register::STATUS), 0, "nothing lands any more");
    SLOW.store(false, Ordering::Relaxed);
    guest::run(&mut Vcpu)
}
