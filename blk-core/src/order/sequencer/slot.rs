//! Slot of a sequencer: a request, and how far its plan is.

use super::noted::Noted;
use crate::op::Op;
use crate::order::plan::Plan;

/// Stage of a slot in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Stage {
    /// Unused.
    Free,
    /// The flush before the operation is in flight.
    PreFlush(Rest),
    /// The operation can be submitted once the owner supplies its segments.
    NeedsSegments(Rest),
    /// The operation is in flight.
    Data {
        /// A flush follows it.
        flush_after: bool,
    },
    /// The operation is done. The storage was too busy for the flush after it, which is tried again.
    PostFlushRetry,
    /// The flush after the operation is in flight.
    PostFlush,
    /// Reported; the owner decides what comes next.
    Ended,
    /// Only under a mutant: to be reported without waiting for the storage.
    AckEarly,
}

impl Stage {
    /// Whether the storage has an operation of the slot.
    pub(super) const fn is_in_flight(self) -> bool {
        matches!(self, Self::PreFlush(_) | Self::Data { .. } | Self::PostFlush)
    }
}

/// What is left of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Rest {
    pub(super) flush_before: bool,
    pub(super) op: Op,
    pub(super) flush_after: bool,
}

impl Rest {
    pub(super) const fn of(plan: &Plan) -> Self {
        Self { flush_before: plan.flush_before, op: plan.op, flush_after: plan.flush_after }
    }

    pub(super) const fn next(self) -> Next {
        if self.flush_before { Next::PreFlush(self) } else { Next::Data(self) }
    }
}

/// What the storage is to be given next.
pub(super) enum Next {
    PreFlush(Rest),
    Data(Rest),
    PostFlush,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Slot<T> {
    pub(super) stage: Stage,
    pub(super) generation: u16,
    pub(super) payload: Option<T>,
    pub(super) noted: Noted,
}

impl<T> Slot<T> {
    pub(super) const FREE: Self =
        Self { stage: Stage::Free, generation: 0, payload: None, noted: Noted::NOTHING };

    /// Makes the slot free, of its payload apart. Nothing is left of what it did: neither a snapshot nor a completion that comes too
    /// late can tell.
    #[inline]
    pub(super) const fn clear(&mut self) {
        self.stage = Stage::Free;
        self.generation = 0;
        self.noted = Noted::NOTHING;
    }
}
