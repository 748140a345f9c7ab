//! virtio-scsi with a logical unit, behind virtio-mmio.

#![no_std]
#![no_main]

use blk_core::storage::Storage;
use freestanding::machine::AnyMemory;
use scsi_model::front::virtio_scsi::{Address, Config, Mmio, Scsi};

freestanding::program!(
    Mmio<1, 1, 64>,
    Mmio::new(Scsi::new(Config::DEFAULT)),
    init: |device, storage| {
        let identity = scsi_model::Config::new("VENDOR", "PRODUCT", "1", "0001");
        if let Some(handle) = storage.first() {
            let info = Storage::<AnyMemory>::info(handle);
            let controller = device.device_mut().controller_mut();
            let _ = controller.insert(Address { target: 0, lun: 0 }, identity, info);
        }
    },
);
