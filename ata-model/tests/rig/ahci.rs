//! A driver of an AHCI HBA: registers, command lists and tables, as a guest writes them.

pub use ata_model::wire::ahci::port::*;
use ata_model::{DriveConfig, Hba, PciAhci};
use blk_core::bus::Width;
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Cache;

use super::{Cmd, Rig, TestDisk, drive};

pub const ST: u32 = 1;
pub const CLO: u32 = 1 << 3;
pub const FRE: u32 = 1 << 4;
pub const FR: u32 = 1 << 14;
pub const CR: u32 = 1 << 15;

pub const DHRS: u32 = 1;
pub const PSS: u32 = 1 << 1;
pub const SDBS: u32 = 1 << 3;
pub const DPS: u32 = 1 << 5;
pub const PCS: u32 = 1 << 6;
pub const PRCS: u32 = 1 << 22;
pub const OFS: u32 = 1 << 24;
pub const IFS: u32 = 1 << 27;
pub const HBFS: u32 = 1 << 29;
pub const TFES: u32 = 1 << 30;

/// PxTFD after a command that ended well, and after one that was aborted.
pub const OK: u32 = 0x50;
pub const ABORTED: u32 = 0x0451;

/// Where port `n` has its structures, and where its data may be.
pub const fn list(port: u64) -> u64 {
    port * 0x1_0000
}

pub const fn received(port: u64) -> u64 {
    list(port) + 0x400
}

pub const fn table(port: u64, slot: u64) -> u64 {
    list(port) + 0x1000 + slot * 0x400
}

pub const DATA: u64 = 0x4_0000;

pub type Pci<const P: usize> = Rig<PciFunction<PciAhci<P>, 31>>;
pub type Ahci = Pci<2>;

/// An HBA that nobody has touched.
pub fn hba<const P: usize>(drives: [Option<DriveConfig>; P], cache: Cache) -> Pci<P> {
    Rig::new(PciFunction::new(PciAhci::new(drives), MsixOwner::Function), cache)
}

/// An HBA with a drive on port 0 and none on port 1, with port 0 brought up.
pub fn ahci(cache: Cache) -> Ahci {
    let mut rig = cold(cache);
    rig.start(0);
    rig
}

/// The same before anybody has touched it.
pub fn cold(cache: Cache) -> Ahci {
    hba([drive(0), None], cache)
}

/// READ or WRITE FPDMA QUEUED.
pub fn queued(opcode: u8, tag: u8, lba: u64, count: u16, fua: bool) -> Cmd {
    let device = if fua { 0xc0 } else { 0x40 };
    Cmd { opcode, features: count, count: u16::from(tag) << 3, lba, device }
}

impl<const P: usize> Pci<P> {
    pub fn hba(&mut self) -> &mut Hba<P> {
        self.device.device_mut().hba_mut()
    }

    pub fn host(&mut self, offset: u64) -> u32 {
        self.read(5, offset, Width::Dword) as u32
    }

    pub fn set_host(&mut self, offset: u64, value: u32) {
        self.write(5, offset, Width::Dword, value.into());
    }

    pub fn reg(&mut self, port: u64, offset: u64) -> u32 {
        self.read(5, 0x100 + 0x80 * port + offset, Width::Dword) as u32
    }

    pub fn set(&mut self, port: u64, offset: u64, value: u32) {
        self.write(5, 0x100 + 0x80 * port + offset, Width::Dword, value.into());
    }

    pub fn disk(&mut self) -> &mut TestDisk {
        &mut self.disks[0]
    }

    /// As libahci does: addresses, FIS receive, errors cleared, interrupts, start.
    pub fn start(&mut self, port: u64) {
        for (offset, value) in [(CLB, list(port)), (CLBU, 0), (FB, received(port)), (FBU, 0)] {
            self.set(port, offset, value as u32);
        }
        self.set(port, CMD, FRE);
        self.set(port, SERR, u32::MAX);
        self.set(port, IS, u32::MAX);
        self.set(port, IE, u32::MAX);
        self.set_host(0x04, 2);
        self.set(port, CMD, FRE | ST);
    }

