//! Arguments that come in with a call, and the reasons why a command does not run on them.

use crate::sense::Sense;
use crate::transport::{DataError, Guest};

/// What comes in with a call.
pub(super) struct Io<'a, M: ?Sized, S: ?Sized, T: ?Sized> {
    pub(super) guest: Guest<'a, M, T>,
    pub(super) storage: &'a mut S,
}

/// Why a command does not run.
pub(super) enum Refusal {
    Check(Sense),
    Overrun,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl From<DataError> for Refusal {
    fn from(DataError: DataError) -> Self {
        Self::Check(Sense::DATA_PHASE)
    }
}
