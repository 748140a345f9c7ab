//! Power states.

/// Power states (ATA/ATAPI-7 volume 1, Power Management feature set).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Power {
    /// Active.
    #[default]
    Active,
    /// Idle, which CHECK POWER MODE does not tell from Active.
    Idle,
    /// Standby: everything acknowledged is stable.
    Standby,
    /// Sleep: as Standby, and only a reset ends it.
    Sleep,
}