    /// Puts a Register FIS into a slot's table, with the PRD entries given as address and bytes.
    pub fn prepare(&mut self, port: u64, slot: u8, command: Cmd, regions: &[(u64, u32)]) {
        let [f0, f1] = command.features.to_le_bytes();
        let [c0, c1] = command.count.to_le_bytes();
        let [l0, l1, l2, l3, l4, l5, ..] = command.lba.to_le_bytes();
        let fis = [
            0x27,
            0x80,
            command.opcode,
            f0,
            l0,
            l1,
            l2,
            command.device,
            l3,
            l4,
            l5,
            f1,
            c0,
            c1,
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        self.prepare_fis(port, slot, &fis, regions);
    }

    pub fn prepare_fis(&mut self, port: u64, slot: u8, fis: &[u8], regions: &[(u64, u32)]) {
        let table = table(port, slot.into());
        let mut header = [0; 32];
        header[0] = 5;
        header[2..4].copy_from_slice(&(regions.len() as u16).to_le_bytes());
        header[8..16].copy_from_slice(&table.to_le_bytes());
        self.poke(list(port) + u64::from(slot) * 32, &header);
        self.poke(table, fis);
        for (n, &(base, bytes)) in regions.iter().enumerate() {
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&base.to_le_bytes());
            entry[12..].copy_from_slice(&bytes.wrapping_sub(1).to_le_bytes());
            self.poke(table + 0x80 + n as u64 * 16, &entry);
        }
    }

    /// Issues commands that are not queued.
    pub fn go(&mut self, slots: u32) {
        self.set(0, CI, slots);
        self.poll();
    }

    /// Issues queued commands.
    pub fn go_queued(&mut self, tags: u32) {
        self.set(0, SACT, tags);
        self.go(tags);
    }

    /// A command in slot 0 of port 0, to its end: PxTFD, with its interrupt acknowledged.
    pub fn command(&mut self, command: Cmd, regions: &[(u64, u32)]) -> u32 {
        self.prepare(0, 0, command, regions);
        self.go(1);
        self.acknowledge();
        self.reg(0, TFD)
    }

    /// Clears what is pending; returns PxIS as it was.
    pub fn acknowledge(&mut self) -> u32 {
        let is = self.reg(0, IS);
        self.set(0, IS, is);
        self.set_host(0x08, 1);
        is
    }

    /// Stops and starts port 0, as after an error.
    pub fn restart(&mut self) {
        self.set(0, CMD, FRE);
        self.poll();
        assert_eq!(self.reg(0, CMD) & CR, 0);
        self.set(0, SERR, u32::MAX);
        self.acknowledge();
        self.set(0, CMD, FRE | ST);
    }

    /// Reads log 10h, which opens the queue again.
    pub fn queue_log(&mut self) -> Vec<u8> {
        let log = Cmd { opcode: 0x2f, count: 1, lba: 0x10, device: 0x40, ..Cmd::default() };
        assert_eq!(self.command(log, &[(DATA + 0x8000, 512)]), OK);
        let page = self.peek(DATA + 0x8000, 512);
        assert_eq!(page.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)), 0);
        page
    }

    pub fn identify_serial(&mut self) -> Vec<u16> {
        let identify = Cmd { opcode: 0xec, device: 0x40, ..Cmd::default() };
        assert_eq!(self.command(identify, &[(DATA + 0x8000, 512)]), OK);
        let data = self.peek(DATA + 0x8000, 512);
        data.chunks_exact(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect()
    }

    /// Bytes of PxFB's area.
    pub fn fis(&self, offset: u64, bytes: usize) -> Vec<u8> {
        self.peek(received(0) + offset, bytes)
    }

    /// PRDBC of a slot.
    pub fn moved(&self, slot: u64) -> u32 {
        u32::from_le_bytes(self.peek(list(0) + slot * 32 + 4, 4).try_into().unwrap())
    }

    /// A control FIS.
    pub fn control(&mut self, slot: u8, control: u8, port_multiplier: u8) {
        let mut fis = [0; 20];
        fis[0] = 0x27;
        fis[1] = port_multiplier;
        fis[15] = control;
        self.prepare_fis(0, slot, &fis, &[]);
        self.go(1 << slot);
    }

    /// COMRESET, as `sata_link_hardreset` does it.
    pub fn comreset(&mut self) {
        self.set(0, SCTL, 0x301);
        self.poll();
        assert_eq!(self.reg(0, SSTS) & 0xf, 0);
        self.set(0, SCTL, 0x300);
        self.poll();
    }
}
