//! The guests whose every program the crash explorer runs: for each front end, the drivers of today and those of 2009.

use std::ops::ControlFlow;
use std::sync::Arc;

use ata_model::sim::{AhciConfig, AhciGuest, AhciReset, DriverConfig, IdeGuest, ResetBy, Transport};
use blk_core::sim::{
    Action, Cell, History, Progress, Report, SectorRun, SimGuest, SimHandle, SimMemory, example, explore,
};
use scsi_model::sim::virtio_scsi::{Driver as VirtioScsiDriver, Variant as VirtioScsiVariant};
use scsi_model::sim::{Driver as ScsiDriver, Variant as ScsiVariant};
use serde::{Deserialize, Serialize};
use virtio_blk_model::sim::{Driver as VirtioDriver, Variant as VirtioVariant};

/// A front end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Front {
    /// ATA through the data port of an ISA channel.
    IdePio,
    /// ATA through a PCI IDE function and its bus master.
    PciIde,
    /// A SCSI logical unit, by command blocks.
    Scsi,
    /// A SATA drive behind an AHCI HBA, a PCI function, one command at a time.
    Ahci,
    /// The same with queued commands (NCQ).
    AhciNcq,
    /// virtio-blk behind virtio-mmio registers.
    VirtioBlk,
    /// A SCSI logical unit behind virtio-scsi.
    VirtioScsi,
}

impl Front {
    /// Every front end, in the order of the integrity table.
    pub const ALL: [Self; 7] = [
        Self::IdePio,
        Self::PciIde,
        Self::Ahci,
        Self::AhciNcq,
        Self::Scsi,
        Self::VirtioScsi,
        Self::VirtioBlk,
    ];

    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IdePio => "IDE PIO",
            Self::PciIde => "PCI IDE",
            Self::Ahci => "AHCI",
            Self::AhciNcq => "AHCI NCQ",
            Self::Scsi => "SCSI",
            Self::VirtioBlk => "virtio-blk",
            Self::VirtioScsi => "virtio-scsi",
        }
    }
}

/// Whose drivers and features are explored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Era {
    /// Those of the models.
    Today,
    /// A guest that is shown neither a write cache nor a flush nor a barrier.
    #[serde(rename = "2009")]
    Of2009,
}

/// The program of [`GuestKind::example`]: a write that is then flushed, and one that is not.
pub const EXAMPLE: [Action; 3] =
    [Action::Write(SectorRun::ZERO), Action::Flush, Action::Write(SectorRun::ONE)];

type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// A kind of guest, with its device.
pub struct GuestKind {
    /// What sets it apart from the others of its front.
    pub name: &'static str,
    explore: Box<dyn Fn(Cell, Watch<'_>) -> Report + Send + Sync>,
    example: Box<dyn Fn(Cell) -> History + Send + Sync>,
}

impl GuestKind {
    /// Explores all of this guest's programs within `cell`. `watch` may stop it.
    ///
    /// The guest decides how many storage handles the disk has and whether its programs need their barriers.
    pub fn explore(&self, cell: Cell, watch: Watch<'_>) -> Report {
        (self.explore)(cell, watch)
    }

    /// One of the histories that are explored: [`EXAMPLE`], on a host where nothing fails.
    #[must_use]
    pub fn example(&self, cell: Cell) -> History {
        (self.example)(cell)
    }

    fn new<G: SimGuest + 'static>(
        name: &'static str,
        handles: usize,
        boot: impl Fn(&SimMemory, &mut [SimHandle]) -> G + Send + Sync + 'static,
    ) -> Self {
        let boot = Arc::new(boot);
        let same_boot = Arc::clone(&boot);
        let with_handles = move |mut cell: Cell| {
            cell.disk.handles = handles;
            cell
        };
        let explore = move |cell, watch: Watch<'_>| explore(&*boot, &with_handles(cell), watch);
        let example = move |cell| example(&*same_boot, &with_handles(cell), &EXAMPLE);
        Self { name, explore: Box::new(explore), example: Box::new(example) }
    }

    fn ide(name: &'static str, driver: DriverConfig) -> Self {
        Self::new(name, 1, move |memory, storage| IdeGuest::boot(driver, memory, storage))
    }

    fn ahci(name: &'static str, driver: AhciConfig) -> Self {
        Self::new(name, 1, move |memory, storage| AhciGuest::boot(driver, memory, storage))
    }

    fn scsi(name: &'static str, variant: ScsiVariant) -> Self {
        Self::new(name, 1, move |memory, storage| ScsiDriver::boot(variant, memory, storage))
    }

