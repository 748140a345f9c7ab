//! An AHCI HBA over a RAM disk, driven through its registers as firmware would: a write, a flush, a
//! read.
//!
//! `cargo run -p ata-model --example ahci`

#![allow(clippy::unwrap_used, reason = "an example may stop where it goes wrong")]

use ata_model::{DriveConfig, Hba};
use blk_core::bus::{Device, IrqChange, Region, Width};
use blk_core::memory::{CellMemory, GuestMemory};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use register::{GHC, IS, PXCI, PXCLB, PXCMD, PXFB, PXIE, PXIS, PXSERR, PXTFD};

/// Where the driver has the command list, the FISes that it receives, a command table, and its data
/// (AHCI 1.3.1, 4.2).
const LIST: u64 = 0;
const RECEIVED: u64 = 0x400;
const TABLE: u64 = 0x500;
const OUT: u64 = 0x1000;
const IN: u64 = 0x1200;
/// Registers of the HBA and of port 0 (AHCI 1.3.1, 3.1 and 3.3).
mod register {
    pub(crate) const GHC: u64 = 0x004;
    pub(crate) const IS: u64 = 0x008;
    pub(crate) const PXCLB: u64 = 0x100;
    pub(crate) const PXFB: u64 = 0x108;
    pub(crate) const PXIS: u64 = 0x110;
    pub(crate) const PXIE: u64 = 0x114;
    pub(crate) const PXCMD: u64 = 0x118;
    pub(crate) const PXTFD: u64 = 0x120;
    pub(crate) const PXSERR: u64 = 0x130;
    pub(crate) const PXCI: u64 = 0x138;
}

/// Memory and disks come in with each call, interrupts come back. One port, 32 commands in flight.
struct Machine<'a> {
    memory: CellMemory<'a>,
    disks: [RamDisk<'a, 32>; 1],
    hba: Hba<1>,
}

impl Machine<'_> {
    fn read(&mut self, offset: u64) -> u64 {
        self.hba.read(Region::Bar(5), offset, Width::Dword, &self.memory, &mut self.disks[..]).value
    }

    /// Returns when the HBA has nothing left to do. A machine with other things to do polls from
    /// its event loop.
    fn write(&mut self, offset: u64, value: u64) {
        let bar = Region::Bar(5);
        let access = self.hba.write(bar, offset, Width::Dword, value, &self.memory, &mut self.disks[..]);
        interrupt(access.irq);
        loop {
            let progress = self.hba.poll(&self.memory, &mut self.disks[..]);
            interrupt(progress.irq);
            if !progress.again {
                return;
            }
        }
    }

    /// The driver: a command for sector `lba`, with 512 bytes at `data` if it has any. Returns
    /// PxTFD, the task file.
    fn command(&mut self, opcode: u8, lba: u8, data: Option<u64>, write: bool) -> u64 {
        // The header in slot 0: a FIS of 5 dwords, the direction, the number of PRDs; then the
        // table's address.
        let header = 5 | u64::from(write) << 6 | u64::from(data.is_some()) << 16;
        let fis = [0x27, 0x80, opcode, 0, lba, 0, 0, 0x40, 0, 0, 0, 0, 1, 0, 0, 0];
        self.memory.write(GuestAddr(LIST), &header.to_le_bytes()).unwrap();
        self.memory.write(GuestAddr(LIST + 8), &TABLE.to_le_bytes()).unwrap();
        self.memory.write(GuestAddr(TABLE), &fis).unwrap();
        self.memory.write(GuestAddr(TABLE + 0x80), &data.unwrap_or(0).to_le_bytes()).unwrap();
        self.memory.write(GuestAddr(TABLE + 0x8c), &511_u32.to_le_bytes()).unwrap();
        self.write(PXCI, 1);
        assert_eq!(self.read(PXCI), 0, "the command has ended");
        let status = self.read(PXIS);
        self.write(PXIS, status);
        self.write(IS, 1);
        self.read(PXTFD)
    }
}

fn interrupt(change: IrqChange) {
    if let Some(level) = change.line(0) {
        println!("  INTx: {level}");
    }
}

fn main() {
    let (mut ram, mut image, mut staging) = ([0; 0x2000], [0; 1 << 16], [0; 32 * 512]);
    let machine = &mut Machine {
        memory: CellMemory::new(GuestAddr(0), &mut ram),
        disks: [RamDisk::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut staging)],
        hba: Hba::new([Some(DriveConfig::new("RAM DISK", "0001"))]),
    };
    // Where list and FISes are; what the plugging of the drive left; interrupts of the port and of
    // the HBA; receive FISes, start.
    let all = u64::from(u32::MAX);
    for (offset, value) in
        [(PXCLB, LIST), (PXFB, RECEIVED), (PXSERR, all), (PXIE, all), (GHC, 2), (PXCMD, 0x10), (PXCMD, 0x11)]
    {
        machine.write(offset, value);
    }
    machine.memory.write(GuestAddr(OUT), &[b'x'; 512]).unwrap();
    println!("WRITE DMA EXT, sector 7: PxTFD {:#x}", machine.command(0x35, 7, Some(OUT), true));
    println!("FLUSH CACHE EXT: PxTFD {:#x}", machine.command(0xea, 0, None, false));
    println!("READ DMA EXT, sector 7: PxTFD {:#x}", machine.command(0x25, 7, Some(IN), false));
    let mut back = [0; 512];
    machine.memory.read(GuestAddr(IN), &mut back).unwrap();
    assert_eq!(back, [b'x'; 512]);
    assert_eq!(machine.read(PXTFD) & 0xff, 0x50, "ready, without an error");
}
