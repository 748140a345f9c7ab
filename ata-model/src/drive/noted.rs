//! What the defects of a drive have to know. Without the feature `mutants` it is nothing.

use blk_core::op::Segment;
use blk_core::units::Extent;

use crate::command::Direction;

/// What a reset executes once more: the write in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Noted {
    #[cfg(feature = "mutants")]
    write: Option<(Extent, Segment)>,
}

impl Noted {
    pub(super) const NOTHING: Self = Self {
        #[cfg(feature = "mutants")]
        write: None,
    };

    /// An operation was submitted.
    #[inline(always)]
    pub(super) fn submitted(&mut self, _direction: Direction, _extent: Extent, _segments: &[Segment]) {
        #[cfg(feature = "mutants")]
        if _direction == Direction::Write {
            self.write = _segments.first().map(|&segment| (_extent, segment));
        }
    }

    /// It has ended.
    #[inline(always)]
    pub(super) const fn ended(&mut self) {
        *self = Self::NOTHING;
    }

    /// The write, if a reset is to execute it again.
    #[inline(always)]
    pub(super) fn again(&mut self) -> Option<(Extent, Segment)> {
        #[cfg(feature = "mutants")]
        if blk_core::mutant::active(blk_core::mutant::Mutant::ResetReexecutes) {
            return self.write.take();
        }
        None
    }
}
