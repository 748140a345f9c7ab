//! The two sizes that a driver may set in configuration space: VIRTIO 1.3, 5.6.4.

use super::wire::{ConfigSpace, RequestHead, ResponseHead};

/// Most bytes of sense data that there can be: SPC-4, sense data.
pub(super) const SENSE_BYTES_MAX: usize = 252;
/// The longest command block that there can be: SPC-4, variable length CDB formats.
const CDB_BYTES_MAX: u16 = 260;

/// Sizes of the parts of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Sizes {
    pub(super) sense_bytes: u16,
    pub(super) cdb_bytes: u16,
}

impl Sizes {
    /// After a reset: 5.6.4.2.
    pub(super) const DEFAULT: Self = Self { sense_bytes: 96, cdb_bytes: 32 };

    /// With what a driver wrote; a size that nothing can have is not taken.
    pub(super) fn with(self, space: &ConfigSpace) -> Self {
        let size = |value: u32, max: usize, old: u16| {
            u16::try_from(value).ok().filter(|value| usize::from(*value) <= max).unwrap_or(old)
        };
        Self {
            sense_bytes: size(space.sense_size.get(), SENSE_BYTES_MAX, self.sense_bytes),
            cdb_bytes: size(space.cdb_size.get(), CDB_BYTES_MAX.into(), self.cdb_bytes),
        }
    }

    /// Readable bytes before the data.
    pub(super) const fn request_bytes(self) -> u64 {
        (size_of::<RequestHead>() as u64).wrapping_add(self.cdb_bytes as u64)
    }

    /// Writable bytes before the data.
    pub(super) const fn response_bytes(self) -> u64 {
        self.response_len() as u64
    }

    /// The same, of a buffer here.
    pub(super) const fn response_len(self) -> usize {
        size_of::<ResponseHead>().wrapping_add(self.sense_bytes as usize)
    }
}
