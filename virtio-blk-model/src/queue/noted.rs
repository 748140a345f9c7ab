//! What the defects of the queue have to know. Without the feature `mutants` it is nothing.

use blk_core::op::{Op, Segment};
use blk_core::storage::Storage;

#[cfg(feature = "mutants")]
use {
    blk_core::mutant::{Mutant, active},
    blk_core::units::Tag,
};

/// What a reset executes once more of a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Noted {
    #[cfg(feature = "mutants")]
    op: Option<(Op, Segment)>,
}

impl Noted {
    pub(super) const NOTHING: Self = Self {
        #[cfg(feature = "mutants")]
        op: None,
    };

    #[inline(always)]
    pub(super) fn of(_op: Op, _segments: &[Segment]) -> Self {
        #[cfg(feature = "mutants")]
        if let &[segment] = _segments {
            return Self { op: Some((_op, segment)) };
        }
        Self::NOTHING
    }
}

/// What the reset that is under way executes once more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Again {
    #[cfg(feature = "mutants")]
    ops: [Option<(Op, Segment)>; 4],
}

impl Again {
    pub(super) const NOTHING: Self = Self {
        #[cfg(feature = "mutants")]
        ops: [None; 4],
    };

    /// A reset begins, with these in flight.
    pub(super) fn note(&mut self, _in_flight: impl Iterator<Item = Noted>) {
        #[cfg(feature = "mutants")]
        if active(Mutant::ResetReexecutes) {
            let ops = _in_flight.filter_map(|noted| noted.op);
            self.ops.iter_mut().zip(ops).for_each(|(place, op)| *place = Some(op));
        }
    }

    /// The reset is over.
    pub(super) fn execute<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, _memory: &M, _storage: &mut S) {
        #[cfg(feature = "mutants")]
        for (op, segment) in core::mem::take(&mut self.ops).into_iter().flatten() {
            let stray = Tag { slot: 0, generation: u16::MAX };
            let _ = _storage.submit(_memory, stray, op, &[segment]);
        }
    }
}
