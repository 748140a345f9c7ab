//! The virtio-mmio transport of a block device.
//!
//! BARRIER exists only in the legacy interface, so a device that is to offer it shows version 1
//! ([`Interface::Legacy`](crate::device::Interface::Legacy)).

pub use blk_core::virtio::mmio::{INTERRUPT_CONFIG, INTERRUPT_USED, register};

use crate::device::Blk;

/// A virtio-blk device with `Q` queues at most and `N` requests in flight in each, behind a virtio-mmio register block.
///
/// ```
/// use blk_core::bus::{Device, Region, Width};
/// use blk_core::memory::CellMemory;
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::units::GuestAddr;
/// use virtio_blk_model::device::{Blk, Config};
/// use virtio_blk_model::front::mmio::{Mmio, register};
///
/// let (mut ram, mut image) = ([0; 512], [0; 1 << 16]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disks = [RamDisk::<64>::new(Ram::new(&mut image), &mut [])];
/// let mut device = Mmio::new(Blk::<1, 64>::new(Config::DEFAULT));
///
/// // ACKNOWLEDGE, DRIVER; VERSION_1 (bit 32) alone of the features; FEATURES_OK, which the device keeps if it agrees.
/// let steps = [
///     (register::STATUS, 3),
///     (register::DRIVER_FEATURES_SEL, 1),
///     (register::DRIVER_FEATURES, 1),
///     (register::STATUS, 11),
/// ];
/// for (offset, value) in steps {
///     device.write(Region::Bar(0), offset, Width::Dword, value, &memory, &mut disks[..]);
/// }
/// let status = device.read(Region::Bar(0), register::STATUS, Width::Dword, &memory, &mut disks[..]);
/// assert_eq!(status.value, 11);
/// ```
pub type Mmio<const Q: usize, const N: usize> = blk_core::virtio::mmio::Mmio<Blk<Q, N>>;
