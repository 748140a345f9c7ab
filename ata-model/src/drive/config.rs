//! Configuration of a drive.

use core::fmt;

use blk_core::storage::Info;

/// Configuration of a drive, as its maker or its operator decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DriveConfig {
    /// Serial number, padded with spaces.
    pub serial: [u8; 20],
    /// Firmware revision, padded with spaces.
    pub firmware: [u8; 8],
    /// Model number, padded with spaces.
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    pub model: [u8; 40],
    /// NAA world wide name; `None` to have none.
    pub world_wide_name: Option<u64>,
    /// Whether the write cache is on after power-on and hardware resets, where the storage has one.
    pub write_cache: bool,
}

impl DriveConfig {
    /// A drive of firmware revision "1.0" with a write cache that is on, and without a world wide
    /// name. Text that is too long is cut; what is not printable ASCII becomes a space.
    #[must_use]
    pub const fn new(model: &str, serial: &str) -> Self {
        Self {
            serial: padded(serial),
            firmware: padded("1.0"),
            model: padded(model),
            world_wide_name: None,
            write_cache: true,
        }
    }

    /// Checks that a drive can work on a storage: IDENTIFY DEVICE, PIO and logs go through staging
    /// buffers of a logical block or more. On a storage without them a drive aborts these commands,
    /// and no driver finds it. Fronts do not see their storage before the first access, so that an
    /// embedder asks this when it puts the two together.
    ///
    /// # Errors
    /// [`StagingTooSmall`].
    ///
    /// ```
    /// # use ata_model::DriveConfig;
    /// use blk_core::ram::plain_info;
    /// use blk_core::storage::Cache;
    ///
    /// let info = plain_info(1 << 20, Cache::WriteBack);
    /// assert!(DriveConfig::check_storage(&info).is_err(), "no staging");
    /// ```
    pub const fn check_storage(info: &Info) -> Result<(), StagingTooSmall> {
        let (staging_bytes, needed_bytes) = (info.staging_bytes, info.logical_block_bytes);
        if staging_bytes < needed_bytes {
            return Err(StagingTooSmall { staging_bytes, needed_bytes });
        }
        Ok(())
    }

    /// The same with another firmware revision than "1.0": 8 characters, by the rules of
    /// [`Self::new`].
    #[must_use]
    pub const fn with_firmware(self, revision: &str) -> Self {
        Self { firmware: padded(revision), ..self }
    }
}

/// The staging buffers of a storage are too small for a drive: see [`DriveConfig::check_storage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct StagingTooSmall {
    /// Bytes that each slot has.
    pub staging_bytes: u32,
    /// Bytes that each slot needs: a logical block.
    pub needed_bytes: u32,
}

impl fmt::Display for StagingTooSmall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { staging_bytes, needed_bytes } = self;
        write!(
            f,
            "the drive would abort IDENTIFY DEVICE and PIO: each slot of the storage has {staging_bytes} bytes of \
             staging; give it {needed_bytes} or more"
        )
    }
}

impl core::error::Error for StagingTooSmall {}

const fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut padded = [b' '; N];
    let (mut places, mut bytes) = (padded.as_mut_slice(), text.as_bytes());
    while let (Some((to, more)), Some((from, rest))) = (places.split_first_mut(), bytes.split_first()) {
        if matches!(*from, b' '..=b'~') {
            *to = *from;
        }
        (places, bytes) = (more, rest);
    }
    padded
}
