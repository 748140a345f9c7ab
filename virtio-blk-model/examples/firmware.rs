//! Firmware that shows a guest a disk in flash, from a polling loop: no interrupts, no lock, no allocator.
//!
//! `cargo run -p virtio-blk-model --example firmware`

mod guest;

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory, MemoryError};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Mmio;

struct Firmware<'a> {
    memory: CellMemory<'a>,
    /// In its place: `IoMedium` over a driver of embedded-io, or a `Medium` of yours.
    flash: [RamDisk<'a, 8>; 1],
    device: Mmio<1, 8>,
}

impl Firmware<'_> {
    /// The loop: what firmware does while the guest is stopped. Returns when there is nothing left to be done.
    fn poll(&mut self) {
        loop {
            // Interrupt changes are dropped: this guest polls its ring.
            let progress = self.device.poll(&self.memory, &mut self.flash[..]);
            if !progress.again && !progress.pending_write {
                return;
            }
        }
    }
}

/// What a guest's exits come to.
impl guest::Machine for Firmware<'_> {
    fn memory(&self) -> &impl GuestMemory {
        &self.memory
    }

    fn load(&mut self, offset: u64) -> u32 {
        self.device.read(Region::Bar(0), offset, Width::Dword, &self.memory, &mut self.flash[..]).value as u32
    }

    fn store(&mut self, offset: u64, value: u32) {
        let (bar, value) = (Region::Bar(0), value.into());
        self.device.write(bar, offset, Width::Dword, value, &self.memory, &mut self.flash[..]);
        // The guest goes on once the loop has returned, and so not while a write is pending.
        self.poll();
    }

    fn halt(&mut self) {
        self.poll();
    }
}

fn main() -> Result<(), MemoryError> {
    let (mut ram, mut image) = ([0; 0x8000], [0; 0x1_0000]);
    let flash = RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteThrough), &mut []);
    let (memory, device) = (CellMemory::new(GuestAddr(0), &mut ram), Mmio::new(Blk::new(Config::DEFAULT)));
    guest::run(&mut Firmware { memory, flash: [flash], device })
}
