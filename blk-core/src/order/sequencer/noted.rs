//! What the defects of the sequencer have to know. Without the feature `mutants` it is nothing.

use crate::op::Op;

/// What mutants have to know of a slot: its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Noted {
    #[cfg(feature = "mutants")]
    pub(super) op: Option<Op>,
}

impl Noted {
    pub(super) const NOTHING: Self = Self {
        #[cfg(feature = "mutants")]
        op: None,
    };
}

/// What mutants have to know of a sequencer: whether anything was changed since the last flush, as QEMU once counted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Defects {
    #[cfg(feature = "mutants")]
    pub(super) dirty: bool,
}

impl Defects {
    pub(super) const NONE: Self = Self {
        #[cfg(feature = "mutants")]
        dirty: false,
    };

    /// A request of one operation was done at once.
    #[inline(always)]
    pub(super) fn done(&mut self, _op: Op) {
        #[cfg(feature = "mutants")]
        {
            self.dirty |= _op.mutates();
        }
    }

    /// A slot is released.
    #[inline(always)]
    pub(super) fn released(&mut self, _noted: Noted) {
        #[cfg(feature = "mutants")]
        {
            self.dirty |= _noted.op.is_some_and(|op| op.mutates());
        }
    }
}
