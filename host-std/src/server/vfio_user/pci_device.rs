//! PCI functions over images that can be served.

use blk_core::bus::Device;
use blk_core::pci::{Endpoint, Function, PciFunction};

use super::counted_handle::CountedHandle;
use crate::memory::MappedMemory;

/// A PCI device that can be served: any [`PciFunction`] whose device takes storage as a slice.
pub trait PciDevice: Device<MappedMemory, [CountedHandle]> + Send {
    /// What the function is.
    fn function(&self) -> &Function;

    /// What its driver did so that it does nothing more until it is reset.
    fn fault(&self) -> Option<&'static str>;
}

impl<D, const V: usize> PciDevice for PciFunction<D, V>
where
    D: Endpoint + Device<MappedMemory, [CountedHandle]> + Send,
{
    fn function(&self) -> &Function {
        self.config().function()
    }

    fn fault(&self) -> Option<&'static str> {
        self.device().fault()
    }
}
