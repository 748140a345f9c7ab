//! A polling AHCI driver: one port, one command at a time, queued or not.

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::units::GuestAddr;

use super::{GuestDisk, GuestError, Machine, TRANSFER_MAX_BYTES};
use crate::backend::FileStorage;
use crate::memory::MappedMemory;

const ABAR: Region = Region::Bar(5);

// Registers of the first port (AHCI 1.3.1, 3.3).
const CLB: u64 = 0x100;
const FB: u64 = 0x108;
const IS: u64 = 0x110;
const CMD: u64 = 0x118;
const TFD: u64 = 0x120;
const SSTS: u64 = 0x128;
const SERR: u64 = 0x130;
const SACT: u64 = 0x134;
const CI: u64 = 0x138;

const CMD_ST: u32 = 0x01;
const CMD_FRE: u32 = 0x10;
const IS_TFES: u32 = 1 << 30;
/// PxSSTS.DET: a device is there, and the link is up.
const DET_UP: u32 = 3;
/// BSY, DRQ, DF and ERR in PxTFD.
const STATUS_BAD: u32 = 0x80 | 0x08 | 0x20 | 0x01;
const STATUS_BUSY: u32 = 0x80 | 0x08;

const LIST: GuestAddr = GuestAddr(0x1000);
const RECEIVED: GuestAddr = GuestAddr(0x1400);
const TABLE: GuestAddr = GuestAddr(0x1800);
const PRD_TABLE: GuestAddr = GuestAddr(TABLE.0 + 0x80);
const BUFFER: GuestAddr = GuestAddr(0x10_0000);

/// Commands by which an [`Ahci`] guest reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commands {
    /// READ and WRITE DMA EXT, WRITE DMA FUA EXT.
    Dma,
    /// READ and WRITE FPDMA QUEUED.
    Queued,
}

/// The drive at the first port of an AHCI HBA, be that a PCI function or not.
pub struct Ahci<D> {
    machine: Machine<D>,
    commands: Commands,
    sectors: u64,
}

impl<D: Device<MappedMemory, [FileStorage]>> Ahci<D> {
    /// Brings the port up and identifies the drive.
    ///
    /// # Errors
    /// [`GuestError`] if there is no drive, it fails a command, or it does not queue commands where that is asked for.
    pub fn new(machine: Machine<D>, commands: Commands) -> Result<Self, GuestError> {
        let mut guest = Self { machine, commands, sectors: 0 };
        guest.machine.enable()?;
        if guest.get(SSTS) & 0xf != DET_UP {
            return Err(GuestError::Unknown("no drive".into()));
        }
        guest.set(CLB, LIST.0 as u32)?;
        guest.set(FB, RECEIVED.0 as u32)?;
        guest.set(CMD, CMD_FRE)?;
        guest.set(SERR, u32::MAX)?;
        guest.machine.run_until(|machine, _| (read(machine, TFD) & STATUS_BUSY == 0).then_some(()))?;
        guest.set(CMD, CMD_FRE | CMD_ST)?;
        let words = guest.identify()?;
        let word = |index: usize| u64::from(words[index]);
        guest.sectors = word(100) | word(101) << 16 | word(102) << 32 | word(103) << 48;
        if word(83) & 1 << 10 == 0 {
            return Err(GuestError::Unknown("a drive without the 48-bit address feature set".into()));
        }
        if commands == Commands::Queued && word(76) & 1 << 8 == 0 {
            return Err(GuestError::Unknown("a drive without queued commands".into()));
        }
        Ok(guest)
    }

    fn get(&mut self, register: u64) -> u32 {
        read(&mut self.machine, register)
    }

    fn set(&mut self, register: u64, value: u32) -> Result<(), GuestError> {
        self.machine.write(ABAR, register, Width::Dword, u64::from(value))
    }

    fn put(&self, addr: GuestAddr, bytes: &[u8]) -> Result<(), GuestError> {
        let written = self.machine.memory().write(addr, bytes);
        written.map_err(|_| GuestError::Unknown("no memory for a command".into()))
    }

