//! The rows: a front, what is below it, and what its guest repeats.

use ata_model::{Hba, IdeController};
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::{Cache, Storage};
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;

use crate::front::Front;
use crate::null::Null;
use crate::{ahci, ide, scsi, virtio_blk, virtio_scsi};

/// Slots of each front, and of each storage.
pub(crate) const DEPTH: usize = 64;
const MEMORY_BYTES: usize = 1 << 20;
const DISK_BYTES: usize = 1 << 20;
const STAGING_BYTES: usize = 1 << 16;

/// What a guest repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
}

impl Operation {
    pub(crate) const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Flush];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "4 KiB read",
            Self::Write => "4 KiB write",
            Self::Flush => "flush",
        }
    }
}

/// What is under a front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// Nothing: every operation is done at once.
    Null,
    /// Nothing, and every operation is in flight until the next poll.
    Later,
    Ram,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) front: &'static str,
    pub(crate) below: Below,
    pub(crate) operation: Operation,
}

pub(crate) const FRONTS: [&str; 21] = [
    "virtio-blk",
    "virtio-blk, 32 at once",
    "virtio-blk PCI",
    "virtio-blk PCI, 32 at once",
    "SCSI",
    "virtio-scsi",
    "virtio-scsi, 32 at once",
    "virtio-scsi PCI",
    "virtio-scsi PCI, 32 at once",
    "IDE DMA",
    "IDE DMA PCI",
    "IDE PIO",
    "IDE PIO, strings",
    "AHCI DMA",
    "AHCI DMA PCI",
    "AHCI NCQ",
    "AHCI NCQ PCI",
    "AHCI NCQ, 32 at once",
    "AHCI NCQ, 32 one by one",
    "AHCI NCQ PCI, 32 at once",
    "AHCI NCQ PCI, 32 one by one",
];

impl Case {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let rows = FRONTS
            .iter()
            .flat_map(|front| [Below::Null, Below::Later, Below::Ram].map(|below| (*front, below)));
        let rows =
            rows.flat_map(|(front, below)| Operation::ALL.map(|operation| Self { front, below, operation }));
        // There is no queued flush.
        rows.filter(|row| row.operation != Operation::Flush || !row.front.starts_with("AHCI NCQ"))
    }

    /// Runs the row in one of the two ways.
    pub(crate) fn run<R>(self, how: impl How<R>) -> R {
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), MEMORY_BYTES)]).expect("guest memory");
        match self.below {
            Below::Null => self.over(how, &memory, Null::new(DISK_BYTES, STAGING_BYTES, true)),
            Below::Later => self.over(how, &memory, Null::new(DISK_BYTES, STAGING_BYTES, false)),
            Below::Ram => {
                let (mut bytes, mut staging) = (vec![0; DISK_BYTES], vec![0; DEPTH * STAGING_BYTES]);
                let ram = Ram::new(&mut bytes).with_cache(Cache::WriteBack);
                self.over(how, &memory, RamDisk::<DEPTH>::new(ram, &mut staging))
            }
        }
    }

    fn over<R, S: Storage<MappedMemory>>(self, how: impl How<R>, memory: &MappedMemory, storage: S) -> R {
        let mut storage = [storage];
        let operation = self.operation;
        let storage = &mut storage;
        macro_rules! run {
            ($front:ty) => {
                how.run(<$front>::new(operation, memory, storage), memory, storage)
            };
        }
        match self.front {
            "virtio-blk" => run!(virtio_blk::OverMmio<1>),
            "virtio-blk, 32 at once" => run!(virtio_blk::OverMmio<32>),
            "virtio-blk PCI" => run!(virtio_blk::OverPci<1>),
            "virtio-blk PCI, 32 at once" => run!(virtio_blk::OverPci<32>),
            "SCSI" => run!(scsi::Scsi),
            "virtio-scsi" => run!(virtio_scsi::OverMmio<1>),
            "virtio-scsi, 32 at once" => run!(virtio_scsi::OverMmio<32>),
            "virtio-scsi PCI" => run!(virtio_scsi::OverPci<1>),
            "virtio-scsi PCI, 32 at once" => run!(virtio_scsi::OverPci<32>),
            "IDE DMA" => run!(ide::Dma<IdeController>),
            "IDE DMA PCI" => run!(ide::Dma<ide::PciFunctionOfIde>),
            "IDE PIO" => run!(ide::IdePio<false>),
            "IDE PIO, strings" => run!(ide::IdePio<true>),
            "AHCI DMA" => run!(ahci::Dma<Hba<1>>),
            "AHCI DMA PCI" => run!(ahci::Dma<ahci::PciHba>),
            "AHCI NCQ PCI" => run!(ahci::Queued<ahci::PciHba, 1, 1>),
            "AHCI NCQ" => run!(ahci::Queued<Hba<1>, 1, 1>),
            "AHCI NCQ, 32 at once" => run!(ahci::Queued<Hba<1>, 32, 32>),
            "AHCI NCQ, 32 one by one" => run!(ahci::Queued<Hba<1>, 32, 1>),
            "AHCI NCQ PCI, 32 at once" => run!(ahci::Queued<ahci::PciHba, 32, 32>),
            "AHCI NCQ PCI, 32 one by one" => run!(ahci::Queued<ahci::PciHba, 32, 1>),
            front => unreachable!("no front {front}"),
        }
    }
}

impl Below {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Null => "none",
            Self::Later => "none, later",
            Self::Ram => "RAM disk",
        }
    }
}

/// What is done with a front that is up.
pub(crate) trait How<R> {
    fn run<S: Storage<MappedMemory>, F: Front<S>>(
        self,
        front: F,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> R;
}
