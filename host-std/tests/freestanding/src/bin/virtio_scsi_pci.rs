//! virtio-scsi with a logical unit, behind PCI.

#![no_std]
#![no_main]

use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Storage;
use freestanding::machine::AnyMemory;
use scsi_model::front::virtio_scsi::{Address, Config, Pci, Scsi};

freestanding::program!(
    PciFunction<Pci<1, 1, 64>, 4>,
    init: |storage| {
        let mut function = PciFunction::new(Pci::new(Scsi::new(Config::default())), MsixOwner::Function);
        let identity = scsi_model::Config::new("VENDOR", "PRODUCT", "1", "0001");
        let info = Storage::<AnyMemory>::info(storage.first()?);
        let controller = function.device_mut().device_mut().controller_mut();
        controller.insert(Address { target: 0, lun: 0 }, identity, info).ok()?;
        Some(function)
    },
);
