//! A place in a command's PRD table (AHCI 1.3.1, 4.2.3.3).

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;
use zerocopy::{FromZeros, IntoBytes};

use crate::front::scatter::Table;
use crate::wire::ahci::PrdEntry;

/// A place in a PRD table. Each entry is read once, when its turn comes; 65,535 of them bound every walk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Prdt {
    table: u64,
    entries: u16,
    next: u16,
    region: u64,
    left: u32,
    /// The region asks for an interrupt when it is done.
    notify: bool,
    /// A region that asked for one is done.
    notified: bool,
}

impl Prdt {
    /// The start of the table of `entries` entries at `table`.
    pub(super) const fn new(table: u64, entries: u16) -> Self {
        Self { table, entries, next: 0, region: 0, left: 0, notify: false, notified: false }
    }

    /// Whether no entry has been read yet.
    pub(super) const fn is_at_start(&self) -> bool {
        self.next == 0
    }

    /// Whether a region is done that asked for an interrupt then.
    pub(super) const fn notified(&self) -> bool {
        self.notified
    }

    /// Reads the next entry. Returns false at the end of the table.
    ///
    /// A region is of whole words: with an odd address or length, which are reserved, it is as little memory as one that
    /// wraps past 2^64. To ignore the bits would be to touch bytes that the guest did not name.
    #[inline(always)]
    fn fetch<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, MemoryError> {
        if self.next == self.entries {
            return Ok(false);
        }
        let mut entry = PrdEntry::new_zeroed();
        let at = self.table.checked_add(u64::from(self.next).wrapping_mul(16)).ok_or(MemoryError)?;
        memory.read(GuestAddr(at), entry.as_mut_bytes())?;
        let (base, count) = (entry.base.get(), entry.count.get());
        let last = count & PrdEntry::BYTES;
        if base & 1 != 0 || last & 1 == 0 || base.checked_add(u64::from(last)).is_none() {
            return Err(MemoryError);
        }
        self.next = self.next.wrapping_add(1);
        self.region = base;
        self.left = last.wrapping_add(1);
        self.notify = count & PrdEntry::INTERRUPT != 0;
        Ok(true)
    }
}

impl Table for Prdt {
    fn is_exhausted(&self) -> bool {
        self.next == self.entries && self.left == 0
    }

    #[inline(always)]
    fn region<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<Option<(GuestAddr, u32)>, MemoryError> {
        if self.left == 0 && !self.fetch(memory)? {
            return Ok(None);
        }
        Ok(Some((GuestAddr(self.region), self.left)))
    }

    #[inline(always)]
    fn pass(&mut self, bytes: u32) {
        self.region = self.region.wrapping_add(u64::from(bytes));
        self.left = self.left.saturating_sub(bytes);
        self.notified |= self.notify && self.left == 0;
    }
}
