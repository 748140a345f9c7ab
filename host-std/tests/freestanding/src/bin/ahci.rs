//! An AHCI HBA with a port.

#![no_std]
#![no_main]

use ata_model::{DriveConfig, Hba};

freestanding::program!(Hba<1>, Hba::new([Some(DriveConfig::new("MODEL", "0001"))]));
