//! The IDE controller of a PIIX3 or a PIIX4 as a PCI function ("82371FB (PIIX) and 82371SB (PIIX3) PCI ISA IDE Xcelerator";
//! "82371AB PCI-TO-ISA / IDE XCELERATOR (PIIX4)"; "PCI IDE Controller Specification", revision 1.0).

use blk_core::bus::{Access, Device, IrqChange, Progress, Quiet, Region, Width, WriteStatus, Written};
use blk_core::memory::GuestMemory;
use blk_core::pci::{Bar, Endpoint, Function, Identity, Permissions};
use blk_core::storage::Storage;

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

/// UDMACTL and UDMATIM of a PIIX4, at 48h and 4Ah: which drives use Ultra DMA, and how fast. Kept, and without effect.
const UDMA: u8 = 0x48;
const UDMA_SETTINGS: u32 = 0x3333_000f;

/// Model of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PciIdeChip {
    /// 8086:7010, whose drives go to multiword DMA mode 2.
    Piix3,
    /// 8086:7111, which has Ultra DMA up to mode 2.
    Piix4,
}

/// Address mode of both channels: where they are found, and how they interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PciIdeMode {
    /// Where their BARs are (class 010185h), by INTA.
    Native,
    /// At 1F0h, 3F6h, 170h and 376h (class 010180h), by IRQ 14 and 15: interrupt lines 0 and 1. The embedder puts the BARs or its
    /// own decoding there, control blocks from 3F4h and 374h on.
    Compatibility,
    /// The same for a machine that has no such wires: by INTA, which it routes.
    CompatibilityByPin,
}

/// An IDE controller with two channels, behind [`PciFunction`](blk_core::pci::PciFunction).
///
/// | range | what |
/// |---|---|
/// | `Bar(0)` to `Bar(4)` | the registers of [`IdeController`] |
///
/// INTA is high while one of the channels interrupts; [`Self::intrq`] tells which.
/// The firmware's part of the bus master's status, which drives can do DMA, is done at reset.
///
/// ```
/// use ata_model::{DriveConfig, PciIde, PciIdeChip, PciIdeMode};
/// use blk_core::bus::{Device, Region, Width};
/// use blk_core::memory::CellMemory;
/// use blk_core::pci::{MsixOwner, PciFunction};
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::units::GuestAddr;
///
/// let (mut ram, mut image, mut staging) = ([0; 512], [0; 1 << 16], [0; 4096]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// // The primary master. Handles of missing drives may be left out at the end.
/// let mut disks = [RamDisk::<1>::new(Ram::new(&mut image), &mut staging)];
/// let drives = [Some(DriveConfig::new("RAM DISK", "0001")), None, None, None];
/// let ide = PciIde::new(drives, PciIdeChip::Piix4, PciIdeMode::Compatibility);
/// // It has no MSI-X, so the table has no entries.
/// let mut function = PciFunction::<PciIde, 0>::new(ide, MsixOwner::Function);
///
/// // Firmware places BAR 4, the bus master, and enables ports and bus mastering.
/// for (register, value) in [(0x20, 0xc000), (0x04, 5)] {
///     function.write(Region::Config, register, Width::Dword, value, &memory, &mut disks[..]);
/// }
/// assert_eq!(function.config().bar(4), Some((0xc000, 16)));
/// // Port 1F7h, which the embedder decodes: the Status of the master is ready.
/// let status = function.read(Region::Bar(0), 7, Width::Byte, &memory, &mut disks[..]);
/// assert_eq!(status.value, 0x50);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct PciIde {
    controller: IdeController,
    chip: PciIdeChip,
    mode: PciIdeMode,
}

impl Quiet for PciIde {
    fn is_quiet(&self) -> bool {
        self.controller.is_quiet()
    }
}

#[cfg(feature = "snapshot")]
impl blk_core::snapshot::Snapshot for PciIde {
    const KIND: blk_core::snapshot::Kind = blk_core::snapshot::Kind::new(*b"PIDE", 1);
}

impl PciIde {
    /// A function after power-on; drive n is device n mod 2 of channel n / 2.
    #[must_use]
    pub const fn new(drives: [Option<DriveConfig>; 4], chip: PciIdeChip, mode: PciIdeMode) -> Self {
        let mut controller = IdeController::new(drives);
        controller.set_bus_master(false);
        Self { controller, chip, mode }
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

    /// The change of the pin, or of the wires, of the changes of both channels.
    fn lines(&self, channels: IrqChange) -> IrqChange {
        if channels.changed == 0 || self.mode == PciIdeMode::Compatibility {
            return channels;
        }
        IrqChange { changed: 1, level: self.intrq().contains(&true).into() }
    }
}

impl Endpoint for PciIde {
    fn function(&self) -> Function {
        let (native, compatible) = match self.chip {
            PciIdeChip::Piix3 => (Identity::PIIX3_IDE_NATIVE, Identity::PIIX3_IDE),
            PciIdeChip::Piix4 => (Identity::PIIX4_IDE_NATIVE, Identity::PIIX4_IDE),
        };
        let identity = match self.mode {
            PciIdeMode::Native => native,
            PciIdeMode::Compatibility => compatible,
            PciIdeMode::CompatibilityByPin => Identity { interrupt_pin: 1, ..compatible },
        };
        let udma = (self.chip == PciIdeChip::Piix4).then_some((UDMA, 0, UDMA_SETTINGS));
        let [command, control, bus_master] = [8, 4, 16].map(|bytes| Bar::Io { bytes });
        Function {
            identity,
            bars: [command, control, command, control, bus_master, Bar::Absent],
            capabilities: [None; 8],
            specific: [
                Some((IDETIM, IDETIM_DECODE, IDETIM_TIMINGS)),
                Some((SIDETIM, 0, SIDETIM_TIMINGS)),
                udma,
                None,
            ],
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
        Access { irq: self.lines(access.irq), ..access }
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
        Access { irq: self.lines(access.irq), ..access }
    }

    fn read_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        into: &mut [u8],
        memory: &M,
        storage: &mut [H],
    ) -> Access<usize> {
        let access = self.controller.read_string(region, offset, width, into, memory, storage);
        Access { irq: self.lines(access.irq), ..access }
    }

    fn write_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        from: &[u8],
        memory: &M,
        storage: &mut [H],
    ) -> Access<Written> {
        let access = self.controller.write_string(region, offset, width, from, memory, storage);
        Access { irq: self.lines(access.irq), ..access }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        let progress = self.controller.poll(memory, storage);
        Progress { irq: self.lines(progress.irq), ..progress }
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        let progress = self.controller.reset(memory, storage);
        Progress { irq: self.lines(progress.irq), ..progress }
    }
}
