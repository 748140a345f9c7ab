//! What a drive is.

use serde::{Deserialize, Serialize};
use serde_big_array::BigArray;

/// What a drive is, as its maker or its operator decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DriveConfig {
    /// Serial number, padded with spaces.
    pub serial: [u8; 20],
    /// Firmware revision, padded with spaces.
    pub firmware: [u8; 8],
    /// Model number, padded with spaces.
    #[serde(with = "BigArray")]
    pub model: [u8; 40],
    /// NAA world wide name; `None` to have none.
    pub world_wide_name: Option<u64>,
    /// Whether the write cache is on after power-on and hardware resets, where the storage has one.
    pub write_cache: bool,
}

impl DriveConfig {
    /// A drive with a write cache that is on, and without a world wide name. Text that is too long is cut; what is not
    /// printable ASCII becomes a space.
    #[must_use]
    pub fn new(model: &str, serial: &str) -> Self {
        Self {
            serial: padded(serial),
            firmware: padded("1.0"),
            model: padded(model),
            world_wide_name: None,
            write_cache: true,
        }
    }
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut padded = [b' '; N];
    for (to, from) in padded.iter_mut().zip(text.bytes()) {
        if matches!(from, b' '..=b'~') {
            *to = from;
        }
    }
    padded
}
