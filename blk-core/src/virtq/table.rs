//! Table of descriptors of a split ring, in the ring or indirect (VIRTIO 1.3, 2.7.5).

use super::ring::QueueError;
use crate::memory::GuestMemory;
use crate::units::GuestAddr;

const DESCRIPTOR_BYTES: u64 = 16;

/// Table of descriptors. What a descriptor says is the driver's allegation.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    base: GuestAddr,
    entries: u32,
    indirect: Indirect,
}

/// Whether a descriptor of a table may be an indirect one.
#[derive(Clone, Copy, Debug)]
enum Indirect {
    NotNegotiated,
    Allowed,
    /// This is an indirect table already.
    Nested,
}

/// A descriptor, copied.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// First byte of the buffer.
    pub addr: GuestAddr,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// [`Self::NEXT`], [`Self::WRITE`], [`Self::INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor, with [`Self::NEXT`].
    pub next: u16,
}

impl Descriptor {
    /// VIRTQ_DESC_F_NEXT: `next` is valid.
    pub const NEXT: u16 = 1;
    /// VIRTQ_DESC_F_WRITE: the device writes the buffer.
    pub const WRITE: u16 = 2;
    /// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;

    /// Whether the buffer's end does not wrap past 2^64.
    #[inline(always)]
    #[must_use]
    pub const fn fits(&self) -> bool {
        self.addr.checked_add(self.len as u64).is_some()
    }
}

impl Table {
    /// The table of a ring of `size` entries, whose place was checked.
    #[inline]
    pub(super) const fn of_ring(base: GuestAddr, size: u16, indirect: bool) -> Self {
        let indirect = if indirect { Indirect::Allowed } else { Indirect::NotNegotiated };
        Self { base, entries: size as u32, indirect }
    }

    /// Entries.
    #[inline]
    pub(super) const fn entries(&self) -> u32 {
        self.entries
    }

    /// Copies the descriptor at `index`.
    ///
    /// # Errors
    /// [`QueueError::Next`] if it lies outside, [`QueueError::Memory`] if the table is not memory.
    #[inline]
    pub fn descriptor<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        index: u16,
    ) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= self.entries {
            return Err(QueueError::Next);
        }
        // Nothing in the table wraps.
        let at = GuestAddr(self.base.0.wrapping_add(u64::from(index).wrapping_mul(DESCRIPTOR_BYTES)));
        let [addr, rest] = memory.read_u64_pair(at)?;
        let (len, word) = ((rest & 0xffff_ffff) as u32, |shift: u32| (rest >> shift & 0xffff) as u16);
        Ok(Descriptor { addr: GuestAddr(addr), len, flags: word(32), next: word(48) })
    }

    /// The table that an indirect descriptor of this one names.
    ///
    /// # Errors
    /// [`QueueError`] if it may not be there, or is no table.
    #[inline]
    pub fn indirect(&self, descriptor: Descriptor) -> Result<Self, QueueError> {
        // 2.7.5.3.2: WRITE is ignored here, and direct descriptors may come before.
        let Descriptor { addr: base, len, flags, .. } = descriptor;
        match self.indirect {
            Indirect::NotNegotiated => return Err(QueueError::IndirectNotNegotiated),
            Indirect::Nested => return Err(QueueError::IndirectNested),
            Indirect::Allowed => {}
        }
        if flags & Descriptor::NEXT != 0 {
            return Err(QueueError::IndirectChained);
        }
        if len == 0 || !u64::from(len).is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(QueueError::IndirectLength);
        }
        if !descriptor.fits() {
            return Err(QueueError::Wraps);
        }
        Ok(Self { base, entries: len / 16, indirect: Indirect::Nested })
    }
}
