//! A PIIX4 IDE function at the ports of a PC, driven as a BIOS or a driver would: a write and a
//! read by bus-master DMA.
//!
//! `cargo run -p ata-model --example pci_ide`

#![allow(clippy::unwrap_used, reason = "an example may stop where it goes wrong")]

use ata_model::{DriveConfig, PciIde, PciIdeChip, PciIdeMode};
use blk_core::bus::{Device, IrqChange, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;

/// Where the firmware puts BAR 4, the bus master.
const BUS_MASTER: u64 = 0xc000;

/// One drive, the master of the primary channel. The function has no messages, so its MSI-X table
/// has no entries.
struct Machine<'a> {
    memory: CellMemory<'a>,
    disks: [RamDisk<'a, 1>; 1],
    function: PciFunction<PciIde, 0>,
    irq_14: bool,
}

/// The bus: in compatibility mode the first four BARs are at fixed ports. (A machine asks
/// `function.config().bar(4)` for the last.)
fn decode(port: u64) -> Option<(Region, u64)> {
    let bars = [(0, 0x1f0, 8), (1, 0x3f4, 4), (2, 0x170, 8), (3, 0x374, 4), (4, BUS_MASTER, 16)];
    bars.into_iter().find_map(|(n, base, ports)| {
        Some((Region::Bar(n), port.checked_sub(base).filter(|offset| *offset < ports)?))
    })
}

impl Machine<'_> {
    fn input(&mut self, port: u64) -> u64 {
        let Some((bar, at)) = decode(port) else { return 0xff };
        let read = self.function.read(bar, at, Width::Byte, &self.memory, &mut self.disks[..]);
        self.interrupt(read.irq);
        read.value
    }

    fn output(&mut self, port: u64, width: Width, value: u64) {
        let Some((bar, at)) = decode(port) else { return };
        let write = self.function.write(bar, at, width, value, &self.memory, &mut self.disks[..]);
        self.interrupt(write.irq);
        loop {
            let progress = self.function.poll(&self.memory, &mut self.disks[..]);
            self.interrupt(progress.irq);
            if !progress.again {
                return;
            }
        }
    }

    /// In compatibility mode lines 0 and 1 are the wires to IRQ 14 and 15.
    fn interrupt(&mut self, change: IrqChange) {
        if let Some(level) = change.line(0) {
            self.irq_14 = level;
            println!("  IRQ 14: {level}");
        }
    }

    /// The driver: one sector by DMA, to memory or from it, with a PRD table at 0. Returns Status.
    fn dma(&mut self, command: u64, lba: u64, data: u64) -> u64 {
        // One region of 512 bytes, the last of the table.
        let prd = data | 512 << 32 | 0x8000 << 48;
        self.memory.write(GuestAddr(0), &prd.to_le_bytes()).unwrap();
        let to_memory = if command == 0xc8 { 8 } else { 0 };
        self.output(BUS_MASTER + 4, Width::Dword, 0);
        self.output(BUS_MASTER, Width::Byte, to_memory);
        for (port, value) in
            [(0x1f6, 0xe0), (0x1f2, 1), (0x1f3, lba), (0x1f4, 0), (0x1f5, 0), (0x1f7, command)]
        {
            self.output(port, Width::Byte, value);
        }
        self.output(BUS_MASTER, Width::Byte, to_memory | 1);
        assert!(self.irq_14, "the command has ended");
        self.output(BUS_MASTER, Width::Byte, 0);
        assert_eq!(self.input(BUS_MASTER + 2) & 7, 4, "an interrupt, no error, not active any more");
        self.output(BUS_MASTER + 2, Width::Byte, 4);
        self.input(0x1f7)
    }
}

fn main() {
    let (mut ram, mut image, mut staging) = ([0; 0x2000], [0; 1 << 16], [0; 512]);
    let drives = [Some(DriveConfig::new("RAM DISK", "0001")), None, None, None];
    let ide = PciIde::new(drives, PciIdeChip::Piix4, PciIdeMode::Compatibility);
    let machine = &mut Machine {
        memory: CellMemory::new(GuestAddr(0), &mut ram),
        disks: [RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut staging)],
        function: PciFunction::new(ide, MsixOwner::Function),
        irq_14: false,
    };
    // The firmware: BAR 4; ports and bus mastering.
    for (register, width, value) in [(0x20, Width::Dword, BUS_MASTER), (0x04, Width::Word, 5)] {
        machine.function.write(
            Region::Config,
            register,
            width,
            value,
            &machine.memory,
            &mut machine.disks[..],
        );
    }
    machine.memory.write(GuestAddr(0x1000), &[b'x'; 512]).unwrap();
    println!("WRITE DMA, sector 7: status {:#x}", machine.dma(0xca, 7, 0x1000));
    println!("READ DMA, sector 7: status {:#x}", machine.dma(0xc8, 7, 0x1800));
    let mut back = [0; 512];
    machine.memory.read(GuestAddr(0x1800), &mut back).unwrap();
    assert_eq!(back, [b'x'; 512]);
}
