//! A polling IDE driver: task file, PIO data port, bus-master DMA.

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::units::GuestAddr;

use super::{GuestDisk, GuestError, Machine, TRANSFER_MAX_BYTES};
use crate::backend::FileStorage;
use crate::memory::MappedMemory;

const COMMAND_BLOCK: Region = Region::Bar(0);
const CONTROL_BLOCK: Region = Region::Bar(1);
const BUS_MASTER: Region = Region::Bar(4);

// Command block registers (ATA/ATAPI-7 volume 2, 5.1), and the control block's within the four bytes of BAR 1.
const DATA: u64 = 0;
const ERROR: u64 = 1;
const FEATURES: u64 = 1;
const COUNT: u64 = 2;
const LBA_LOW: u64 = 3;
const LBA_MID: u64 = 4;
const LBA_HIGH: u64 = 5;
const DEVICE: u64 = 6;
const COMMAND: u64 = 7;
const STATUS: u64 = 7;
const ALTERNATE_STATUS: u64 = 2;

const STATUS_ERR: u64 = 0x01;
const STATUS_DRQ: u64 = 0x08;
const STATUS_DF: u64 = 0x20;
const STATUS_BSY: u64 = 0x80;

const BM_COMMAND: u64 = 0;
const BM_STATUS: u64 = 2;
const BM_PRD: u64 = 4;
const BM_START: u64 = 0x01;
const BM_TO_MEMORY: u64 = 0x08;
const BM_STATUS_CLEAR: u64 = 0x06;

const PRD_TABLE: GuestAddr = GuestAddr(0x1000);
const PRD_LAST: u32 = 1 << 31;
const BUFFER: GuestAddr = GuestAddr(0x10_0000);

/// Data transfer of an [`Ide`] guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Through the data port, a sector or a block of sectors at a time.
    Pio,
    /// Through the bus master.
    Dma,
}

/// The first drive of the first channel of an IDE controller, be that a PCI function or not.
pub struct Ide<D> {
    machine: Machine<D>,
    transfer: Transfer,
    sectors: u64,
    /// Sectors that a READ or WRITE MULTIPLE moves at each DRQ.
    multiple: usize,
}

impl<D: Device<MappedMemory, [FileStorage]>> Ide<D> {
    /// Identifies the drive and sets it up.
    ///
    /// # Errors
    /// [`GuestError`] if there is no drive, or it fails a command.
    pub fn new(machine: Machine<D>, transfer: Transfer) -> Result<Self, GuestError> {
        let mut guest = Self { machine, transfer, sectors: 0, multiple: 1 };
        guest.machine.enable()?;
        let words = guest.identify()?;
        let word = |index: usize| u64::from(words[index]);
        guest.sectors = word(100) | word(101) << 16 | word(102) << 32 | word(103) << 48;
        if word(83) & 1 << 10 == 0 {
            return Err(GuestError::Unknown("a drive without the 48-bit address feature set".into()));
        }
        // Word 47: the most sectors that SET MULTIPLE MODE takes.
        guest.multiple = usize::from(words[47] & 0xff).clamp(1, 8);
        guest.set(COUNT, guest.multiple as u64)?;
        guest.start(0xc6)?;
        guest.finish()?;
        Ok(guest)
    }

    fn get(&mut self, register: u64) -> u64 {
        self.machine.read(COMMAND_BLOCK, register, Width::Byte)
    }

    fn set(&mut self, register: u64, value: u64) -> Result<(), GuestError> {
        self.machine.write(COMMAND_BLOCK, register, Width::Byte, value & 0xff)
    }

    fn bus_master(&mut self, register: u64, width: Width, value: u64) -> Result<(), GuestError> {
        self.machine.write(BUS_MASTER, register, width, value)
    }

    fn start(&mut self, opcode: u8) -> Result<(), GuestError> {
        self.set(COMMAND, u64::from(opcode))
    }

    /// Waits for BSY to clear and returns the status, which acknowledges the interrupt.
    fn ready(&mut self) -> Result<u64, GuestError> {
        self.machine.run_until(|machine, _| {
            let status = machine.read(CONTROL_BLOCK, ALTERNATE_STATUS, Width::Byte);
            (status & STATUS_BSY == 0).then_some(())
        })?;
        let status = self.get(STATUS);
        if status & (STATUS_ERR | STATUS_DF) != 0 {
            let error = self.get(ERROR);
            return Err(GuestError::Failed(format!("status {status:#04x}, error {error:#04x}")));
        }
        Ok(status)
    }

    fn finish(&mut self) -> Result<(), GuestError> {
        match self.ready()? {
            status if status & STATUS_DRQ == 0 => Ok(()),
            status => Err(GuestError::Failed(format!("DRQ at the end of a command, status {status:#04x}"))),
        }
    }

