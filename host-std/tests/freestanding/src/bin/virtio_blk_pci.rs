//! virtio-blk behind PCI.

#![no_std]
#![no_main]

use blk_core::pci::{MsixOwner, PciFunction};
use virtio_blk_model::device::Config;
use virtio_blk_model::front::Pci;

freestanding::program!(
    PciFunction<Pci<1, 64>, 2>,
    init: |_| Some(PciFunction::new(Pci::new(Config::default()), MsixOwner::Function)),
);
