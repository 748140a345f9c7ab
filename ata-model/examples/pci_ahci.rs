//! An AHCI function on a PCI bus: found, placed and given an MSI message as firmware does it, then
//! asked who its drive is.
//!
//! `cargo run -p ata-model --example pci_ahci`

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "an example may stop where it goes wrong"
)]

use ata_model::{DriveConfig, PciAhci};
use blk_core::bus::{Device, IrqChange, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::pci::{Message, MsixOwner, PciFunction};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;

const ABAR: u64 = 0xfe00_0000;

/// Two ports, of which one has a drive; the MSI-X table has an entry for each port.
struct Machine<'a> {
    memory: CellMemory<'a>,
    disks: [RamDisk<'a, 32>; 1],
    function: PciFunction<PciAhci<2>, 2>,
    /// The last message that it sent: what a machine writes to the interrupt controller.
    sent: Option<Message>,
}

impl Machine<'_> {
    fn config(&mut self, offset: u64, width: Width) -> u64 {
        self.function.read(Region::Config, offset, width, &self.memory, &mut self.disks[..]).value
    }

    /// A machine that maps memory looks at `self.function.config()` now, and maps the BARs again.
    fn set_config(&mut self, offset: u64, width: Width, value: u64) {
        let region = Region::Config;
        let write = self.function.write(region, offset, width, value, &self.memory, &mut self.disks[..]);
        self.interrupt(write.irq);
    }

    /// The bus: in which BAR an address is.
    fn decode(&self, address: u64) -> Option<(Region, u64)> {
        let bars = (0..6).filter_map(|n| Some((n, self.function.config().bar(n)?)));
        let mut offsets = bars.filter_map(|(n, (base, bytes))| {
            Some((Region::Bar(n), address.checked_sub(base).filter(|at| *at < bytes.into())?))
        });
        offsets.next()
    }

    fn read(&mut self, address: u64) -> u64 {
        let Some((bar, at)) = self.decode(address) else { return Width::Dword.ones() };
        self.function.read(bar, at, Width::Dword, &self.memory, &mut self.disks[..]).value
    }

    fn write(&mut self, address: u64, value: u64) {
        let Some((bar, at)) = self.decode(address) else { return };
        let write = self.function.write(bar, at, Width::Dword, value, &self.memory, &mut self.disks[..]);
        self.interrupt(write.irq);
        loop {
            let progress = self.function.poll(&self.memory, &mut self.disks[..]);
            self.interrupt(progress.irq);
            if !progress.again {
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

    fn capability(&mut self, id: u64) -> u64 {
        let mut at = self.config(0x34, Width::Byte);
        while self.config(at, Width::Byte) != id {
            at = self.config(at + 1, Width::Byte);
        }
        at
    }
}

fn main() {
    let (mut ram, mut image, mut staging) = ([0; 0x2000], [0; 1 << 16], [0; 32 * 512]);
    let ahci = PciAhci::new([Some(DriveConfig::new("RAM DISK", "0001")), None]);
    let machine = &mut Machine {
        memory: CellMemory::new(GuestAddr(0), &mut ram),
        disks: [RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut staging)],
        function: PciFunction::new(ahci, MsixOwner::Function),
        sent: None,
    };
    println!("{:08x}, class {:06x}", machine.config(0, Width::Dword), machine.config(8, Width::Dword) >> 8);
    // Place BAR 5, enable memory and bus mastering; MSI: address, data, enable.
    machine.set_config(0x24, Width::Dword, ABAR);
    machine.set_config(0x04, Width::Word, 6);
    let msi = machine.capability(0x05);
    machine.set_config(msi + 4, Width::Dword, 0xfee0_0000);
    machine.set_config(msi + 12, Width::Word, 0x41);
    machine.set_config(msi + 2, Width::Word, 1);
    println!("AHCI {:x}, ports {:b}", machine.read(ABAR + 0x10), machine.read(ABAR + 0x0c));

    // Port 0: list at 0, FISes at 400h; errors, interrupts; GHC.IE; FRE, ST.
    let all = u64::from(u32::MAX);
    let start = [(0x108, 0x400), (0x130, all), (0x114, all), (0x004, 2), (0x118, 0x10), (0x118, 0x11)];
    start.into_iter().for_each(|(register, value)| machine.write(ABAR + register, value));
    // IDENTIFY DEVICE in slot 0: the header, the FIS in a table at 500h, one PRD of 512 bytes at
    // 1000h.
    let pieces = [(0, 0x1_0005_u64), (8, 0x500), (0x500, 0xec_8027), (0x580, 0x1000), (0x588, 511 << 32)];
    for (address, bytes) in pieces {
        machine.memory.write(GuestAddr(address), &bytes.to_le_bytes()).unwrap();
    }
    machine.write(ABAR + 0x138, 1);
    let mut identity = [0; 512];
    machine.memory.read(GuestAddr(0x1000), &mut identity).unwrap();
    // Words 27 to 46: each has its first character in the high byte.
    let model: Vec<u8> = identity[54..94].chunks(2).flat_map(|word| [word[1], word[0]]).collect();
    println!("{}", String::from_utf8_lossy(&model));
    assert_eq!(model.trim_ascii(), b"RAM DISK");
    assert_eq!(machine.sent, Some(Message { address: 0xfee0_0000, data: 0x41 }));
}
