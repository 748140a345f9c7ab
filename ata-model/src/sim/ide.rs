//! A register-level IDE driver as a guest of the crash explorer: one command at a time, served by interrupts. By PIO it
//! drives an ISA channel, by DMA a PCI function from its configuration space on.
//!
//! It boots by IDENTIFY DEVICE and decides as Linux's libata does. The guest of 2009 is the same driver on a device that does
//! not show a cache.

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::pci::{Command, MsixOwner, PciFunction};
use blk_core::sim::{Action, Outcome, SectorRun, alphabet, layout, read_back};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use serde::{Deserialize, Serialize, Serializer};

use super::config::{Belief, DriverConfig, ResetBy, Transport};
use super::guest::{AtaGuest, Bus, Driver, Steps, drive, function, range};
use crate::front::{Channel, PciIde, PciIdeChip, PciIdeMode};
use crate::wire::{Control, DeviceBits, ErrorBits, Prd, Status};

/// The command block, the control block and the bus master of the channel.
const COMMAND: Region = Region::Bar(0);
const CONTROL: Region = Region::Bar(1);
const BUS_MASTER: Region = Region::Bar(4);

/// Where the PRD table is.
const TABLE: GuestAddr = GuestAddr(0);
/// Where the ranges of a TRIM are.
const RANGES: GuestAddr = GuestAddr(0x200);

/// What the driver waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
enum Waits {
    Nothing,
    /// A command; of what it moves by PIO, `moved` sectors are.
    Command {
        id: u8,
        moved: u8,
        read: [Option<u8>; 2],
    },
    /// BSY to clear after a reset.
    Reset {
        id: u8,
    },
}

/// What a driver drives.
#[derive(Clone, Debug, Serialize)]
#[allow(clippy::large_enum_variant, reason = "each state is a copy, and an allocation more would cost more")]
enum Hardware {
    Isa(Channel),
    Pci(#[serde(serialize_with = "function")] PciFunction<PciIde, 1>),
}

/// A driver of an IDE channel, and the channel.
#[derive(Clone, Debug, Serialize)]
pub struct Ide {
    hardware: Hardware,
    #[serde(skip)]
    config: DriverConfig,
    waits: Waits,
    #[serde(serialize_with = "action")]
    action: Action,
}

/// One drive on IDE, and its driver.
pub type IdeGuest = AtaGuest<Ide>;

fn action<S: Serializer>(action: &Action, serializer: S) -> Result<S::Ok, S::Error> {
    action.serialize(serializer)
}

impl IdeGuest {
    /// Brings a drive up: IDENTIFY DEVICE, and SET MULTIPLE MODE to two blocks where that is supported.
    pub fn boot<M: GuestMemory + ?Sized, H: Storage<M>>(
        config: DriverConfig,
        memory: &M,
        storage: &mut [H],
    ) -> Self {
        let hardware = match config.transport {
            Transport::Pio => Hardware::Isa(Channel::new([Some(drive(config.belief)), None])),
            Transport::Dma => {
                let drives = [Some(drive(config.belief)), None, None, None];
                let device = PciIde::new(drives, PciIdeChip::Piix3, PciIdeMode::Native);
                Hardware::Pci(PciFunction::new(device, MsixOwner::Function))
            }
        };
        let driver = Ide { hardware, config, waits: Waits::Nothing, action: Action::Flush };
        let mut guest = Self::new(driver, config.belief);
        let mut bus = Bus { guest: &mut guest, memory, storage };
        bus.permit(Command::IO | Command::BUS_MASTER);
        bus.command(0xc6, 0, 0, 2);
        bus.acknowledge();
        bus.identify();
        guest
    }
}

impl<M: GuestMemory + ?Sized, H: Storage<M>> Steps for Bus<'_, Ide, M, H> {
    fn issue(&mut self, id: u8, action: Action) {
        self.guest.driver.action = action;
        self.guest.driver.waits = Waits::Command { id, moved: 0, read: [None; 2] };
        let pio = self.guest.driver.config.transport == Transport::Pio;
        let source = layout::source(id.wrapping_add(1));
        match action {
            Action::Write(run) if pio => self.start_pio_write(id, 0x34, run),
            Action::WriteFua(run) if pio => self.start_pio_write(id, 0xce, run),
            Action::Read(run) if pio => self.command(0x29, 0, run.first, run.count),
            Action::Write(run) => self.start_dma(0x35, 0, run, source, false),
            Action::WriteFua(run) => self.start_dma(0x3d, 0, run, source, false),
            Action::Read(run) => self.start_dma(0x25, 0, run, layout::sink(id), true),
            Action::Discard(run) => {
                self.put(RANGES.0, &range(run));
                self.start_dma(0x06, 1, SectorRun { first: 0, count: 1 }, RANGES, false);
            }
            Action::Flush if self.guest.belief == Belief::NoCache => {
                self.finish(id, Outcome::DONE);
            }
            Action::Flush => self.command(0xe7, 0, 0, 0),
            Action::CacheOff => self.command(0xef, 0x82, 0, 0),
            Action::CacheOn => self.command(0xef, 0x02, 0, 0),
            // Not in the alphabet.
            Action::WriteOrdered(_) | Action::WriteZeroes(_) | Action::Reset => {
                self.finish(id, Outcome::Failed)
            }
        }
    }

