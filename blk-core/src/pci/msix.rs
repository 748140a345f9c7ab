//! The MSI-X table and its pending bits, which live in a BAR (PCI 3.0, 6.8.2).

use super::capability::Message;
use crate::bus::Width;

/// Bytes of a table entry: message address, upper address, data, vector control.
const ENTRY_BYTES: u64 = 16;
/// Vector Control bit 0: Mask.
const MASKED: u32 = 1;

/// A table of `V` vectors, 64 at most; with none, what a function without MSI-X has.
///
/// All vectors are masked after a reset (6.8.2.9). A masked vector's interrupt is kept as a pending bit, and its message
/// is due when it is unmasked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct MsixTable<const V: usize> {
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    entries: [Entry; V],
    pending: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
struct Entry {
    message: Message,
    control: u32,
}

impl<const V: usize> Default for MsixTable<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const V: usize> MsixTable<V> {
    const FITS: () = assert!(V <= 64, "MsixTable<V>: V is 64 at most, since the pending bits are one u64");

    /// A table after reset.
    #[must_use]
    pub const fn new() -> Self {
        let () = Self::FITS;
        let entry = Entry { message: Message { address: 0, data: 0 }, control: MASKED };
        Self { entries: [entry; V], pending: 0 }
    }

    /// Bytes of the table in its BAR.
    pub const TABLE_BYTES: u64 = V as u64 * ENTRY_BYTES;

    /// A guest reads the table at `offset`. 6.8.2: software reads aligned dwords and qwords; the rest reads as zeroes.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let dword = |at| u64::from(self.dword(at).unwrap_or(0));
        match width {
            Width::Dword if offset.is_multiple_of(4) => dword(offset),
            Width::Qword if offset.is_multiple_of(8) => dword(offset) | dword(offset.wrapping_add(4)) << 32,
            _ => 0,
        }
    }

    /// A guest writes the table at `offset`. What is not an aligned dword or qword is ignored.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) {
        match width {
            Width::Dword if offset.is_multiple_of(4) => self.set_dword(offset, value as u32),
            Width::Qword if offset.is_multiple_of(8) => {
                self.set_dword(offset, value as u32);
                self.set_dword(offset.wrapping_add(4), (value >> 32) as u32);
            }
            _ => {}
        }
    }

    /// A guest reads the pending bits at `offset`. They are read-only.
    #[must_use]
    pub fn read_pending(&self, offset: u64, width: Width) -> u64 {
        match (offset, width) {
            (0, Width::Qword) => self.pending,
            (0, Width::Dword) => self.pending & 0xffff_ffff,
            (4, Width::Dword) => self.pending >> 32,
            _ => 0,
        }
    }

    /// The front signals `vector`: it is pending until [`Self::take`] finds it unmasked.
    pub fn raise(&mut self, vector: u16) {
        if usize::from(vector) < V {
            self.pending |= bit(vector);
        }
    }

    /// The next message that is due; none while the function is masked as a whole (Function Mask).
    pub fn take(&mut self, function_masked: bool) -> Option<(u16, Message)> {
        if function_masked || self.pending == 0 {
            return None;
        }
        for (vector, entry) in (0_u16..).zip(&self.entries) {
            if self.pending & bit(vector) != 0 && entry.control & MASKED == 0 {
                self.pending &= !bit(vector);
                return Some((vector, entry.message));
            }
        }
        None
    }

    /// The message of `vector`, masked or not.
    #[must_use]
    pub fn message(&self, vector: u16) -> Option<Message> {
        self.entries.get(usize::from(vector)).map(|entry| entry.message)
    }

    fn dword(&self, offset: u64) -> Option<u32> {
        let entry = self.entries.get(usize::try_from(offset / ENTRY_BYTES).ok()?)?;
        Some(match offset % ENTRY_BYTES {
            0 => entry.message.address as u32,
            4 => (entry.message.address >> 32) as u32,
            8 => entry.message.data,
            _ => entry.control,
        })
    }

    fn set_dword(&mut self, offset: u64, value: u32) {
        let index = usize::try_from(offset / ENTRY_BYTES).ok();
        let Some(entry) = index.and_then(|index| self.entries.get_mut(index)) else { return };
        let address = entry.message.address;
        match offset % ENTRY_BYTES {
            // 6.8.2.7: dword-aligned.
            0 => entry.message.address = address & !0xffff_ffff | u64::from(value & !3),
            4 => entry.message.address = address & 0xffff_ffff | u64::from(value) << 32,
            8 => entry.message.data = value,
            // 6.8.2.10: the other bits are reserved and keep their 0.
            _ => entry.control = value & MASKED,
        }
    }
}

const fn bit(vector: u16) -> u64 {
    1_u64.wrapping_shl(vector as u32)
}
