//! A PCI IDE controller with four drives.

#![no_std]
#![no_main]

use ata_model::{DriveConfig, PciIde, PciIdeChip, PciIdeMode};
use blk_core::pci::{MsixOwner, PciFunction};

freestanding::program!(
    PciFunction<PciIde, 0>,
    init: |_| {
        let drive = DriveConfig::new("MODEL", "0001");
        let ide = PciIde::new([Some(drive); 4], PciIdeChip::Piix4, PciIdeMode::Native);
        Some(PciFunction::new(ide, MsixOwner::Function))
    },
);
