//! virtio-scsi with a logical unit, behind PCI.

#![no_std]
#![no_main]

use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Storage;
use freestanding::machine::AnyMemory;
use scsi_model::front::virtio_scsi::{Address, Config, Pci, Scsi};

freestanding::program!(
    PciFunction<Pci<1, 1, 64>, 4>,
    PciFunction::off(Pci::new(Scsi::new(Config::DEFAULT)), MsixOwner::Function),
    init: |function, storage| {
        function.power_on();
        let identity = scsi_model::Config::new("VENDOR", "PRODUCT", "1", "0001");
        if let Some(handle) = storage.first() {
            let info = Storage::<AnyMemory>::info(handle);
            let controller = function.device_mut().device_mut().controller_mut();
            let _ = controller.insert(Address { target: 0, lun: 0 }, identity, info);
        }
    },
);
