//! The translation of cylinders, heads and sectors.

/// The CHS translation in force (ATA/ATAPI-5, INITIALIZE DEVICE PARAMETERS).
///
/// Neither number is zero, so nothing is ever divided by one (CVE-2015-6855).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Geometry {
    heads: u8,
    sectors_per_track: u8,
}

impl Geometry {
    /// The translation of every drive after power-on: 16 heads, 63 sectors per track.
    pub const DEFAULT: Self = Self { heads: 16, sectors_per_track: 63 };

    /// `heads` is 1 to 16, `sectors_per_track` 1 to 255; `None` for anything else.
    #[must_use]
    pub const fn new(heads: u8, sectors_per_track: u8) -> Option<Self> {
        if heads == 0 || heads > 16 || sectors_per_track == 0 {
            return None;
        }
        Some(Self { heads, sectors_per_track })
    }

    /// Heads: 1 to 16.
    #[must_use]
    pub const fn heads(self) -> u8 {
        self.heads
    }

    /// Sectors per track: 1 to 255.
    #[must_use]
    pub const fn sectors_per_track(self) -> u8 {
        self.sectors_per_track
    }

    /// Cylinders of a disk of `blocks` logical blocks: 65,535 at most, as words 1 and 54 are 16 bits.
    #[must_use]
    pub fn cylinders(self, blocks: u64) -> u16 {
        let per_cylinder = u64::from(self.heads).saturating_mul(u64::from(self.sectors_per_track));
        u16::try_from(blocks.checked_div(per_cylinder).unwrap_or(0)).unwrap_or(u16::MAX)
    }

    /// The block at a CHS address, or `None` if there is no such head or sector.
    #[must_use]
    pub fn block(self, cylinder: u16, head: u8, sector: u8) -> Option<u64> {
        if head >= self.heads || sector == 0 || sector > self.sectors_per_track {
            return None;
        }
        let track = u64::from(cylinder).checked_mul(u64::from(self.heads))?.checked_add(u64::from(head))?;
        track.checked_mul(u64::from(self.sectors_per_track))?.checked_add(u64::from(sector).checked_sub(1)?)
    }
}
