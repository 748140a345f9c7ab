//! The transport's state that a controller needs.

use super::wire::Features;

/// The transport's state that a controller needs to take requests. It comes in with each poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Policy {
    /// The negotiated features.
    #[cfg_attr(feature = "defmt", defmt(Debug2Format))]
    pub features: Features,
    /// Bit n: chains may be taken off ring n. What was taken goes on being worked on and is answered in any case: a
    /// ring that is to stop is closed, and polled until [`Controller::in_flight`](super::Controller::in_flight) is 0.
    pub open: u64,
}

impl Policy {
    /// Every ring is open.
    #[must_use]
    pub const fn open(features: Features) -> Self {
        Self { features, open: u64::MAX }
    }

    pub(super) fn is_open(&self, ring: usize) -> bool {
        u32::try_from(ring)
            .ok()
            .and_then(|ring| self.open.checked_shr(ring))
            .is_some_and(|bits| bits & 1 != 0)
    }
}
