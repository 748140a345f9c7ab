//! A PCI IDE controller: DMA and PIO.

use ata_model::{DriveConfig, IdeController, PciIde, PciIdeChip, PciIdeMode};
use blk_core::bus::{Device, Region, Width};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Storage;
use host_std::memory::MappedMemory;

use crate::Operation;
use crate::front::{BYTES, DATA, Front, SECTORS, put};

/// An IDE controller of a PIIX4 as a PCI function, whose pin interrupts.
pub(crate) type PciFunctionOfIde = PciFunction<PciIde, 0>;

/// A controller that there is a row for.
pub(crate) trait Target: Sized {
    fn new<S: Storage<MappedMemory>>(memory: &MappedMemory, storage: &mut [S]) -> Self
    where
        Self: Device<MappedMemory, [S]>;

    /// Whether neither channel has a command.
    fn rests(&self) -> bool;
}

fn drives() -> [Option<DriveConfig>; 4] {
    [Some(DriveConfig::new("BENCH DISK", "1")), None, None, None]
}

impl Target for IdeController {
    fn new<S: Storage<MappedMemory>>(_memory: &MappedMemory, _storage: &mut [S]) -> Self {
        Self::new(drives())
    }

    fn rests(&self) -> bool {
        self.channels().iter().all(|channel| !channel.is_busy())
    }
}

impl Target for PciFunctionOfIde {
    fn new<S: Storage<MappedMemory>>(memory: &MappedMemory, storage: &mut [S]) -> Self {
        let ide = PciIde::new(drives(), PciIdeChip::Piix4, PciIdeMode::Native);
        let mut function = Self::new(ide, MsixOwner::Function);
        // Ports and bus mastering.
        let _ = function.write(Region::Config, 4, Width::Word, 5, memory, storage);
        function
    }

    fn rests(&self) -> bool {
        self.device().controller().rests()
    }
}

/// One drive on an IDE controller, LBA28, and every register access of a command.
struct Ide<D> {
    controller: D,
    operation: Operation,
}

const COMMAND: Region = Region::Bar(0);
const BUS_MASTER: Region = Region::Bar(4);
/// Error, Device Fault, DRQ and BSY of Status.
const BUSY: u64 = 0x80;
const DRQ: u64 = 0x08;
const FAILED: u64 = 0x21;

impl<D> Ide<D> {
    fn write<S>(
        &mut self,
        (region, offset, width): (Region, u64, Width),
        value: u64,
        memory: &MappedMemory,
        storage: &mut [S],
    ) where
        D: Device<MappedMemory, [S]>,
    {
        let _ = self.controller.write(region, offset, width, value, memory, storage);
    }

    fn command<S>(&mut self, opcode: u8, memory: &MappedMemory, storage: &mut [S])
    where
        D: Device<MappedMemory, [S]>,
    {
        let registers: &[(u64, u8)] = match self.operation {
            Operation::Flush => &[(6, 0xe0)],
            _ => &[(2, SECTORS), (3, 8), (4, 0), (5, 0), (6, 0xe0)],
        };
        for (offset, value) in registers.iter().copied().chain([(7, opcode)]) {
            self.write((COMMAND, offset, Width::Byte), value.into(), memory, storage);
        }
    }

    /// Polls, and reads Status, which takes the interrupt back.
    fn status<S>(&mut self, memory: &MappedMemory, storage: &mut [S]) -> u64
    where
        D: Device<MappedMemory, [S]>,
    {
        while self.controller.poll(memory, storage).again {}
        let status = self.controller.read(COMMAND, 7, Width::Byte, memory, storage).value;
        assert_eq!(status & (BUSY | FAILED), 0);
        status
    }

