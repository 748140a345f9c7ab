//! Command blocks as they are given.

use zerocopy::FromBytes;

/// A command descriptor block as the guest gave it: its first 16 bytes, and how many were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Cdb {
    bytes: [u8; 16],
    pub(super) given_bytes: u8,
}

impl Cdb {
    /// Copies a command block. Transports give blocks of a fixed size (virtio-scsi: 32 bytes): what lies beyond the length
    /// of the command is not looked at, and commands longer than 16 bytes are not supported.
    #[must_use]
    pub fn new(given: &[u8]) -> Self {
        let mut bytes = [0; 16];
        for (place, byte) in bytes.iter_mut().zip(given) {
            *place = *byte;
        }
        Self { bytes, given_bytes: u8::try_from(given.len()).unwrap_or(u8::MAX) }
    }

    /// A block of 16 bytes.
    #[inline]
    pub(crate) const fn whole(bytes: [u8; 16]) -> Self {
        Self { bytes, given_bytes: 16 }
    }

    /// OPERATION CODE; 0 for an empty block, which [`decode`](super::decode) refuses.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.byte(0)
    }

    /// SERVICE ACTION, where the command has one: SPC-4, service action, bits 4:0 of byte 1.
    #[must_use]
    pub fn service_action(&self) -> u16 {
        u16::from(self.byte(1) & 0x1f)
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// The block as a number: byte 0 is the highest.
    pub(super) const fn bits(&self) -> u128 {
        u128::from_be_bytes(self.bytes)
    }

    /// The block as layout `T`, which is at most 16 bytes long.
    pub(crate) fn view<T: FromBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= 16, "a layout of a command block") };
        T::read_from_prefix(&self.bytes).map_or_else(|_| T::new_zeroed(), |(layout, _)| layout)
    }
}

/// The length that an operation code's group implies: SPC-4, operation code. `None` for reserved and vendor-specific groups
/// and for the variable-length format (7Fh).
#[must_use]
pub const fn group_bytes(opcode: u8) -> Option<usize> {
    match opcode >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}