    fn virtio_scsi<const Q: usize>(name: &'static str, variant: VirtioScsiVariant) -> Self {
        Self::new(name, 1, move |memory, storage| VirtioScsiDriver::<Q>::boot(variant, memory, storage))
    }

    fn virtio<const Q: usize>(name: &'static str, variant: VirtioVariant) -> Self {
        Self::new(name, Q, move |memory, storage| VirtioDriver::<Q>::boot(variant, memory, storage))
    }

    /// The same guest, whose programs need their ordered writes to be barriers although it cannot express one.
    fn needing_barriers(self, name: &'static str) -> Self {
        let Self { explore, example, .. } = self;
        let needing = |cell| Cell { needs_barriers: true, ..cell };
        let explore = move |cell, watch: Watch<'_>| explore(needing(cell), watch);
        let example = move |cell| example(needing(cell));
        Self { name, explore: Box::new(explore), example: Box::new(example) }
    }
}

/// The kinds of guest that `front` had in `era`.
#[must_use]
pub fn guests(front: Front, era: Era) -> Vec<GuestKind> {
    match (era, front) {
        (Era::Today, Front::IdePio) => vec![
            GuestKind::ide("SRST", DriverConfig::new(Transport::Pio)),
            GuestKind::ide("firmware before the OS", DriverConfig::firmware_then_old(Transport::Pio)),
        ],
        (Era::Today, Front::PciIde) => {
            let driver = DriverConfig::new(Transport::Dma);
            let by = |reset| DriverConfig { reset, ..driver };
            vec![
                GuestKind::ide("SRST", driver),
                GuestKind::ide("bus-master stop", by(ResetBy::BusMasterStop)),
                GuestKind::ide("bus mastering off", by(ResetBy::BusMasterOff)),
                GuestKind::ide("firmware before the OS", DriverConfig::firmware_then_old(Transport::Dma)),
            ]
        }
        (Era::Today, Front::Ahci | Front::AhciNcq) => {
            let queued = front == Front::AhciNcq;
            let driver = AhciConfig::new(queued);
            vec![
                GuestKind::ahci("COMRESET", driver),
                GuestKind::ahci("HBA reset", AhciConfig { reset: AhciReset::Host, ..driver }),
                GuestKind::ahci("bus mastering off", AhciConfig { reset: AhciReset::BusMasterOff, ..driver }),
                GuestKind::ahci("firmware before the OS", AhciConfig::firmware_then_old(queued)),
            ]
        }
        (Era::Today, Front::Scsi) => vec![
            GuestKind::scsi("sd", ScsiVariant::Sd),
            GuestKind::scsi("firmware before the OS", ScsiVariant::FirmwareThenOld),
        ],
        (Era::Today, Front::VirtioBlk) => vec![
            GuestKind::virtio::<1>("BARRIER", VirtioVariant::Barrier),
            GuestKind::virtio::<1>("FLUSH", VirtioVariant::Modern),
            GuestKind::virtio::<2>("two queues", VirtioVariant::Modern),
            GuestKind::virtio::<1>("no FLUSH", VirtioVariant::NoFlush),
            GuestKind::virtio::<1>("experimental FUA", VirtioVariant::Fua),
        ],
        (Era::Today, Front::VirtioScsi) => vec![
            GuestKind::virtio_scsi::<1>("device reset", VirtioScsiVariant::DeviceReset),
            GuestKind::virtio_scsi::<2>("two queues, unit reset", VirtioScsiVariant::UnitReset),
            GuestKind::virtio_scsi::<1>("ABORT TASK SET", VirtioScsiVariant::AbortTaskSet),
            GuestKind::virtio_scsi::<1>("firmware before the OS", VirtioScsiVariant::FirmwareThenOld),
        ],
        (Era::Of2009, Front::IdePio) => {
            vec![GuestKind::ide("no cache bit", DriverConfig::of_2009(Transport::Pio))]
        }
        (Era::Of2009, Front::PciIde) => {
            vec![GuestKind::ide("no cache bit", DriverConfig::of_2009(Transport::Dma))]
        }
        // SCSI was safe then as it is now, and of AHCI nothing is said.
        (Era::Of2009, Front::Scsi | Front::VirtioScsi | Front::Ahci | Front::AhciNcq) => {
            guests(front, Era::Today)
        }
        (Era::Of2009, Front::VirtioBlk) => {
            let guest = || GuestKind::virtio::<1>("no flush", VirtioVariant::Of2009);
            vec![guest(), guest().needing_barriers("no barrier, no drain")]
        }
    }
}
