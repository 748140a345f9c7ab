//! What becomes of a request: refused, in flight, ended.

use core::fmt;

use crate::storage::{Busy, IoError};

/// Why a request was not taken. Its owner keeps it and offers it again after the next completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Deferred {
    /// The storage is busy.
    Busy,
    /// Every slot is in use.
    Full,
    /// A barrier runs, or this is one and older requests are in flight.
    Barrier,
    /// A reset waits for what was submitted.
    Resetting,
}

impl fmt::Display for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the storage is busy",
            Self::Full => "every slot is in use",
            Self::Barrier => "a barrier is in flight, or the request is one and older requests are in flight",
            Self::Resetting => "a reset waits for what was submitted",
        })
    }
}

impl core::error::Error for Deferred {}

impl From<Busy> for Deferred {
    fn from(Busy: Busy) -> Self {
        Self::Busy
    }
}

/// A request has ended. Its slot and payload stay until [`release`](super::Sequencer::release) or
/// [`advance`](super::Sequencer::advance).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Done {
    /// The slot.
    pub slot: u16,
    /// How the last of its operations ended.
    pub result: Result<(), IoError>,
}

/// Where a request stands once the storage has been given what can be given now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Started {
    /// It goes on in this slot: [`poll`](super::Sequencer::poll) or
    /// [`needs_segments`](super::Sequencer::needs_segments) names it.
    InFlight(u16),
    /// The storage did all of it at once. It is as if [`Sequencer::poll`](super::Sequencer::poll) had reported it.
    Ended(Done),
}

impl Started {
    /// The request's slot.
    #[must_use]
    #[inline]
    pub const fn slot(self) -> u16 {
        match self {
            Self::InFlight(slot) | Self::Ended(Done { slot, .. }) => slot,
        }
    }

    /// The end of the request, if it has ended.
    #[must_use]
    pub const fn done(self) -> Option<Done> {
        match self {
            Self::Ended(done) => Some(done),
            Self::InFlight(_) => None,
        }
    }
}
