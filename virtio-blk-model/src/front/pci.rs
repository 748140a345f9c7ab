//! The virtio-pci transport of a block device, with the modern interface: a device configured as
//! [`Interface::Legacy`](crate::device::Interface::Legacy) belongs behind [`mmio`](super::mmio).

pub use blk_core::virtio::pci::{ISR_CONFIG, ISR_QUEUE, NO_VECTOR, VECTORS_MAX, common, structure};

use crate::device::Blk;

/// A virtio-blk device with `Q` queues at most and `N` requests in flight in each, for a
/// [`PciFunction`](blk_core::pci::PciFunction) with [`VECTORS_MAX`] vectors.
pub type Pci<const Q: usize, const N: usize> = blk_core::virtio::pci::VirtioPci<Blk<Q, N>>;
