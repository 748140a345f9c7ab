//! A machine of twenty lines with a virtio-blk disk, and a guest in it that writes a block and flushes.
//!
//! `cargo run -p virtio-blk-model --example embed`

use blk_core::bus::{Device, IrqChange, Region, Width, WriteStatus};
use blk_core::memory::{CellMemory, GuestMemory, MemoryError};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::mmio::{Mmio, register};

/// Memory and disks come in with each call, interrupts come back. One queue, 64 requests in flight.
struct Machine<'a> {
    memory: CellMemory<'a>,
    disks: [RamDisk<'a, 64>; 1],
    device: Mmio<1, 64>,
}

impl Machine<'_> {
    fn read(&mut self, offset: u64, width: Width) -> u64 {
        let read = self.device.read(Region::Bar(0), offset, width, &self.memory, &mut self.disks[..]);
        interrupt(read.irq);
        read.value
    }

    /// Returns when the device has nothing left to do. A machine with other things to do polls from its event loop.
    fn write(&mut self, offset: u64, width: Width, value: u64) {
        let bar = Region::Bar(0);
        let write = self.device.write(bar, offset, width, value, &self.memory, &mut self.disks[..]);
        interrupt(write.irq);
        let mut pending = write.value == WriteStatus::Pending;
        loop {
            let progress = self.device.poll(&self.memory, &mut self.disks[..]);
            interrupt(progress.irq);
            pending &= progress.pending_write;
            if !pending && !progress.again {
                return;
            }
        }
    }
}

fn interrupt(change: IrqChange) {
    if let Some(level) = change.line(0) {
        println!("  interrupt line: {level}");
    }
}

/// The guest's `n`th request: a header, 512 bytes that the device reads, and a status byte, which is returned.
fn request(machine: &mut Machine<'_>, n: u16, kind: u64, sector: u64) -> Result<u8, MemoryError> {
    const NEXT: u64 = 1 << 32;
    const DEVICE_WRITES: u64 = 2 << 32;
    let chain = [0x3000, 16 | NEXT | 1 << 48, 0x4000, 512 | NEXT | 2 << 48, 0x5000, 1 | DEVICE_WRITES];
    for (words, start) in [(&chain[..], 0), (&[kind, sector], 0x3000)] {
        for (at, word) in (start..).step_by(8).zip(words) {
            machine.memory.write(GuestAddr(at), &word.to_le_bytes())?;
        }
    }
    // The available ring's entries are all 0, which is this chain.
    machine.memory.store_u16_release(GuestAddr(0x1002), n)?;
    machine.write(register::QUEUE_NOTIFY, Width::Dword, 0);
    machine.write(register::INTERRUPT_ACK, Width::Dword, 1);
    let mut status = [0xff];
    machine.memory.read(GuestAddr(0x5000), &mut status)?;
    Ok(status[0])
}

fn main() -> Result<(), MemoryError> {
    let (mut ram, mut image) = (vec![0; 1 << 16], vec![0; 1 << 20]);
    let disk = RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut []);
    let (memory, device) = (CellMemory::new(GuestAddr(0), &mut ram), Mmio::new(Blk::new(Config::DEFAULT)));
    let mut machine = Machine { memory, disks: [disk], device };

    println!("{} sectors", machine.read(register::CONFIG, Width::Qword));
    // ACKNOWLEDGE and DRIVER; FLUSH (bit 9) and VERSION_1 (bit 32); FEATURES_OK; the ring; DRIVER_OK.
    #[rustfmt::skip]
    let boot = [
        (register::STATUS, 3), (register::DRIVER_FEATURES, 1 << 9),
        (register::DRIVER_FEATURES_SEL, 1), (register::DRIVER_FEATURES, 1), (register::STATUS, 11),
        (register::QUEUE_SIZE, 8), (register::QUEUE_DRIVER_LOW, 0x1000), (register::QUEUE_DEVICE_LOW, 0x2000),
        (register::QUEUE_READY, 1), (register::STATUS, 15),
    ];
    boot.into_iter().for_each(|(offset, value)| machine.write(offset, Width::Dword, value));
    machine.memory.write(GuestAddr(0x4000), &[b'x'; 512])?;
    println!("OUT, sector 7: status {}", request(&mut machine, 1, 1, 7)?);
    println!("FLUSH: status {}", request(&mut machine, 2, 4, 0)?);
    let stored = machine.disks[0].medium().bytes().chunks(512).position(|sector| sector == [b'x'; 512]);
    println!("the disk holds the block in sector {stored:?}");
    Ok(())
}
