//! Split rings (VIRTIO 1.3, 2.7).

use super::inflight::InflightTracker;
use super::ring::{QueueError, RingFeatures, RingPosition, RingSetup};
use super::table::Table;
use crate::memory::GuestMemory;
use crate::units::GuestAddr;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Offset of `idx` in both rings, after `flags`.
const INDEX: u64 = 2;
/// Offset of the entries in both rings.
const ENTRIES: u64 = 4;

/// A split ring that is set up. Nothing in it but the guest's addresses and free-running indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Ring {
    descriptors: GuestAddr,
    available: GuestAddr,
    used: GuestAddr,
    size: u16,
    features: RingFeatures,
    /// The next available entry to look at.
    next_available: u16,
    /// The driver's available index, as last read.
    seen_available: u16,
    /// The next used entry to write.
    next_used: u16,
    /// The used index that the driver sees.
    published: u16,
}

impl Ring {
    /// The ring that `setup` describes, at `position`.
    pub(super) fn new(
        setup: &RingSetup,
        size_max: u16,
        features: RingFeatures,
        position: RingPosition,
    ) -> Result<Self, QueueError> {
        let RingSetup { size, descriptors, driver, device } = *setup;
        if !size.is_power_of_two() || size > size_max {
            return Err(QueueError::Size);
        }
        let entries = u64::from(size);
        // 2.7: part, bytes of an entry, alignment. The rings have flags, an index and an event beside their entries.
        let parts = [(descriptors, 16, 0, 16), (driver, 2, 6, 2), (device, 8, 6, 4)];
        for (part, entry_bytes, more_bytes, alignment) in parts {
            let bytes = entries.saturating_mul(entry_bytes).saturating_add(more_bytes);
            if !part.0.is_multiple_of(alignment) || part.checked_add(bytes).is_none() {
                return Err(QueueError::Layout);
            }
        }
        Ok(Self {
            descriptors,
            available: driver,
            used: device,
            size,
            features,
            next_available: position.next_avail,
            seen_available: position.next_avail,
            next_used: position.next_used,
            published: position.next_used,
        })
    }

    #[inline]
    pub(super) const fn size(&self) -> u16 {
        self.size
    }

    pub(super) const fn position(&self) -> RingPosition {
        RingPosition { next_avail: self.next_available, next_used: self.next_used }
    }

    #[inline]
    pub(super) const fn has_fetched(&self) -> bool {
        self.next_available != self.seen_available
    }

    #[inline]
    pub(super) fn fetch_avail_idx<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<bool, QueueError> {
        Ok(self.has_fetched() || self.read_available_index(memory)?)
    }

    /// The head of the next chain, which was fetched.
    #[inline(always)]
    pub(super) fn head<M: GuestMemory + ?Sized>(&self, memory: &M) -> Result<u16, QueueError> {
        match memory.load_u16_acquire(self.entry(self.available, self.next_available, 2)) {
            Ok(head) if head < self.size => Ok(head),
            Ok(_) => Err(QueueError::Head),
            Err(error) => Err(error.into()),
        }
    }

    #[inline]
    pub(super) const fn pop(&mut self) {
        self.next_available = self.next_available.wrapping_add(1);
    }

    #[inline]
    pub(super) const fn table(&self) -> Table {
        Table::of_ring(self.descriptors, self.size, self.features.indirect)
    }

    #[inline]
    pub(super) fn add_used<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        // 2.7.8: `id` and `len`.
        memory.write_u32_pair(self.entry(self.used, self.next_used, 8), [head.into(), written])?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    #[inline]
    pub(super) fn publish<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        log: &mut impl InflightTracker,
    ) -> Result<bool, QueueError> {
        let before = self.published;
        if before == self.next_used {
            return Ok(false);
        }
        log.publishing();
        memory.store_u16_release(offset(self.used, INDEX), self.next_used)?;
        self.published = self.next_used;
        log.published(self.next_used);
        // The index must be visible before the driver's interrupt suppression is read, or both sides wait (2.7.7.2).
        memory.full_fence();
        if !self.features.event_idx {
            return Ok(memory.load_u16_acquire(self.available)? & NO_INTERRUPT == 0);
        }
        let event = memory.load_u16_acquire(self.used_event())?;
        // 2.7.7.2: whether `event` lies among the entries published just now.
        let since_event = self.published.wrapping_sub(event).wrapping_sub(1);
        Ok(since_event < self.published.wrapping_sub(before))
    }

    #[inline]
    pub(super) fn enable_notification<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<bool, QueueError> {
        if self.features.event_idx {
            memory.store_u16_release(self.available_event(), self.next_available)?;
            memory.full_fence();
        }
        // Without EVENT_IDX the driver always notifies: NO_NOTIFY is never set. Looking again costs one load.
        self.fetch_avail_idx(memory)
    }

    /// Reads the available index, and returns whether there is anything new.
    fn read_available_index<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, QueueError> {
        let index = memory.load_u16_acquire(offset(self.available, INDEX))?;
        let in_flight = self.next_available.wrapping_sub(self.next_used);
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.size.saturating_sub(in_flight) {
            return Err(QueueError::AvailableIndex);
        }
        self.seen_available = index;
        Ok(waiting != 0)
    }

    /// The address of the entry for the free-running `index` of `ring`.
    #[inline]
    fn entry(&self, ring: GuestAddr, index: u16, entry_bytes: u64) -> GuestAddr {
        let slot = u64::from(index & self.size.wrapping_sub(1));
        offset(ring, slot.wrapping_mul(entry_bytes).wrapping_add(ENTRIES))
    }

    /// 2.7.6: `used_event` follows the available entries.
    #[inline]
    fn used_event(&self) -> GuestAddr {
        offset(self.available, u64::from(self.size).wrapping_mul(2).wrapping_add(ENTRIES))
    }

    /// 2.7.8: `avail_event` follows the used entries.
    #[inline]
    fn available_event(&self) -> GuestAddr {
        offset(self.used, u64::from(self.size).wrapping_mul(8).wrapping_add(ENTRIES))
    }
}

/// `base + bytes`; `Ring::new` has checked that nothing within a ring wraps.
#[inline]
const fn offset(base: GuestAddr, bytes: u64) -> GuestAddr {
    GuestAddr(base.0.wrapping_add(bytes))
}
