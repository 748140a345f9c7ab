//! The virtio-pci transport of a block device, with the modern interface: a device configured as
//! [`Interface::Legacy`](crate::device::Interface::Legacy) belongs behind [`mmio`](super::mmio).

pub use blk_core::virtio::pci::{ISR_CONFIG, ISR_QUEUE, NO_VECTOR, VECTORS_MAX, common, structure};

use crate::device::Blk;

/// A virtio-blk device with `Q` queues at most and `N` requests in flight in each, for a
/// [`PciFunction`](blk_core::pci::PciFunction) with a vector for each queue and one for the
/// configuration, up to [`VECTORS_MAX`].
///
/// ```
/// use blk_core::bus::{Device, Region, Width};
/// use blk_core::memory::CellMemory;
/// use blk_core::pci::{Endpoint, MsixOwner, PciFunction};
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::units::GuestAddr;
/// use virtio_blk_model::device::{Blk, Config};
/// use virtio_blk_model::front::pci::{Pci, structure};
///
/// type Disk = Pci<1, 64>;
///
/// let (mut ram, mut image) = ([0; 512], [0; 1 << 16]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disks = [RamDisk::<64>::new(Ram::new(&mut image), &mut [])];
/// let disk = Disk::new(Blk::new(Config::DEFAULT));
/// let mut function = PciFunction::<Disk, { Disk::VECTORS }>::new(disk, MsixOwner::Function);
///
/// let id = function.read(Region::Config, 0, Width::Dword, &memory, &mut disks[..]);
/// assert_eq!(id.value, 0x1042_1af4);
/// // Memory and bus mastering; then the capacity, in the device's configuration structure.
/// function.write(Region::Config, 4, Width::Word, 6, &memory, &mut disks[..]);
/// let sectors = function.read(Region::Bar(0), structure::DEVICE, Width::Qword, &memory, &mut disks[..]);
/// assert_eq!(sectors.value, 128);
/// ```
pub type Pci<const Q: usize, const N: usize> = blk_core::virtio::pci::VirtioPci<Blk<Q, N>>;
