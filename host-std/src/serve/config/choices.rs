//! Options that are one of a few names, in a file or as an argument.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::server::vfio_user::devices;

/// Which PCI IDE controller it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IdeChip {
    /// 8086:7010.
    #[default]
    Piix3,
    /// 8086:7111, which has Ultra DMA.
    Piix4,
}

/// How a PCI IDE controller is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IdeMode {
    /// By its BARs, with INTA.
    #[default]
    Native,
    /// At 1F0h, 3F6h, 170h and 376h, where firmware or a guest puts its BARs.
    Compatibility,
}

/// The messages of an AHCI controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AhciMessages {
    /// One for each port, by MSI-X; MSI and INTA are there beside it.
    #[default]
    PerPort,
    /// One for all ports, by MSI, or INTA: as an ICH9's.
    One,
}

/// What a device is to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A virtio-blk disk, over vhost-user.
    VirtioBlk,
    /// A virtio-scsi host with disks, over vhost-user.
    VirtioScsi,
    /// An AHCI controller with disks, over vfio-user.
    Ahci,
    /// A PCI IDE controller with disks, over vfio-user.
    Ide,
    /// A virtio-blk disk, over vfio-user.
    VirtioBlkPci,
    /// A virtio-scsi host with disks, over vfio-user.
    VirtioScsiPci,
}

/// Most request queues of any device.
pub(in crate::serve) const QUEUES_MAX: u16 = DeviceKind::VirtioBlk.queues_max();

impl DeviceKind {
    /// Its name in options.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VirtioBlk => "virtio-blk",
            Self::VirtioScsi => "virtio-scsi",
            Self::Ahci => "ahci",
            Self::Ide => "ide",
            Self::VirtioBlkPci => "virtio-blk-pci",
            Self::VirtioScsiPci => "virtio-scsi-pci",
        }
    }

    /// Whether it is a PCI device, and served over vfio-user.
    #[must_use]
    pub const fn is_pci(self) -> bool {
        !matches!(self, Self::VirtioBlk | Self::VirtioScsi)
    }

    /// Whether its images are logical units with addresses.
    #[must_use]
    pub const fn has_units(self) -> bool {
        matches!(self, Self::VirtioScsi | Self::VirtioScsiPci)
    }

    /// Most request queues; 1 where there are none to choose.
    pub(super) const fn queues_max(self) -> u16 {
        match self {
            Self::VirtioBlk => 64,
            Self::VirtioScsi => 62,
            Self::VirtioBlkPci | Self::VirtioScsiPci => devices::QUEUES_MAX,
            Self::Ahci | Self::Ide => 1,
        }
    }

    /// Most images, and why no more.
    pub(super) const fn images_max(self) -> (usize, &'static str) {
        match self {
            Self::VirtioBlk | Self::VirtioBlkPci => {
                (1, "a virtio-blk device has one; use virtio-scsi, or a device for each")
            }
            Self::VirtioScsi | Self::VirtioScsiPci => {
                (devices::UNITS_MAX, "a virtio-scsi device has 16 at most")
            }
            Self::Ahci => (devices::AHCI_PORTS, "an AHCI controller has 6 ports"),
            Self::Ide => (devices::IDE_DRIVES, "an IDE controller has 4 drives"),
        }
    }
}

/// The form of the log, on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// A JSON object on each line.
    Json,
}

/// What is in an image's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's sectors, one after the other, whatever they look like.
    Raw,
}
