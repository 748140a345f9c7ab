//! The virtio-mmio transport of a block device.
//!
//! BARRIER exists only in the legacy interface, so a device that is to offer it shows version 1
//! ([`Interface::Legacy`](crate::device::Interface::Legacy)).

pub use blk_core::virtio::mmio::{INTERRUPT_CONFIG, INTERRUPT_USED, register};

use crate::device::Blk;

/// A virtio-blk device with `Q` queues at most and `N` requests in flight in each, behind a virtio-mmio register block.
pub type Mmio<const Q: usize, const N: usize> = blk_core::virtio::mmio::Mmio<Blk<Q, N>>;