    fn data_phase(&mut self) -> Result<(), GuestError> {
        match self.ready()? {
            status if status & STATUS_DRQ != 0 => Ok(()),
            status => Err(GuestError::Failed(format!("no DRQ, status {status:#04x}"))),
        }
    }

    fn identify(&mut self) -> Result<[u16; 256], GuestError> {
        self.set(DEVICE, 0xa0)?;
        if self.get(STATUS) == 0xff || self.get(STATUS) == 0x7f {
            return Err(GuestError::Unknown("no drive".into()));
        }
        self.start(0xec)?;
        self.data_phase()?;
        let mut words = [0; 256];
        for word in &mut words {
            *word = self.machine.read(COMMAND_BLOCK, DATA, Width::Word) as u16;
        }
        self.finish()?;
        Ok(words)
    }

    /// Loads a 48-bit task file: the previous bytes first (ATA8-ACS 4.12, the 48-bit address feature set).
    fn address(&mut self, lba: u64, sectors: usize) -> Result<(), GuestError> {
        self.set(DEVICE, 0xe0)?;
        for (count, low, mid, high) in [(8, 24, 32, 40), (0, 0, 8, 16)] {
            self.set(COUNT, (sectors >> count) as u64)?;
            self.set(LBA_LOW, lba >> low)?;
            self.set(LBA_MID, lba >> mid)?;
            self.set(LBA_HIGH, lba >> high)?;
        }
        Ok(())
    }

    fn dma(&mut self, opcode: u8, bytes: usize, to_memory: bool) -> Result<(), GuestError> {
        // A byte count of 0 means 64 KiB (Programming Interface for Bus Master IDE Controller, revision 1.0, 1.2).
        let entry =
            [(BUFFER.0 as u32).to_le_bytes(), (bytes as u32 & 0xffff | PRD_LAST).to_le_bytes()].concat();
        let written = self.machine.memory().write(PRD_TABLE, &entry);
        written.map_err(|_| GuestError::Unknown("no memory for the PRD table".into()))?;
        let direction = if to_memory { BM_TO_MEMORY } else { 0 };
        self.bus_master(BM_COMMAND, Width::Byte, direction)?;
        self.bus_master(BM_STATUS, Width::Byte, BM_STATUS_CLEAR)?;
        self.bus_master(BM_PRD, Width::Dword, PRD_TABLE.0)?;
        self.start(opcode)?;
        self.bus_master(BM_COMMAND, Width::Byte, direction | BM_START)?;
        let ended = self.finish();
        self.bus_master(BM_COMMAND, Width::Byte, 0)?;
        ended
    }
}

impl<D: Device<MappedMemory, [FileStorage]>> GuestDisk for Ide<D> {
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
        self.address(lba, data.len() / 512)?;
        match self.transfer {
            Transfer::Dma => {
                let copied = self.machine.memory().write(BUFFER, data);
                copied.map_err(|_| GuestError::Unknown("no memory for the data".into()))?;
                // WRITE DMA FUA EXT, WRITE DMA EXT
                self.dma(if fua { 0x3d } else { 0x35 }, data.len(), false)
            }
            Transfer::Pio => {
                // WRITE MULTIPLE FUA EXT, WRITE MULTIPLE EXT
                self.start(if fua { 0xce } else { 0x39 })?;
                for block in data.chunks(self.multiple * 512) {
                    self.data_phase()?;
                    for word in block.chunks_exact(4) {
                        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                        self.machine.write(COMMAND_BLOCK, DATA, Width::Dword, u64::from(word))?;
                    }
                }
                self.finish()
            }
        }
    }

    fn read(&mut self, lba: u64, into: &mut [u8]) -> Result<(), GuestError> {
        self.address(lba, into.len() / 512)?;
        match self.transfer {
            Transfer::Dma => {
                self.dma(0x25, into.len(), true)?;
                let copied = self.machine.memory().read(BUFFER, into);
                copied.map_err(|_| GuestError::Unknown("no memory for the data".into()))
            }
            Transfer::Pio => {
                self.start(0x29)?;
                for block in into.chunks_mut(self.multiple * 512) {
                    self.data_phase()?;
                    for bytes in block.chunks_exact_mut(4) {
                        let word = self.machine.read(COMMAND_BLOCK, DATA, Width::Dword) as u32;
                        bytes.copy_from_slice(&word.to_le_bytes());
                    }
                }
                self.finish()
            }
        }
    }

    /// FLUSH CACHE EXT.
    fn flush(&mut self) -> Result<(), GuestError> {
        self.set(FEATURES, 0)?;
        self.start(0xea)?;
        self.finish()
    }
}

const _: () = assert!(TRANSFER_MAX_BYTES <= 64 << 10, "one PRD entry holds the whole transfer");
