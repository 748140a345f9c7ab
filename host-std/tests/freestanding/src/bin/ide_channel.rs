//! An IDE channel with two drives.

#![no_std]
#![no_main]

use ata_model::{Channel, DriveConfig};

freestanding::program!(Channel, Channel::with_bus_master([Some(DriveConfig::new("MODEL", "0001")); 2]));
