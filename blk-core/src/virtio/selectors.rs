//! Selector registers and the state that they select, for all transports with registers.

use super::VirtioDevice;
use crate::units::GuestAddr;
use crate::virtq::{Queue, RingSetup};

/// The registers that say which half of the features, and which queue, the others are about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Selectors {
    pub(super) device_features: u32,
    pub(super) driver_features: u32,
    pub(super) queue: u32,
}

impl Selectors {
    /// After a reset.
    pub(super) const RESET: Self = Self { device_features: 0, driver_features: 0, queue: 0 };

    /// The selected half of the features that are offered; there is nothing beyond the second.
    pub(super) fn offered<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>>(
        &self,
        device: &D,
        storage: &S,
    ) -> u32 {
        half(device.offered_features(storage), self.device_features)
    }

    /// The selected half of the driver's features.
    pub(super) fn accepted<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>>(&self, device: &D) -> u32 {
        half(device.driver_features(), self.driver_features)
    }

    /// The driver writes the selected half of its features.
    pub(super) fn accept<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>>(
        &self,
        device: &mut D,
        value: u32,
        storage: &S,
    ) {
        let old = device.driver_features();
        let value = u64::from(value);
        let new = match self.driver_features {
            0 => old & !u64::from(u32::MAX) | value,
            1 => old & u64::from(u32::MAX) | value << 32,
            _ => return,
        };
        device.write_features(new, storage);
    }

    /// The ring of the selected queue, if there is one.
    pub(super) fn ring<'a, M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>>(
        &self,
        device: &'a D,
    ) -> Option<&'a Queue> {
        device.ring(self.queue)
    }

    /// Whether the selected queue is enabled, or was and still waits for requests in flight.
    pub(super) fn is_ready<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>>(&self, device: &D) -> bool {
        self.ring(device).is_some_and(Queue::is_enabled) || device.is_stopping(self.queue)
    }

    /// Changes the setup of the selected queue, if it is there and not enabled.
    pub(super) fn set_up<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>>(
        &self,
        device: &mut D,
        change: impl FnOnce(&mut RingSetup),
    ) {
        if let Some(setup) = device.ring_mut(self.queue).and_then(Queue::setup_mut) {
            change(setup);
        }
    }
}

/// One half of a 64-bit set of bits; there is nothing beyond.
const fn half(bits: u64, sel: u32) -> u32 {
    match sel {
        0 => (bits & u32::MAX as u64) as u32,
        1 => (bits >> 32) as u32,
        _ => 0,
    }
}

/// Sets bits 31:0 of an address.
pub(super) fn set_low(addr: &mut GuestAddr, value: u32) {
    addr.0 = addr.0 & !u64::from(u32::MAX) | u64::from(value);
}

/// Sets bits 63:32 of an address.
pub(super) fn set_high(addr: &mut GuestAddr, value: u32) {
    addr.0 = addr.0 & u64::from(u32::MAX) | u64::from(value) << 32;
}
