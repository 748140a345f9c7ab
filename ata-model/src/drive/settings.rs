//! Settings that a guest can change in a drive: SET FEATURES, SET MULTIPLE MODE, the CHS translation.

use crate::command::Geometry;

/// The transfer mode that SET FEATURES 03h selected. A model transfers at the same speed in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TransferMode {
    /// PIO only.
    Pio,
    /// Multiword DMA mode 0 to 2.
    Multiword(u8),
    /// Ultra DMA mode 0 to 5.
    Ultra(u8),
}

impl TransferMode {
    /// The fastest Ultra DMA mode.
    pub const ULTRA_MAX: u8 = 5;
    /// The fastest multiword DMA mode.
    pub const MULTIWORD_MAX: u8 = 2;

    /// Decodes the Count register of SET FEATURES 03h (ATA/ATAPI-7 volume 1; Linux `XFER_*`).
    #[must_use]
    pub const fn decode(count: u8) -> Option<Self> {
        match (count >> 3, count & 7) {
            (0, 0 | 1) | (1, 0..=4) => Some(Self::Pio),
            (4, mode @ 0..=Self::MULTIWORD_MAX) => Some(Self::Multiword(mode)),
            (8, mode @ 0..=Self::ULTRA_MAX) => Some(Self::Ultra(mode)),
            _ => None,
        }
    }
}

/// The settings that power-on and a hardware reset give their defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Settings {
    /// SET FEATURES 02h and 82h. Counts only where the storage has a volatile cache.
    pub write_cache: bool,
    /// SET FEATURES AAh and 55h.
    pub look_ahead: bool,
    /// SET FEATURES CCh and 66h: whether a software reset restores the defaults.
    pub revert_on_reset: bool,
    /// SET FEATURES 10h and 90h, 06h: whether a COMRESET keeps the settings (Serial ATA, software settings preservation).
    pub preserve_settings: bool,
    /// SET FEATURES 03h.
    pub transfer: TransferMode,
    /// SET MULTIPLE MODE: blocks per DRQ, or 0.
    pub multiple: u8,
    /// INITIALIZE DEVICE PARAMETERS.
    pub geometry: Geometry,
}

impl Settings {
    /// The defaults of a drive whose write cache is on or off at power-on.
    ///
    /// A software reset keeps the settings unless the guest asks otherwise (CCh): so drives have it, among them Maxtor's
    /// and Fujitsu's (66h marked as the default in their SET FEATURES tables), and a guest that turned its cache off
    /// and then resets a stuck drive does not look again.
    #[must_use]
    pub const fn power_on(write_cache: bool) -> Self {
        Self {
            write_cache,
            look_ahead: true,
            revert_on_reset: false,
            preserve_settings: true,
            transfer: TransferMode::Ultra(TransferMode::ULTRA_MAX),
            multiple: 0,
            geometry: Geometry::DEFAULT,
        }
    }
}
