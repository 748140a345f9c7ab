//! Types of a ring of either format: addresses, position, buffers, errors.

use core::fmt;

use crate::memory::MemoryError;
use crate::units::GuestAddr;

/// Most descriptors in a chain, and the largest queue. Indirect tables may be longer than the queue, since drivers make
/// them so (Linux `virtqueue_add_split`), but not longer than this.
pub const SIZE_MAX: u16 = 1024;

/// Error of the driver that broke the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum QueueError {
    /// The size is no power of two, 0, or larger than offered (2.7).
    Size,
    /// A ring part is not aligned as 2.7 has it, or its end wraps past 2^64.
    Layout,
    /// A ring part or a descriptor table is not memory.
    Memory,
    /// The available index went back, or ran ahead of what the ring can hold (CVE-2016-5403).
    AvailableIndex,
    /// An available ring entry names no descriptor.
    Head,
    /// A descriptor's `next` lies outside its table.
    Next,
    /// The chain is longer than the queue, or than [`SIZE_MAX`] in an indirect table: a loop.
    TooLong,
    /// A buffer's end wraps past 2^64.
    Wraps,
    /// A device-readable buffer follows a device-writable one (2.7.4.2).
    Order,
    /// An indirect descriptor without the feature (2.7.5.3.1).
    IndirectNotNegotiated,
    /// An indirect descriptor within an indirect table (2.7.5.3.1).
    IndirectNested,
    /// An indirect descriptor that has a `next` (2.7.5.3.1).
    IndirectChained,
    /// An indirect table's length is 0 or no multiple of 16 (2.7.5.3.2).
    IndirectLength,
    /// The chain has no room for a response, so that the device cannot report an error in it.
    Unanswerable,
}

impl QueueError {
    /// The error in words, for the operator.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Size => "its size is 0, no power of two, or larger than offered",
            Self::Layout => "a part of it is not aligned, or wraps",
            Self::Memory => "a part of it, or a descriptor table, is not memory",
            Self::AvailableIndex => "the available index went back, or ran ahead of what the ring holds",
            Self::Head => "an available entry names no descriptor",
            Self::Next => "a descriptor leads out of its table",
            Self::TooLong => "a descriptor chain is longer than its table: a loop",
            Self::Wraps => "a buffer wraps",
            Self::Order => "a buffer for the device to read follows one for it to write",
            Self::IndirectNotNegotiated => "an indirect descriptor, which was not negotiated",
            Self::IndirectNested => "an indirect descriptor within an indirect table",
            Self::IndirectChained => "an indirect descriptor that has a next",
            Self::IndirectLength => "an indirect table whose length is 0 or no multiple of 16",
            Self::Unanswerable => "a chain without room for its answer",
        }
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl core::error::Error for QueueError {}

impl From<MemoryError> for QueueError {
    fn from(MemoryError: MemoryError) -> Self {
        Self::Memory
    }
}

/// A piece of a chain. Never empty, and its end does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Buffer {
    /// First byte.
    pub addr: GuestAddr,
    /// Length in bytes, 1 at least.
    pub len: u32,
    /// Whether the device writes it; it reads it otherwise.
    pub writable: bool,
}

/// Size and addresses of a ring, as the driver wrote them into registers. [`Queue::enable`](super::Queue::enable) checks them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RingSetup {
    /// Entries.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: GuestAddr,
    /// Driver area: the available ring.
    pub driver: GuestAddr,
    /// Device area: the used ring.
    pub device: GuestAddr,
}

/// Position up to which a ring has been processed: free-running indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RingPosition {
    /// The next available entry to be taken.
    pub next_avail: u16,
    /// The next used entry to be written.
    pub next_used: u16,
}

/// The negotiated features that matter to a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RingFeatures {
    /// VIRTIO_F_INDIRECT_DESC (28).
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX (29).
    pub event_idx: bool,
}
