//! An IDE channel with two drives.

#![no_std]
#![no_main]

use ata_model::{Channel, DriveConfig};

freestanding::program!(
    Channel,
    init: |_| {
        let drive = DriveConfig::new("MODEL", "0001");
        Some(Channel::with_bus_master([Some(drive), Some(drive)]))
    },
);
