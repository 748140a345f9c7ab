//! Operations on a storage, and the memory segments that they touch.

use crate::units::{Extent, GuestAddr, StateKey};

/// One operation on a [`Storage`](crate::storage::Storage).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "snapshot", serde(rename_all = "kebab-case"))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Op {
    /// Fill the segments from the disk.
    Read {
        /// Where to read.
        extent: Extent,
    },
    /// Store the segments on the disk.
    Write {
        /// Where to write.
        extent: Extent,
        /// Complete only when the data is stable. Submitted only where [`Info::fua`](crate::storage::Info::fua) says
        /// that the storage can; the sequencer emulates it elsewhere.
        fua: bool,
    },
    /// Make the sectors read back as zeroes.
    WriteZeroes {
        /// Where to write.
        extent: Extent,
        /// Whether the storage may release the space, provided that it still reads back as zeroes.
        may_unmap: bool,
    },
    /// Release the sectors; what they hold afterwards is either the old data or zeroes.
    Discard {
        /// What to release.
        extent: Extent,
    },
    /// Make stable every write whose completion was polled before this was submitted.
    Flush,
    /// Keep the other handles of the storage from changing the sectors, once this has completed and until
    /// [`Storage::release_hold`](crate::storage::Storage::release_hold): what is read and written meanwhile is one atomic group.
    /// A slot has one hold at most. Submitted only where [`Info::holds`](crate::storage::Info::holds).
    Hold {
        /// What to keep.
        extent: Extent,
    },
    /// Fill the segments from a record beside the disk's contents, and with zeroes after its end. One that was never stored is
    /// empty. Submitted only where the segments are as long as [`Info::state_bytes`](crate::storage::Info::state_bytes) at most.
    LoadState {
        /// Which record.
        key: StateKey,
    },
    /// Replace a record by the segments, all of it or nothing. It is stable when it has completed, in every cache mode that
    /// promises anything.
    StoreState {
        /// Which record.
        key: StateKey,
    },
}

impl Op {
    /// The sectors that the operation concerns; `None` for a flush and for a record.
    #[must_use]
    pub const fn extent(&self) -> Option<Extent> {
        match *self {
            Self::Read { extent }
            | Self::Write { extent, .. }
            | Self::WriteZeroes { extent, .. }
            | Self::Discard { extent }
            | Self::Hold { extent } => Some(extent),
            Self::Flush | Self::LoadState { .. } | Self::StoreState { .. } => None,
        }
    }

    /// The bytes that its segments add up to: of a record any number, `None`.
    #[must_use]
    pub const fn segment_bytes(&self) -> Option<u64> {
        match *self {
            // A length beyond 2^64 fits no disk.
            Self::Read { extent } | Self::Write { extent, .. } => match extent.bytes() {
                Some(bytes) => Some(bytes),
                None => Some(u64::MAX),
            },
            Self::WriteZeroes { .. } | Self::Discard { .. } | Self::Flush | Self::Hold { .. } => Some(0),
            Self::LoadState { .. } | Self::StoreState { .. } => None,
        }
    }

    /// Whether the operation changes the disk's contents.
    #[must_use]
    pub const fn mutates(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::WriteZeroes { .. } | Self::Discard { .. })
    }

    /// Whether the operation puts something on the medium, or promises that something is there: what fails once a
    /// durable operation has failed.
    #[must_use]
    pub const fn fails_when_latched(&self) -> bool {
        self.mutates() || matches!(self, Self::Flush | Self::StoreState { .. })
    }
}

/// A piece of the memory that an operation reads or writes, in order.
///
/// The lengths of an operation's segments add up to [`Op::segment_bytes`]: the model guarantees it, the storage checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Segment {
    /// Guest memory.
    Guest {
        /// First byte.
        addr: GuestAddr,
        /// Length in bytes.
        len: u32,
    },
    /// The staging buffer of the operation's slot (see [`Storage::staging`](crate::storage::Storage::staging)).
    Staging {
        /// First byte within the buffer.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
}

impl Segment {
    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> u32 {
        match *self {
            Self::Guest { len, .. } | Self::Staging { len, .. } => len,
        }
    }

    /// Whether the segment has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bytes of all segments together, or `None` if that overflows.
#[must_use]
pub fn total_bytes(segments: &[Segment]) -> Option<u64> {
    segments.iter().try_fold(0_u64, |sum, segment| sum.checked_add(u64::from(segment.len())))
}
