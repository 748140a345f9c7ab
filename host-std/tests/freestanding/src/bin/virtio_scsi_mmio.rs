//! virtio-scsi with a logical unit, behind virtio-mmio.

#![no_std]
#![no_main]

use blk_core::storage::Storage;
use freestanding::machine::AnyMemory;
use scsi_model::front::virtio_scsi::{Address, Config, Mmio, Scsi};

freestanding::program!(
    Mmio<1, 1, 64>,
    init: |storage| {
        let mut device = Mmio::new(Scsi::new(Config::default()));
        let identity = scsi_model::Config::new("VENDOR", "PRODUCT", "1", "0001");
        let info = Storage::<AnyMemory>::info(storage.first()?);
        device.device_mut().controller_mut().insert(Address { target: 0, lun: 0 }, identity, info).ok()?;
        Some(device)
    },
);
