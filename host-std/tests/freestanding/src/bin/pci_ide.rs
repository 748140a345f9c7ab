//! A PCI IDE controller with four drives.

#![no_std]
#![no_main]

use ata_model::{DriveConfig, PciIde, PciIdeChip, PciIdeMode};
use blk_core::pci::{MsixOwner, PciFunction};

const DRIVES: [Option<DriveConfig>; 4] = [Some(DriveConfig::new("MODEL", "0001")); 4];

freestanding::program!(
    PciFunction<PciIde, 0>,
    PciFunction::off(PciIde::new(DRIVES, PciIdeChip::Piix4, PciIdeMode::Native), MsixOwner::Function),
    init: |function, _| function.power_on(),
);
