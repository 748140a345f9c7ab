//! A PCI IDE controller: DMA and PIO.

use ata_model::drive::DriveConfig;
use ata_model::front::IdeController;
use blk_core::bus::{Device as _, Region, Width};
use blk_core::storage::Storage;
use host_std::memory::MappedMemory;

use crate::Operation;
use crate::front::{BYTES, DATA, Front, SECTORS, put};

/// One drive on a PCI IDE controller, LBA28, and every register access of a command.
struct Ide {
    controller: IdeController,
    operation: Operation,
}

const COMMAND: Region = Region::Bar(0);
const BUS_MASTER: Region = Region::Bar(4);
/// Error, Device Fault, DRQ and BSY of Status.
const BUSY: u64 = 0x80;
const DRQ: u64 = 0x08;
const FAILED: u64 = 0x21;

impl Ide {
    fn new(operation: Operation) -> Self {
        let drives = [Some(DriveConfig::new("BENCH DISK", "1")), None, None, None];
        Self { controller: IdeController::new(drives), operation }
    }

    fn write<S: Storage<MappedMemory>>(
        &mut self,
        (region, offset, width): (Region, u64, Width),
        value: u64,
        memory: &MappedMemory,
        storage: &mut [S],
    ) {
        let _ = self.controller.write(region, offset, width, value, memory, storage);
    }

    fn command<S: Storage<MappedMemory>>(&mut self, opcode: u8, memory: &MappedMemory, storage: &mut [S]) {
        let registers: &[(u64, u8)] = match self.operation {
            Operation::Flush => &[(6, 0xe0)],
            _ => &[(2, SECTORS), (3, 8), (4, 0), (5, 0), (6, 0xe0)],
        };
        for (offset, value) in registers.iter().copied().chain([(7, opcode)]) {
            self.write((COMMAND, offset, Width::Byte), value.into(), memory, storage);
        }
    }

    /// Polls, and reads Status, which takes the interrupt back.
    fn status<S: Storage<MappedMemory>>(&mut self, memory: &MappedMemory, storage: &mut [S]) -> u64 {
        while self.controller.poll(memory, storage).again {}
        let status = self.controller.read(COMMAND, 7, Width::Byte, memory, storage).value;
        assert_eq!(status & (BUSY | FAILED), 0);
        status
    }
}

impl Ide {
    /// The data of a sector.
    fn sector<S: Storage<MappedMemory>, const STRINGS: bool>(
        &mut self,
        memory: &MappedMemory,
        storage: &mut [S],
    ) {
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
pub(crate) struct IdeDma(Ide);

impl IdeDma {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> Self {
        let mut ide = Ide::new(operation);
        put(memory, 0, &(DATA as u32).to_le_bytes());
        put(memory, 4, &(BYTES | 0x8000_0000).to_le_bytes());
        ide.write((BUS_MASTER, 4, Width::Dword), 0, memory, storage);
        Self(ide)
    }
}

impl<S: Storage<MappedMemory>> Front<S> for IdeDma {
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
        assert!(!self.0.controller.channels()[0].is_busy());
    }
}

/// READ SECTORS and WRITE SECTORS, 32 bits at a time, a sector by a string (REP INS and OUTS) or by single accesses; FLUSH CACHE.
pub(crate) struct IdePio<const STRINGS: bool>(Ide);

impl<const STRINGS: bool> IdePio<STRINGS> {
    pub(crate) fn new<S: Storage<MappedMemory>>(
        operation: Operation,
        _memory: &MappedMemory,
        _storage: &mut [S],
    ) -> Self {
        Self(Ide::new(operation))
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
        assert!(!self.0.controller.channels()[0].is_busy());
    }
}
