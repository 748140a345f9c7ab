//! A driver's way to bring up a virtio device on PCI.

use blk_core::bus::{Device, Region, Width};
use blk_core::virtio::pci::{common, structure};
use host_std::memory::MappedMemory;
use virtio_blk_model::wire::DeviceStatus;

/// The device status, step by step.
pub(crate) const KNOWN: DeviceStatus = DeviceStatus::ACKNOWLEDGE.union(DeviceStatus::DRIVER);
pub(crate) const AGREED: DeviceStatus = KNOWN.union(DeviceStatus::FEATURES_OK);
pub(crate) const LIVE: DeviceStatus = AGREED.union(DeviceStatus::DRIVER_OK);

/// A ring, of which a device uses one.
#[derive(Clone, Copy)]
pub(crate) struct Ring {
    pub(crate) index: u16,
    pub(crate) entries: u16,
    pub(crate) descriptors: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

/// Enables the function and a vector, agrees on `features`, and sets `ring` up.
pub(crate) fn bring_up<S>(
    function: &mut impl Device<MappedMemory, [S]>,
    features: u64,
    ring: Ring,
    memory: &MappedMemory,
    storage: &mut [S],
) {
    let mut set = |region, offset, width, value: u64| {
        let _ = function.write(region, offset, width, value, memory, storage);
    };
    // Memory and bus mastering; MSI-X, which is the first capability, at 40h; vector 1: address, data, unmasked.
    set(Region::Config, 0x04, Width::Word, 6);
    set(Region::Config, 0x42, Width::Word, 1 << 15);
    for (offset, value) in [(16, 0xfee0_0000), (24, 0x41), (28, 0)] {
        set(Region::Bar(0), structure::MSIX_TABLE + offset, Width::Dword, value);
    }
    let status = |status: DeviceStatus| (common::DEVICE_STATUS, Width::Byte, u64::from(status.bits()));
    for (offset, width, value) in [
        status(KNOWN),
        (common::DRIVER_FEATURE, Width::Dword, features & 0xffff_ffff),
        (common::DRIVER_FEATURE_SELECT, Width::Dword, 1),
        (common::DRIVER_FEATURE, Width::Dword, features >> 32),
        status(AGREED),
        (common::QUEUE_SELECT, Width::Word, ring.index.into()),
        (common::QUEUE_SIZE, Width::Word, ring.entries.into()),
        (common::QUEUE_MSIX_VECTOR, Width::Word, 1),
        (common::QUEUE_DESC, Width::Qword, ring.descriptors),
        (common::QUEUE_DRIVER, Width::Qword, ring.driver),
        (common::QUEUE_DEVICE, Width::Qword, ring.device),
        (common::QUEUE_ENABLE, Width::Word, 1),
        status(LIVE),
    ] {
        set(Region::Bar(0), structure::COMMON + offset, width, value);
    }
}
