//! virtio-blk behind PCI.

#![no_std]
#![no_main]

use blk_core::pci::{MsixOwner, PciFunction};
use virtio_blk_model::device::{Blk, Config};
use virtio_blk_model::front::Pci;

freestanding::program!(
    PciFunction<Pci<1, 64>, 2>,
    PciFunction::off(Pci::new(Blk::new(Config::DEFAULT)), MsixOwner::Function),
    init: |function, _| function.power_on(),
);
