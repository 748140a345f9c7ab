//! A virtio-blk function on a PCI bus: found by its capabilities, interrupting by MSI-X, with a
//! guest that writes a block.
//!
//! `cargo run -p virtio-blk-model --example pci`

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "an example may stop where it goes wrong"
)]

use blk_core::bus::{Device, IrqChange, Region, Width, WriteStatus};
use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::pci::{Message, MsixOwner, PciFunction};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Pci;
use virtio_blk_model::front::pci::common;

/// One queue, 64 requests in flight; an MSI-X vector for it, and one for changes of the
/// configuration.
struct Machine<'a> {
    memory: CellMemory<'a>,
    disks: [RamDisk<'a, 64>; 1],
    function: PciFunction<Pci<1, 64>, 2>,
    /// The last message that it sent: what a machine writes to the interrupt controller.
    sent: Option<Message>,
}

impl Machine<'_> {
    /// A machine decodes an address by `self.function.config().bar(0)`; here the driver names the
    /// BAR.
    fn read(&mut self, region: Region, offset: u64, width: Width) -> u64 {
        self.function.read(region, offset, width, &self.memory, &mut self.disks[..]).value
    }

    /// Returns when the device has nothing left to do. A machine with other things to do polls from
    /// its event loop.
    fn write(&mut self, region: Region, offset: u64, width: Width, value: u64) {
        let write = self.function.write(region, offset, width, value, &self.memory, &mut self.disks[..]);
        self.interrupt(write.irq);
        let mut pending = write.value == WriteStatus::Pending;
        loop {
            let progress = self.function.poll(&self.memory, &mut self.disks[..]);
            self.interrupt(progress.irq);
            pending &= progress.pending_write;
            if !pending && !progress.again {
                return;
            }
        }
    }

    /// Line 0 is the pin, line `1 + v` message v.
    fn interrupt(&mut self, change: IrqChange) {
        for vector in (0..2).filter(|vector| change.line(1 + *vector) == Some(true)) {
            self.sent = self.function.message(vector.into());
            println!("  message {vector}: {:x?}", self.sent);
        }
    }

    /// The driver: where in BAR 0 the structure of `kind` is (VIRTIO 1.3, 4.1.4: cap_vndr,
    /// cap_next, cap_len, cfg_type, bar).
    fn structure(&mut self, kind: u64) -> u64 {
        let mut at = self.read(Region::Config, 0x34, Width::Byte);
        while self.read(Region::Config, at, Width::Byte) != 0x09
            || self.read(Region::Config, at + 3, Width::Byte) != kind
        {
            at = self.read(Region::Config, at + 1, Width::Byte);
        }
        self.read(Region::Config, at + 8, Width::Dword)
    }
}

fn main() {
    let (mut ram, mut image) = ([0; 0x8000], [0; 1 << 16]);
    let disk = RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut []);
    let (memory, device) = (CellMemory::new(GuestAddr(0), &mut ram), Pci::new(Blk::new(Config::DEFAULT)));
    let function = PciFunction::new(device, MsixOwner::Function);
    let machine = &mut Machine { memory, disks: [disk], function, sent: None };
    let (config, bar) = (Region::Config, Region::Bar(0));

    println!("{:08x}", machine.read(config, 0, Width::Dword));
    // Memory and bus mastering; MSI-X, which is the first capability, at 40h; vector 1: address,
    // data, unmasked.
    machine.write(config, 0x04, Width::Word, 6);
    machine.write(config, 0x42, Width::Word, 1 << 15);
    let table = machine.read(config, 0x44, Width::Dword);
    for (offset, value) in [(16, 0xfee0_0000), (24, 0x41), (28, 0)] {
        machine.write(bar, table + offset, Width::Dword, value);
    }
    let [registers, notify, device] = [1, 2, 4].map(|kind| machine.structure(kind));
    println!("{} sectors", machine.read(bar, device, Width::Qword));
    // ACKNOWLEDGE and DRIVER; FLUSH (bit 9), VERSION_1 (bit 32); FEATURES_OK; the ring and its
    // vector; DRIVER_OK.
    for (register, width, value) in [
        (common::DEVICE_STATUS, Width::Byte, 3),
        (common::DRIVER_FEATURE, Width::Dword, 1 << 9),
        (common::DRIVER_FEATURE_SELECT, Width::Dword, 1),
        (common::DRIVER_FEATURE, Width::Dword, 1),
        (common::DEVICE_STATUS, Width::Byte, 11),
        (common::QUEUE_SIZE, Width::Word, 8),
        (common::QUEUE_MSIX_VECTOR, Width::Word, 1),
        (common::QUEUE_DESC, Width::Qword, 0x1000),
        (common::QUEUE_DRIVER, Width::Qword, 0x2000),
        (common::QUEUE_DEVICE, Width::Qword, 0x3000),
        (common::QUEUE_ENABLE, Width::Word, 1),
        (common::DEVICE_STATUS, Width::Byte, 15),
    ] {
        machine.write(bar, registers + register, width, value);
    }
    // OUT of sector 7 (type 1): a header, 512 bytes that the device reads, a status byte that it
    // writes; the ring's index is 1.
    let chain = [0x4000, 16 | 1 << 32 | 1 << 48, 0x5000, 512 | 1 << 32 | 2 << 48, 0x6000, 1 | 2 << 32];
    for (start, words) in
        [(0x1000, &chain[..]), (0x4000, &[1, 7]), (0x5000, &[u64::MAX; 64]), (0x6000, &[0xff])]
    {
        for (address, word) in (start..).step_by(8).zip(words) {
            machine.memory.write(GuestAddr(address), &word.to_le_bytes()).unwrap();
        }
    }
    machine.memory.store_u16_release(GuestAddr(0x2002), 1).unwrap();
    machine.write(bar, notify, Width::Word, 0);

    let mut status = [0xff];
    machine.memory.read(GuestAddr(0x6000), &mut status).unwrap();
    println!("OUT, sector 7: status {}", status[0]);
    assert_eq!((status, machine.sent), ([0], Some(Message { address: 0xfee0_0000, data: 0x41 })));
    assert_eq!(machine.disks[0].medium().bytes()[7 * 512..8 * 512], [0xff; 512]);
}
