//! Arguments that come in with a call, and the reasons why a command does not run on them.

use crate::sense::Sense;
use crate::transport::DataError;

/// What comes in with a call.
pub(super) struct Io<'a, M: ?Sized, S: ?Sized, T: ?Sized> {
    pub(super) memory: &'a M,
    pub(super) storage: &'a mut S,
    pub(super) transport: &'a mut T,
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
