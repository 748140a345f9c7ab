//! A virtio-scsi controller with one disk behind virtio-mmio, and a guest that writes a block and
//! reads it back.
//!
//! `cargo run -p scsi-model --example virtio_scsi`

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "an example may stop where it goes wrong"
)]

use blk_core::bus::{Device, IrqChange, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::{Cache, Storage};
use blk_core::units::GuestAddr;
use blk_core::virtio::mmio::register;
use scsi_model::Config as Identity;
use scsi_model::front::virtio_scsi::{Address, Config, Mmio, REQUEST, Scsi};

/// Memory and disks come in with each call, interrupts come back. One request queue, one unit, 16
/// tasks in it.
struct Machine<'a> {
    memory: CellMemory<'a>,
    disks: [RamDisk<'a, 16>; 1],
    device: Mmio<1, 1, 16>,
    /// The driver's available index.
    sent: u16,
}

impl Machine<'_> {
    /// Returns when the device has nothing left to do. A machine with other things to do polls from
    /// its event loop.
    fn write(&mut self, offset: u64, value: u64) {
        let bar = Region::Bar(0);
        let write = self.device.write(bar, offset, Width::Dword, value, &self.memory, &mut self.disks[..]);
        interrupt(write.irq);
        loop {
            let progress = self.device.poll(&self.memory, &mut self.disks[..]);
            interrupt(progress.irq);
            if !progress.again {
                return;
            }
        }
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write(GuestAddr(address), bytes).unwrap();
    }

    /// The driver: a command with 512 bytes at 6000h to or from the device. Returns the response
    /// and the SCSI status.
    fn command(&mut self, cdb: &[u8], data: Option<u16>) -> (u8, u8) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        // 51 bytes: LUN 0 of target 0 (VIRTIO 1.3, 5.6.6.1), an identifier, a SIMPLE task, the
        // command block.
        let mut header = [0; 51];
        header[..4].copy_from_slice(&[1, 0, 0x40, 0]);
        header[19..19 + cdb.len()].copy_from_slice(cdb);
        self.put(0x4000, &header);
        // The header; data out before the response, data in after it.
        let response = (0x5000_u64, 108_u32, WRITE);
        let block = |flags| (0x6000, 512, flags);
        let chain = match data {
            None => [Some((0x4000, 51, 0)), Some(response), None],
            Some(WRITE) => [Some((0x4000, 51, 0)), Some(response), Some(block(WRITE))],
            Some(flags) => [Some((0x4000, 51, 0)), Some(block(flags)), Some(response)],
        };
        let count = chain.iter().flatten().count() as u16;
        for (n, (address, bytes, flags)) in (0_u16..).zip(chain.into_iter().flatten()) {
            let (next, flags) = if n + 1 < count { (n + 1, flags | NEXT) } else { (0, flags) };
            let low = u64::from(bytes) | u64::from(flags) << 32 | u64::from(next) << 48;
            self.put(0x1000 + 16 * u64::from(n), &address.to_le_bytes());
            self.put(0x1008 + 16 * u64::from(n), &low.to_le_bytes());
        }
        // The available ring's entries are all 0, which is this chain.
        self.sent += 1;
        self.memory.store_u16_release(GuestAddr(0x2002), self.sent).unwrap();
        self.write(register::QUEUE_NOTIFY, REQUEST as u64);
        self.write(register::INTERRUPT_ACK, 1);
        let mut answer = [0xff; 108];
        self.memory.read(GuestAddr(0x5000), &mut answer).unwrap();
        (answer[11], answer[10])
    }
}

fn interrupt(change: IrqChange) {
    if let Some(level) = change.line(0) {
        println!("  interrupt line: {level}");
    }
}

fn main() {
    let (mut ram, mut image, mut staging) = ([0; 0x8000], [0; 1 << 16], [0; 16 * 512]);
    let disks = [RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut staging)];
    let mut scsi = Scsi::new(Config::default());
    let info = Storage::<CellMemory<'_>>::info(&disks[0]);
    let identity = Identity::new("BLK", "RAM DISK", "1", "0001");
    scsi.controller_mut().insert(Address { target: 0, lun: 0 }, identity, info).unwrap();
    let memory = CellMemory::new(GuestAddr(0), &mut ram);
    let machine = &mut Machine { memory, disks, device: Mmio::new(scsi), sent: 0 };

    // ACKNOWLEDGE and DRIVER; VERSION_1 (bit 32); FEATURES_OK; the request queue; DRIVER_OK.
    #[rustfmt::skip]
    let boot = [
        (register::STATUS, 3), (register::DRIVER_FEATURES_SEL, 1), (register::DRIVER_FEATURES, 1), (register::STATUS, 11),
        (register::QUEUE_SEL, REQUEST as u64), (register::QUEUE_SIZE, 8), (register::QUEUE_DESC_LOW, 0x1000),
        (register::QUEUE_DRIVER_LOW, 0x2000), (register::QUEUE_DEVICE_LOW, 0x3000), (register::QUEUE_READY, 1),
        (register::STATUS, 15),
    ];
    boot.into_iter().for_each(|(offset, value)| machine.write(offset, value));
    println!(
        "TEST UNIT READY: {:?}: CHECK CONDITION, for the unit attention POWER ON",
        machine.command(&[0; 6], None)
    );
    machine.put(0x6000, &[b'x'; 512]);
    let written = machine.command(&[0x2a, 0x08, 0, 0, 0, 7, 0, 0, 1, 0], Some(0));
    machine.put(0x6000, &[0; 512]);
    let read = machine.command(&[0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0], Some(2));
    let mut back = [0; 512];
    machine.memory.read(GuestAddr(0x6000), &mut back).unwrap();
    println!("WRITE(10) with FUA, block 7: {written:?}; READ(10): {read:?}");
    assert_eq!((written, read), ((0, 0), (0, 0)));
    assert_eq!(back, [b'x'; 512]);
}
