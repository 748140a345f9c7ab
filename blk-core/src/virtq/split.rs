//! Split rings (VIRTIO 1.3, 2.7).

use zerocopy::{FromBytes, IntoBytes, little_endian as le};

use super::inflight::InflightTracker;
use super::ring::{Buffer, QueueError, RingFeatures, RingPosition, RingSetup, SIZE_MAX};
use crate::memory::GuestMemory;
use crate::units::GuestAddr;

/// 2.7.5: `struct virtq_desc`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Descriptor {
    addr: le::U64,
    len: le::U32,
    flags: le::U16,
    next: le::U16,
}

const _: () = assert!(size_of::<Descriptor>() == 16);

/// VIRTQ_DESC_F_NEXT: `next` is valid.
const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes the buffer.
const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
const INDIRECT: u16 = 4;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (2.7.6).
const NO_INTERRUPT: u16 = 1;

const DESCRIPTOR_BYTES: u64 = 16;
/// Offset of `idx` in both rings, after `flags`.
const INDEX: u64 = 2;
/// Offset of the entries in both rings.
const ENTRIES: u64 = 4;

/// A split ring that is set up. Nothing in it but the guest's addresses and free-running indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
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

    #[inline(always)]
    pub(super) fn peek<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<Option<u16>, QueueError> {
        if !self.fetch_avail_idx(memory)? {
            return Ok(None);
        }
        let mut entry = [0; 2];
        memory.read(self.entry(self.available, self.next_available, 2), &mut entry)?;
        let head = u16::from_le_bytes(entry);
        if head < self.size { Ok(Some(head)) } else { Err(QueueError::Head) }
    }

    #[inline]
    pub(super) const fn pop(&mut self) {
        if self.has_fetched() {
            self.next_available = self.next_available.wrapping_add(1);
        }
    }

    #[inline]
    pub(super) fn walk<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        head: u16,
        mut visit: impl FnMut(Buffer),
    ) -> Result<(), QueueError> {
        let mut table = self.descriptors;
        let mut entries = u32::from(self.size);
        let mut in_table = false;
        let mut index = head;
        let mut left = entries;
        let mut writable_seen = false;
        loop {
            if u32::from(index) >= entries {
                return Err(QueueError::Next);
            }
            left = left.checked_sub(1).ok_or(QueueError::TooLong)?;
            let Descriptor { addr, len, flags, next } = descriptor(memory, table, index)?;
            let (addr, len, flags) = (GuestAddr(addr.get()), len.get(), flags.get());
            if flags & INDIRECT != 0 {
                // 2.7.5.3.2: WRITE is ignored here, and direct descriptors may come before.
                entries = self.table_entries(addr, len, flags, in_table)?;
                left = entries.min(u32::from(SIZE_MAX));
                (table, index, in_table) = (addr, 0, true);
                continue;
            }
            if len != 0 {
                addr.checked_add(u64::from(len)).ok_or(QueueError::Wraps)?;
                let writable = flags & WRITE != 0;
                if writable_seen && !writable {
                    return Err(QueueError::Order);
                }
                writable_seen = writable;
                visit(Buffer { addr, len, writable });
            }
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = next.get();
        }
    }

    #[inline]
    pub(super) fn add_used<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        // 2.7.8: `id` and `len`, both 32 bits, written in one copy.
        let element = u64::from(written) << 32 | u64::from(head);
        memory.write(self.entry(self.used, self.next_used, 8), &element.to_le_bytes())?;
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
    #[inline]
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

    /// The entries of an indirect table, once its descriptor is found to be in order.
    #[cold]
    fn table_entries(&self, addr: GuestAddr, len: u32, flags: u16, nested: bool) -> Result<u32, QueueError> {
        if !self.features.indirect {
            return Err(QueueError::IndirectNotNegotiated);
        }
        if nested {
            return Err(QueueError::IndirectNested);
        }
        if flags & NEXT != 0 {
            return Err(QueueError::IndirectChained);
        }
        if len == 0 || !len.is_multiple_of(16) {
            return Err(QueueError::IndirectLength);
        }
        addr.checked_add(u64::from(len)).ok_or(QueueError::Wraps)?;
        Ok(len / 16)
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

/// `base + bytes`; `Ring::new` and `table_entries` have checked that nothing within a ring or table wraps.
#[inline]
const fn offset(base: GuestAddr, bytes: u64) -> GuestAddr {
    GuestAddr(base.0.wrapping_add(bytes))
}

/// Copies a descriptor.
#[inline]
fn descriptor<M: GuestMemory + ?Sized>(
    memory: &M,
    table: GuestAddr,
    index: u16,
) -> Result<Descriptor, QueueError> {
    let mut bytes = [0; DESCRIPTOR_BYTES as usize];
    memory.read(offset(table, u64::from(index).wrapping_mul(DESCRIPTOR_BYTES)), &mut bytes)?;
    Ok(zerocopy::transmute!(bytes))
}
