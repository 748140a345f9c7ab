//! The IDE controller of a PIIX3 as a PCI function ("82371FB (PIIX) and 82371SB (PIIX3) PCI ISA IDE Xcelerator";
//! "PCI IDE Controller Specification", revision 1.0).

use blk_core::bus::{Access, Device, IrqChange, Progress, Region, Width, WriteStatus};
use blk_core::memory::GuestMemory;
use blk_core::pci::{Bar, Endpoint, Function, Identity, Permissions};
use blk_core::storage::Storage;
use heapless::Vec;
use serde::{Deserialize, Serialize};

use super::controller::IdeController;
use crate::drive::DriveConfig;

/// IDETIM of the primary and the secondary channel, at 40h and 42h. Bit 15, IDE Decode Enable, is always set: what is
/// decoded the command register says. The timings are kept, and without effect.
const IDETIM: u8 = 0x40;
const IDETIM_DECODE: u32 = 0x8000_8000;
const IDETIM_TIMINGS: u32 = 0x7fff_7fff;
/// SIDETIM, at 44h: the timings of the second drives.
const SIDETIM: u8 = 0x44;
const SIDETIM_TIMINGS: u32 = 0xff;

/// How both channels are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PciIdeMode {
    /// Where their BARs are (class 010185h).
    Native,
    /// At 1F0h, 3F6h, 170h and 376h, by IRQ 14 and 15 (class 010180h): the embedder puts the BARs or its own decoding there,
    /// control blocks from 3F4h and 374h on, and routes the pin.
    Compatibility,
}

/// An IDE controller with two channels, behind [`PciFunction`](blk_core::pci::PciFunction): 8086:7010.
///
/// | range | what |
/// |---|---|
/// | `Bar(0)` to `Bar(4)` | the registers of [`IdeController`] |
///
/// INTA is high while one of the channels interrupts; [`Self::intrq`] tells which, for machines that have a wire for each.
/// The firmware's part of the bus master's status, which drives can do DMA, is done at reset.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PciIde {
    controller: IdeController,
    mode: PciIdeMode,
}

impl PciIde {
    /// A function after power-on; drive n is device n mod 2 of channel n / 2.
    #[must_use]
    pub fn new(drives: [Option<DriveConfig>; 4], mode: PciIdeMode) -> Self {
        let mut controller = IdeController::new(drives);
        controller.set_bus_master(false);
        Self { controller, mode }
    }

    /// The controller.
    #[must_use]
    pub const fn controller(&self) -> &IdeController {
        &self.controller
    }

    /// INTRQ of each channel.
    #[must_use]
    pub fn intrq(&self) -> [bool; 2] {
        self.controller.channels().each_ref().map(super::ide::Channel::intrq)
    }

    /// The pin's change, of the changes of both channels.
    fn pin(&self, channels: IrqChange) -> IrqChange {
        if channels.changed == 0 {
            return IrqChange::NONE;
        }
        IrqChange { changed: 1, level: self.intrq().contains(&true).into() }
    }
}

impl Endpoint for PciIde {
    fn function(&self) -> Function {
        let identity = match self.mode {
            PciIdeMode::Native => Identity::PIIX3_IDE_NATIVE,
            // A PIIX3 has no pin, and IRQ 14 and 15; a machine without these wires routes the pin.
            PciIdeMode::Compatibility => Identity { interrupt_pin: 1, ..Identity::PIIX3_IDE },
        };
        let [command, control, bus_master] = [8, 4, 16].map(|bytes| Bar::Io { bytes });
        Function {
            identity,
            bars: [command, control, command, control, bus_master, Bar::Absent],
            capabilities: Vec::new(),
            specific: Vec::from_iter([
                (IDETIM, IDETIM_DECODE, IDETIM_TIMINGS),
                (SIDETIM, 0, SIDETIM_TIMINGS),
            ]),
        }
    }

    fn permit(&mut self, permissions: Permissions) {
        self.controller.set_bus_master(permissions.bus_master);
    }
}

impl<M: GuestMemory + ?Sized, H: Storage<M>> Device<M, [H]> for PciIde {
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        memory: &M,
        storage: &mut [H],
    ) -> Access<u64> {
        let access = self.controller.read(region, offset, width, memory, storage);
        Access { irq: self.pin(access.irq), ..access }
    }

    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) -> Access<WriteStatus> {
        let access = self.controller.write(region, offset, width, value, memory, storage);
        Access { irq: self.pin(access.irq), ..access }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        let progress = self.controller.poll(memory, storage);
        Progress { irq: self.pin(progress.irq), ..progress }
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        let progress = self.controller.reset(memory, storage);
        Progress { irq: self.pin(progress.irq), ..progress }
    }
}