    /// Runs a command with `bytes` bytes of [`BUFFER`] as its data.
    fn run(&mut self, fis: &[u8; 20], bytes: usize, queued: bool) -> Result<(), GuestError> {
        let regions = u32::from(bytes > 0);
        let mut header = [0; 32];
        header[..4].copy_from_slice(&(5 | regions << 16).to_le_bytes());
        header[8..16].copy_from_slice(&TABLE.0.to_le_bytes());
        self.put(LIST, &header)?;
        self.put(TABLE, fis)?;
        if let Some(last) = bytes.checked_sub(1) {
            let mut region = [0; 16];
            region[..8].copy_from_slice(&BUFFER.0.to_le_bytes());
            region[12..].copy_from_slice(&(last as u32).to_le_bytes());
            self.put(PRD_TABLE, &region)?;
        }
        if queued {
            self.set(SACT, 1)?;
        }
        self.set(CI, 1)?;
        let (pending, task_file) = self.machine.run_until(|machine, _| {
            let pending = read(machine, IS);
            let done = (read(machine, CI) | read(machine, SACT)) & 1 == 0;
            (done || pending & IS_TFES != 0).then(|| (pending, read(machine, TFD)))
        })?;
        self.set(IS, pending)?;
        if pending & IS_TFES == 0 && task_file & STATUS_BAD == 0 {
            return Ok(());
        }
        // The port takes nothing more until it was stopped; what the drive says then is left to who asks next.
        self.set(CMD, CMD_FRE)?;
        self.set(CMD, CMD_FRE | CMD_ST)?;
        Err(GuestError::Failed(format!(
            "status {:#04x}, error {:#04x}",
            task_file & 0xff,
            task_file >> 8 & 0xff
        )))
    }

    fn identify(&mut self) -> Result<[u16; 256], GuestError> {
        self.run(&fis(0xec, 0, 0, 0x40, 0), 512, false)?;
        let mut bytes = [0; 512];
        self.take(&mut bytes)?;
        let mut words = [0; 256];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(2)) {
            *word = u16::from_le_bytes([bytes[0], bytes[1]]);
        }
        Ok(words)
    }

    fn take(&self, into: &mut [u8]) -> Result<(), GuestError> {
        let copied = self.machine.memory().read(BUFFER, into);
        copied.map_err(|_| GuestError::Unknown("no memory for the data".into()))
    }

    fn transfer(&mut self, lba: u64, bytes: usize, write: bool, fua: bool) -> Result<(), GuestError> {
        debug_assert!(bytes <= TRANSFER_MAX_BYTES);
        let sectors = (bytes / 512) as u16;
        match self.commands {
            Commands::Queued => {
                // The count is in Features, the tag, 0, in Count, and FUA in bit 7 of Device (ATA8-ACS, NCQ commands).
                let opcode = if write { 0x61 } else { 0x60 };
                self.run(&fis(opcode, lba, sectors, if fua { 0xc0 } else { 0x40 }, 0), bytes, true)
            }
            Commands::Dma => {
                let opcode = match (write, fua) {
                    (false, _) => 0x25,
                    (true, false) => 0x35,
                    (true, true) => 0x3d,
                };
                self.run(&fis(opcode, lba, 0, 0x40, sectors), bytes, false)
            }
        }
    }
}

fn read<D: Device<MappedMemory, [FileStorage]>>(machine: &mut Machine<D>, register: u64) -> u32 {
    machine.read(ABAR, register, Width::Dword) as u32
}

/// A Register FIS that writes a 48-bit command.
fn fis(opcode: u8, lba: u64, features: u16, device: u8, count: u16) -> [u8; 20] {
    let [l0, l1, l2, l3, l4, l5, ..] = lba.to_le_bytes();
    let [f0, f1] = features.to_le_bytes();
    let [c0, c1] = count.to_le_bytes();
    [0x27, 0x80, opcode, f0, l0, l1, l2, device, l3, l4, l5, f1, c0, c1, 0, 0, 0, 0, 0, 0]
}

impl<D: Device<MappedMemory, [FileStorage]>> GuestDisk for Ahci<D> {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    /// As libata reads it: word 85 bit 5, where word 87 says that word 85 is valid.
    fn write_cache(&mut self) -> Result<bool, GuestError> {
        let words = self.identify()?;
        Ok(words[87] >> 14 == 1 && words[85] & 1 << 5 != 0)
    }

    fn has_fua(&self) -> bool {
        true
    }

    fn write(&mut self, lba: u64, data: &[u8], fua: bool) -> Result<(), GuestError> {
        self.put(BUFFER, data)?;
        self.transfer(lba, data.len(), true, fua)
    }

    fn read(&mut self, lba: u64, into: &mut [u8]) -> Result<(), GuestError> {
        self.transfer(lba, into.len(), false, false)?;
        self.take(into)
    }

    fn flush(&mut self) -> Result<(), GuestError> {
        self.run(&fis(0xea, 0, 0, 0x40, 0), 0, false)
    }
}
