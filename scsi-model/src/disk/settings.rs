//! The mode parameters of a unit.

use crate::config::Config;

/// The mode parameters that can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Settings {
    /// WCE.
    pub(super) write_cache: bool,
    /// D_SENSE: sense data is in descriptor format.
    pub(super) descriptor_sense: bool,
}

impl Settings {
    /// After a reset. There is a write cache exactly where the storage has a volatile one.
    pub(super) const fn defaults(config: &Config, volatile: bool) -> Self {
        Self { write_cache: volatile && config.write_cache, descriptor_sense: false }
    }

    /// Every bit that can be changed.
    pub(super) const fn changeable(volatile: bool) -> Self {
        Self { write_cache: volatile, descriptor_sense: true }
    }
}
