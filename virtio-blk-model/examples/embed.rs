//! A virtio-blk device over a RAM disk, as a machine embeds it: accesses in, interrupt levels out.
//!
//! `cargo run -p virtio-blk-model --example embed`

use blk_core::bus::{Device, IrqChange, Region, Width, WriteStatus};
use blk_core::memory::CellMemory;
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use virtio_blk_model::device::Config;
use virtio_blk_model::front::mmio::{Mmio, register};

/// A machine with one device: one queue, 64 requests in flight. The machine has decoded addresses to offsets.
struct Machine<'a> {
    memory: CellMemory<'a>,
    disk: [RamDisk<'a, 64>; 1],
    device: Mmio<1, 64>,
}

impl Machine<'_> {
    fn load(&mut self, offset: u64, width: Width) -> u64 {
        let access = self.device.read(Region::Bar(0), offset, width, &self.memory, &mut self.disk[..]);
        interrupt(access.irq);
        access.value
    }

    /// Returns when the write has taken effect. A machine with other vCPUs to run lets this one wait instead.
    fn store(&mut self, offset: u64, width: Width, value: u64) {
        let access =
            self.device.write(Region::Bar(0), offset, width, value, &self.memory, &mut self.disk[..]);
        interrupt(access.irq);
        let mut waiting = access.value == WriteStatus::Pending;
        loop {
            let progress = self.device.poll(&self.memory, &mut self.disk[..]);
            interrupt(progress.irq);
            waiting &= progress.pending_write;
            if !progress.again && !waiting {
                return;
            }
        }
    }
}

fn interrupt(change: IrqChange) {
    if let Some(level) = change.line(0) {
        println!("interrupt line: {level}");
    }
}

fn main() {
    let (mut ram, mut image) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let disk = RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut []);
    let device = Mmio::new(Config { serial: *b"embedded\0\0\0\0\0\0\0\0\0\0\0\0", ..Config::default() });
    let mut machine = Machine { memory: CellMemory::new(GuestAddr(0), &mut ram), disk: [disk], device };

    let magic = machine.load(register::MAGIC_VALUE, Width::Dword) as u32;
    let device_id = machine.load(register::DEVICE_ID, Width::Dword);
    let capacity = machine.load(register::CONFIG, Width::Qword);
    let magic = String::from_utf8_lossy(&magic.to_le_bytes()).into_owned();
    println!("{magic}, device {device_id}, {capacity} sectors");
    machine.store(register::STATUS, Width::Dword, 0);
    println!("reset: status {}", machine.load(register::STATUS, Width::Dword));
}
