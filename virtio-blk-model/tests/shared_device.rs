//! The device behind a spinlock, on a controller that interrupts: vCPUs on several threads, an interrupt handler on another, and a
//! guest that resets the device with writes in flight.

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]

#[path = "../examples/controller/driver.rs"]
mod driver;
#[path = "../examples/guest/mod.rs"]
mod guest;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use blk_core::atomic_memory::{AtomicMemory, Region};
use blk_core::bus::{self, IrqChange, Width};
use blk_core::memory::GuestMemory;
use blk_core::shared_device::{RelaxStrategy, SharedDevice};
use blk_core::units::GuestAddr;
use driver::{Controller, Driver};
use guest::{Kind, Machine};
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Mmio;
use virtio_blk_model::front::mmio::register;

/// More threads than processors: who waits lets others run.
struct Yield;

impl RelaxStrategy for Yield {
    fn relax() {
        thread::yield_now();
    }
}

type Memory = AtomicMemory<'static>;
type Disk = SharedDevice<Mmio<1, 64>, &'static Memory, Driver, fn(&Mmio<1, 64>, IrqChange), 1, Yield>;

const BAR: bus::Region = bus::Region::Bar(0);
const REGISTERS: Range<GuestAddr> = GuestAddr(0)..GuestAddr(0x200);
const DRIVER: Driver = Driver::new(&CONTROLLER, 1 << 16);
static RAM: [AtomicU32; 0x2000] = [const { AtomicU32::new(0) }; 0x2000];
static MEMORY: Memory = AtomicMemory::new([Region::new(GuestAddr(0), &RAM)]);
static CONTROLLER: Controller = Controller::new();
static DISK: Disk =
    SharedDevice::new(REGISTERS, Mmio::new(Blk::new(Config::DEFAULT)), &MEMORY, [DRIVER], irq);
static LINE: AtomicBool = AtomicBool::new(false);
static ENDED: AtomicU32 = AtomicU32::new(0);

fn irq(_: &Mmio<1, 64>, change: IrqChange) {
    change.line(0).into_iter().for_each(|level| LINE.store(level, Ordering::Release));
}

struct Vcpu;

impl Machine for Vcpu {
    fn memory(&self) -> &impl GuestMemory {
        &MEMORY
    }

    fn load(&mut self, offset: u64) -> u32 {
        DISK.read(BAR, offset, Width::Dword) as u32
    }

    fn store(&mut self, offset: u64, value: u32) {
        DISK.write(BAR, offset, Width::Dword, value.into());
        while DISK.poll() {}
    }

    fn halt(&mut self) {
        while !LINE.load(Ordering::Acquire) {
            thread::yield_now();
        }
    }
}

#[test]
fn a_reset_returns_when_nothing_is_in_flight_any_more_whoever_else_uses_the_device() {
    thread::spawn(|| {
        driver::play_hardware(&CONTROLLER, &MEMORY, 1 << 16, || {
            ENDED.fetch_add(1, Ordering::Release);
            CONTROLLER.handle_interrupt();
            DISK.handle_interrupt();
        })
    });
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(Vcpu.load(register::MAGIC_VALUE), 0x7472_6976);
                    thread::yield_now();
                }
            });
        }
        // Also where an assertion fails.
        let _over = Over(&over);
        let mut sent = 0;
        for round in 0..200 {
            guest::boot(&mut Vcpu).unwrap();
            // Of each round the last write is still with the controller, as often as not.
            for n in 1..=2 {
                assert_eq!(guest::request(&mut Vcpu, n, Kind::Out, u64::from(n)), Ok(0), "round {round}");
                sent += 1;
            }
            guest::send(&mut Vcpu, 3, Kind::Out, 9).unwrap();
            sent += 1;
            Vcpu.store(register::STATUS, 0);
            assert_eq!(ENDED.load(Ordering::Acquire), sent, "round {round}: the reset has awaited it");
            assert_eq!(Vcpu.load(register::STATUS), 0);
        }
    });
}

/// Ends the other vCPUs.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
