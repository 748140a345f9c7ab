//! Units as types: what a number counts is part of its type, and arithmetic on it is checked.

/// Bytes in a sector, the unit of [`Lba`].
pub const SECTOR_BYTES: u32 = 512;

/// A disk position in 512-byte sectors, whatever the logical block size of the disk.
///
/// One fixed unit, as in Linux's `sector_t`, keeps divisions by a guest-chosen block size out of every
/// path behind the command decoders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Lba(pub u64);

/// A run of 512-byte sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Extent {
    /// First sector.
    pub start: Lba,
    /// Length in sectors.
    pub sectors: u64,
}

impl Extent {
    /// The run of `sectors` sectors from sector `start` on. Not yet checked against a capacity.
    #[must_use]
    pub const fn new(start: u64, sectors: u64) -> Self {
        Self { start: Lba(start), sectors }
    }

    /// The sector after the last one, or `None` if that wraps past 2^64.
    #[must_use]
    pub const fn end(self) -> Option<u64> {
        self.start.0.checked_add(self.sectors)
    }

    /// Whether the run lies within a disk of `capacity` sectors.
    #[must_use]
    pub const fn fits(self, capacity: u64) -> bool {
        match self.end() {
            Some(end) => end <= capacity,
            None => false,
        }
    }

    /// Byte offset of the first sector, or `None` past 2^64.
    #[must_use]
    pub const fn offset_bytes(self) -> Option<u64> {
        self.start.0.checked_mul(SECTOR_BYTES as u64)
    }

    /// Length in bytes, or `None` past 2^64.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.sectors.checked_mul(SECTOR_BYTES as u64)
    }

    /// Whether the two runs share a sector. Runs that wrap are taken to reach the end of the disk.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.sectors != 0
            && other.sectors != 0
            && self.start.0 < other.end().unwrap_or(u64::MAX)
            && other.start.0 < self.end().unwrap_or(u64::MAX)
    }
}

/// A guest-physical address. An allegation until [`GuestMemory`](crate::memory::GuestMemory) has checked it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GuestAddr(pub u64);

impl GuestAddr {
    /// The address `bytes` further on, or `None` if it wraps past 2^64.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// Names a record that a storage keeps beside the disk's contents: see [`Op::StoreState`](crate::op::Op::StoreState).
///
/// All handles of a storage have the same records. The lower 16 bits say what a device keeps there. The upper 16 are the embedder's:
/// two units over one storage that are to remember different things have different ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct StateKey(pub u32);

/// Names an operation in flight on one `Storage` handle.
///
/// `slot` is smaller than the depth that the submitter keeps; `generation` changes with every submission, so
/// that a completion delivered twice or too late is seen for what it is. It catches bugs and excuses none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Tag {
    /// Index of the submitter's slot, which also names the staging buffer.
    pub slot: u16,
    /// Distinguishes successive uses of a slot.
    pub generation: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    // host-std/tests/defects.md, 3; OpenVMM 4046, cloud-hypervisor 8388.
    #[test]
    fn an_extent_that_wraps_fits_nowhere() {
        assert!(!Extent::new(u64::MAX, 2).fits(u64::MAX));
        assert!(!Extent::new(1 << 55, 1).fits(1 << 20), "sector 2^55 is not sector 0");
        assert_eq!(Extent::new(1 << 55, 1).offset_bytes(), None);
        assert!(Extent::new(7, 1).fits(8));
        assert!(!Extent::new(7, 2).fits(8));
    }

    #[test]
    fn overlap_is_symmetric_and_empty_runs_overlap_nothing() {
        let a = Extent::new(2, 2);
        for (start, sectors, expected) in
            [(0, 2, false), (0, 3, true), (3, 1, true), (4, 1, false), (2, 0, false)]
        {
            let b = Extent::new(start, sectors);
            assert_eq!((a.overlaps(b), b.overlaps(a)), (expected, expected), "{b:?}");
        }
    }
}
