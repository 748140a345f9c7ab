//! An AHCI HBA with a port, behind PCI.

#![no_std]
#![no_main]

use ata_model::{DriveConfig, PciAhci};
use blk_core::pci::{MsixOwner, PciFunction};

freestanding::program!(
    PciFunction<PciAhci<1>, 0>,
    PciFunction::off(PciAhci::new([Some(DriveConfig::new("MODEL", "0001"))]), MsixOwner::Function),
    init: |function, _| function.power_on(),
);