    fn reset(&mut self, id: u8) {
        match self.guest.driver.waits {
            Waits::Command { id, .. } | Waits::Reset { id } => self.guest.end(id, Outcome::Aborted),
            Waits::Nothing => {}
        }
        self.guest.driver.waits = Waits::Reset { id };
        match self.guest.driver.config.reset {
            ResetBy::Software => self.software_reset(),
            ResetBy::BusMasterStop => self.stop_dma(),
            ResetBy::BusMasterOff => {
                self.permit(Command::IO);
                self.software_reset();
            }
            ResetBy::Machine => {
                self.reset_machine();
                self.permit(Command::IO | Command::BUS_MASTER);
            }
        }
    }

    /// Serves what a poll brought.
    fn serve(&mut self) {
        match self.guest.driver.waits {
            Waits::Nothing => {}
            Waits::Reset { id } => {
                if !self.status().contains(Status::BSY) {
                    self.permit(Command::IO | Command::BUS_MASTER);
                    self.acknowledge();
                    if self.guest.driver.config.transport == Transport::Dma {
                        self.stop_dma();
                    }
                    self.identify();
                    self.finish(id, Outcome::DONE);
                }
            }
            Waits::Command { id, moved, read } => {
                if self.guest.irq {
                    self.serve_command(id, moved, read);
                }
            }
        }
    }
}

impl<M: GuestMemory + ?Sized, H: Storage<M>> Bus<'_, Ide, M, H> {
    /// Reads Alternate Status.
    fn status(&mut self) -> Status {
        status(self.read(CONTROL, 2, Width::Byte))
    }

    /// Reads Status, which takes the interrupt back.
    fn acknowledge(&mut self) -> Status {
        status(self.read(COMMAND, 7, Width::Byte))
    }

    /// Writes a 48-bit task file and its command; for a 28-bit or non-data command the first of each pair is dropped.
    fn command(&mut self, opcode: u8, features: u8, lba: u8, count: u8) {
        self.write(COMMAND, 6, Width::Byte, DeviceBits::LBA.bits().into());
        for (offset, current) in [(1, features), (2, count), (3, lba), (4, 0), (5, 0)] {
            self.write(COMMAND, offset, Width::Byte, 0);
            self.write(COMMAND, offset, Width::Byte, current.into());
        }
        self.write(COMMAND, 7, Width::Byte, opcode.into());
    }

    /// Points the bus master at one region and begins.
    fn start_dma(&mut self, opcode: u8, features: u8, run: SectorRun, data: GuestAddr, to_memory: bool) {
        let bytes = u16::from(run.count).wrapping_mul(512);
        let prd = Prd {
            base: u32::try_from(data.0).unwrap_or(0).into(),
            bytes: bytes.into(),
            flags: Prd::END_OF_TABLE.into(),
        };
        self.put(TABLE.0, zerocopy::IntoBytes::as_bytes(&prd));
        let direction = if to_memory { 0x08 } else { 0 };
        self.write(BUS_MASTER, 4, Width::Dword, TABLE.0);
        self.write(BUS_MASTER, 0, Width::Byte, direction);
        self.write(BUS_MASTER, 2, Width::Byte, 0x06);
        self.command(opcode, features, run.first, run.count);
        self.write(BUS_MASTER, 0, Width::Byte, direction | 0x01);
    }

    /// Stops the bus master, and takes its interrupt and the PRD table back.
    fn stop_dma(&mut self) {
        self.write(BUS_MASTER, 0, Width::Byte, 0);
        self.write(BUS_MASTER, 2, Width::Byte, 0x06);
        self.put(TABLE.0, &[0; 8]);
    }

    /// IDENTIFY DEVICE, which needs no disk, so that its data is there at once.
    fn identify(&mut self) {
        self.command(0xec, 0, 0, 0);
        let mut words = [0_u16; 256];
        if self.acknowledge().contains(Status::DRQ) {
            for word in &mut words {
                *word = u16::try_from(self.read(COMMAND, 0, Width::Word)).unwrap_or(0);
            }
        }
        self.guest.identified(|word| words.get(word).copied().unwrap_or(0));
    }

    /// The first block is not announced by an interrupt: the driver looks for DRQ.
    fn start_pio_write(&mut self, id: u8, opcode: u8, run: SectorRun) {
        self.command(opcode, 0, run.first, run.count);
        if self.status().contains(Status::DRQ) {
            self.write_block(id);
        }
    }

    /// Writes sectors for as long as the drive takes them.
    fn write_block(&mut self, id: u8) {
        let mut sector = [0; 512];
        let _ = self.memory.read(layout::source(id.wrapping_add(1)), &mut sector);
        while self.status().contains(Status::DRQ) {
            for word in sector.chunks_exact(4) {
                let word = word.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
                self.write(COMMAND, 0, Width::Dword, word);
            }
        }
    }

    fn software_reset(&mut self) {
        self.write(CONTROL, 2, Width::Byte, Control::SRST.bits().into());
        self.write(CONTROL, 2, Width::Byte, 0);
    }

    fn finish(&mut self, id: u8, outcome: Outcome) {
        self.guest.driver.waits = Waits::Nothing;
        self.guest.driver.action = Action::Flush;
        self.guest.end(id, outcome);
    }

    fn serve_command(&mut self, id: u8, mut moved: u8, mut read: [Option<u8>; 2]) {
        let mut now = self.acknowledge();
        if now.contains(Status::DRQ) && !matches!(self.guest.driver.action, Action::Read(_)) {
            return self.write_block(id);
        }
        while now.contains(Status::DRQ) {
            if let Some(value) = read.get_mut(usize::from(moved)) {
                *value = self.read_sector();
            }
            moved = moved.wrapping_add(1);
            now = self.status();
        }
        if now.contains(Status::BSY) {
            self.guest.driver.waits = Waits::Command { id, moved, read };
            return;
        }
        if self.guest.driver.config.transport == Transport::Dma {
            self.stop_dma();
        }
        if now.intersects(Status::ERR | Status::DF) {
            let error = ErrorBits::from_bits_truncate(low_byte(self.read(COMMAND, 1, Width::Byte)));
            debug_assert!(!error.is_empty(), "an error has a reason");
            return self.finish(id, Outcome::Failed);
        }
        match self.guest.driver.action {
            Action::CacheOff | Action::CacheOn => self.identify(),
            Action::Read(run) if self.guest.driver.config.transport == Transport::Dma => {
                read = read_back(self.memory, id, run);
            }
            _ => {}
        }
        self.finish(id, Outcome::Ok { read });
    }

    fn read_sector(&mut self) -> Option<u8> {
        let first = self.read(COMMAND, 0, Width::Dword);
        let mut same = true;
        for _ in 1..128 {
            same &= self.read(COMMAND, 0, Width::Dword) == first;
        }
        let [value, rest @ ..] = u32::try_from(first).unwrap_or(0).to_le_bytes();
        (same && rest == [value; 3]).then_some(value)
    }
}

