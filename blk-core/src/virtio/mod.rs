//! Common part of virtio devices, apart from their rings ([`crate::virtq`]): the device status, and the interface between a
//! device and its transport.

pub mod mmio;
pub mod pci;
mod selectors;

use bitflags::bitflags;

use crate::bus::{Width, WriteStatus};
use crate::virtq::{Queue, QueueError};

bitflags! {
    /// The device status field (VIRTIO 1.3, 2.1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct DeviceStatus: u8 {
        /// The guest has seen the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// The features are agreed.
        const FEATURES_OK = 8;
        /// The device cannot go on until it is reset.
        const NEEDS_RESET = 64;
        /// The driver gave up.
        const FAILED = 128;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for DeviceStatus {
    const POSTCARD_MAX_SIZE: usize = u8::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for DeviceStatus {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

/// Result of a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Polled {
    /// Bit n: the driver wants a used-buffer interrupt for queue n. Queues from 63 on share the last bit.
    pub used: u64,
    /// The driver is to be told of a change: of the configuration space, or that the device needs a reset.
    pub changed: bool,
    /// Work is left that needs no completion.
    pub again: bool,
}

impl Polled {
    /// Notes that the driver wants an interrupt for queue `index`.
    #[inline]
    pub const fn mark_used(&mut self, index: usize) {
        self.used |= 1_u64.wrapping_shl(if index < 63 { index as u32 } else { 63 });
    }
}

/// Type of a virtio device, apart from its memory and its storage.
pub trait VirtioType {
    /// The device type (VIRTIO 1.3, 5).
    const TYPE: u32;
    /// The class code on PCI: base class, subclass, programming interface.
    const PCI_CLASS: u32;
    /// Most queues that one can have.
    const QUEUES: usize;

    /// Queues that it has: [`Self::QUEUES`] at most.
    fn queue_count(&self) -> u16;

    /// The error of the first queue that is broken.
    fn queue_error(&self) -> Option<QueueError>;
}

/// A device, as a transport with registers sees it. `M` is the guest memory and `S` the storage, which come in with each
/// call, as for [`crate::bus::Device`].
///
/// Features are bits here, since each device type names its own.
pub trait VirtioDevice<M: ?Sized, S: ?Sized>: VirtioType {
    /// Whether it shows the legacy interface only.
    fn is_legacy(&self) -> bool {
        false
    }

    /// The features that are offered.
    fn offered_features(&self, storage: &S) -> u64;

    /// The features as the driver wrote them.
    fn driver_features(&self) -> u64;

    /// The driver writes its features, as a whole.
    fn write_features(&mut self, features: u64, storage: &S);

    /// The device status. It reads 0 only when a reset is over.
    fn status(&self) -> DeviceStatus;

    /// The driver writes the device status; 0 resets the device.
    fn write_status(&mut self, value: u8, memory: &M, storage: &mut S) -> WriteStatus;

    /// The ring of the queue at `index`, if the device has it.
    fn ring(&self, index: u32) -> Option<&Queue>;

    /// The ring of the queue at `index`, for the driver's setup.
    fn ring_mut(&mut self, index: u32) -> Option<&mut Queue>;

    /// Enables the queue at `index` with the ring that was set up. A ring that cannot be breaks it.
    fn enable_queue(&mut self, index: u32);

    /// Stops the queue at `index`, its requests in flight awaited.
    fn stop_queue(&mut self, index: u32, memory: &M, storage: &mut S) -> WriteStatus;

    /// Whether a queue that was stopped still waits for requests in flight.
    fn is_stopping(&self, index: u32) -> bool;

    /// Changes with the configuration space.
    fn config_generation(&self) -> u32;

    /// The bytes of `width` at `offset` of the configuration space; what lies beyond it reads as zeroes.
    fn read_config(&self, offset: u64, width: Width, storage: &S) -> u64;

    /// The driver writes into the configuration space.
    fn write_config(&mut self, offset: u64, width: Width, value: u64, storage: &mut S) -> WriteStatus;

    /// Whether a change or a reset waits for requests in flight.
    fn pending(&self) -> WriteStatus;

    /// Makes bounded progress on every queue and on a change.
    fn poll(&mut self, memory: &M, storage: &mut S) -> Polled;

    /// Resets the device: held-back requests are dropped, those in flight awaited by [`Self::poll`].
    fn reset(&mut self, memory: &M, storage: &mut S) -> WriteStatus;
}

/// `width` bytes at `offset` of a configuration space; what lies beyond it reads as zeroes.
#[must_use]
pub fn read_bytes(space: &[u8], offset: u64, width: Width) -> u64 {
    let mut value = [0; 8];
    // Firecracker 3869: an offset near 2^64 does not become a small one.
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let bytes = space.iter().skip(start).take(usize::from(width.bytes()));
    for (to, from) in value.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(value)
}