    /// The data of a sector.
    fn sector<S, const STRINGS: bool>(&mut self, memory: &MappedMemory, storage: &mut [S])
    where
        D: Device<MappedMemory, [S]>,
    {
        let (width, mut sector) = (Width::Dword, [0x5a; 512]);
        let (write, controller) = (self.operation == Operation::Write, &mut self.controller);
        match (STRINGS, write) {
            (true, true) => {
                let written = controller.write_string(COMMAND, 0, width, &sector, memory, storage);
                assert_eq!(written.value.units, 128);
            }
            (true, false) => {
                let read = controller.read_string(COMMAND, 0, width, &mut sector, memory, storage);
                assert_eq!(read.value, 128);
            }
            (false, true) => {
                for word in 0..128 {
                    let _ = controller.write(COMMAND, 0, width, word, memory, storage);
                }
            }
            (false, false) => {
                for _ in 0..128 {
                    let _ = controller.read(COMMAND, 0, width, memory, storage);
                }
            }
        }
    }
}

/// READ DMA and WRITE DMA through a PRD table of one entry; FLUSH CACHE.
pub(crate) struct Dma<D>(Ide<D>);

impl<D: Target> Dma<D> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self
    where
        D: Device<MappedMemory, [S]>,
    {
        let mut ide = Ide { controller: D::new(memory, storage), operation };
        put(memory, 0, &(DATA as u32).to_le_bytes());
        put(memory, 4, &(BYTES | 0x8000_0000).to_le_bytes());
        ide.write((BUS_MASTER, 4, Width::Dword), 0, memory, storage);
        Self(ide)
    }
}

impl<S: Storage<MappedMemory>, D: Device<MappedMemory, [S]> + Target> Front<S> for Dma<D> {
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        let ide = &mut self.0;
        let (opcode, direction) = match ide.operation {
            Operation::Read => (0xc8, 0x08),
            Operation::Write => (0xca, 0x00),
            Operation::Flush => {
                ide.command(0xe7, memory, storage);
                ide.status(memory, storage);
                return;
            }
        };
        ide.write((BUS_MASTER, 0, Width::Byte), direction, memory, storage);
        ide.write((BUS_MASTER, 2, Width::Byte), 0x06, memory, storage);
        ide.command(opcode, memory, storage);
        ide.write((BUS_MASTER, 0, Width::Byte), direction | 1, memory, storage);
        ide.status(memory, storage);
        let status = ide.controller.read(BUS_MASTER, 2, Width::Byte, memory, storage).value;
        assert_eq!(status & 7, 4, "interrupt, no error, not active");
        ide.write((BUS_MASTER, 0, Width::Byte), direction, memory, storage);
    }

    fn check(&self, _memory: &MappedMemory) {
        assert!(self.0.controller.rests());
    }
}

/// READ SECTORS and WRITE SECTORS, 32 bits at a time, a sector by a string (REP INS and OUTS) or by single accesses; FLUSH CACHE.
pub(crate) struct IdePio<const STRINGS: bool>(Ide<IdeController>);

impl<const STRINGS: bool> IdePio<STRINGS> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        Self(Ide { controller: Target::new(memory, storage), operation })
    }
}

impl<S: Storage<MappedMemory>, const STRINGS: bool> Front<S> for IdePio<STRINGS> {
    fn serve(&mut self, memory: &MappedMemory, storage: &mut [S]) {
        let ide = &mut self.0;
        let opcode = match ide.operation {
            Operation::Read => 0x20,
            Operation::Write => 0x30,
            Operation::Flush => 0xe7,
        };
        ide.command(opcode, memory, storage);
        let mut status = ide.status(memory, storage);
        let sectors = if ide.operation == Operation::Flush { 0 } else { SECTORS };
        for _ in 0..sectors {
            assert_eq!(status & DRQ, DRQ);
            ide.sector::<S, STRINGS>(memory, storage);
            status = ide.status(memory, storage);
        }
        assert_eq!(status & DRQ, 0);
    }

    fn check(&self, _memory: &MappedMemory) {
        assert!(self.0.controller.rests());
    }
}