fn status(value: u64) -> Status {
    Status::from_bits_truncate(low_byte(value))
}

fn low_byte(value: u64) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low
}

/// No flush: what the guest does not send, the device cannot answer for.
const OF_2009: [Action; 5] = alphabet(&[&Action::WRITES, &[Action::Read(SectorRun::BOTH), Action::Reset]]);
const FUA: [Action; 2] = [Action::WriteFua(SectorRun::ZERO), Action::WriteFua(SectorRun::BOTH)];
const OTHERS: [Action; 5] =
    [Action::Read(SectorRun::BOTH), Action::Flush, Action::CacheOff, Action::CacheOn, Action::Reset];
const PIO: [Action; 10] = alphabet(&[&Action::WRITES, &FUA, &OTHERS]);
/// What DMA can express, on whatever front.
pub(super) const DMA: [Action; 11] =
    alphabet(&[&Action::WRITES, &FUA, &[Action::Discard(SectorRun::BOTH)], &OTHERS]);

impl Driver for Ide {
    fn device<'a, M: GuestMemory + ?Sized + 'a, H: Storage<M> + 'a>(
        &'a mut self,
    ) -> &'a mut (dyn Device<M, [H]> + 'a) {
        match &mut self.hardware {
            Hardware::Isa(channel) => channel,
            Hardware::Pci(function) => function,
        }
    }

    fn alphabet(&self, belief: Belief) -> &'static [Action] {
        match (belief, self.config.transport) {
            (Belief::NoCache, _) => &OF_2009,
            (_, Transport::Pio) => &PIO,
            (_, Transport::Dma) => &DMA,
        }
    }

    fn depth(&self) -> usize {
        1
    }

    fn accepts(&self, action: Action) -> bool {
        match self.waits {
            Waits::Nothing => true,
            Waits::Command { .. } => action == Action::Reset,
            // A second stop would stop nothing.
            Waits::Reset { .. } => action == Action::Reset && self.config.reset != ResetBy::BusMasterStop,
        }
    }
}
