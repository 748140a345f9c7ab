//! Which operations the disk does at once, and which it has in flight.

use std::vec::Vec;

use crate::op::Op;

/// End of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It succeeds, unless the latch or a wrong range fails it.
    Succeeds,
    /// The host reports an error.
    Fails,
}

/// Which of the operations that are submitted during one event are done at once: the others are in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AtOnce {
    /// Bit n: the n-th of them.
    pub mask: u8,
    /// The last of those fails.
    pub fails: bool,
}

impl AtOnce {
    /// None of them.
    pub const NONE: Self = Self { mask: 0, fails: false };

    /// Most operations of one event of which it is chosen: an operation, and the flush after it.
    pub const MAX: u8 = 2;

    /// The choices that are as this one up to its last bit, and do one more of `asked` operations at once.
    pub fn longer(self, asked: u8, may_fail: bool) -> impl Iterator<Item = Self> {
        let first = if self.fails { Self::MAX } else { (8 - self.mask.leading_zeros()) as u8 };
        let each = (first..asked.min(Self::MAX)).map(move |nth| self.mask | 1 << nth);
        let fates = if may_fail { &[false, true][..] } else { &[false] };
        each.flat_map(move |mask| fates.iter().map(move |&fails| Self { mask, fails }))
    }
}

/// An operation that was done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoneAtOnce {
    /// The handle.
    pub handle: usize,
    /// What.
    pub op: Op,
    /// Whether it succeeded.
    pub ok: bool,
}

/// The choices of one event, and what came of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    at_once: AtOnce,
    /// Operations submitted so far.
    pub asked: u8,
    /// An operation that could not fail was to fail, or one that waits was to be done: the choice is none.
    pub void: bool,
    /// What was done.
    pub done: Vec<DoneAtOnce>,
}

impl Choices {
    pub(super) fn new(at_once: AtOnce) -> Self {
        Self { at_once, ..Self::default() }
    }

    /// Chooses for the next operation. `None`: it is in flight.
    pub(super) fn next(&mut self, can_fail: bool, waits: bool) -> Option<Fate> {
        let bit = 1_u8.checked_shl(self.asked.into()).unwrap_or(0);
        self.asked = self.asked.saturating_add(1);
        if self.at_once.mask & bit == 0 {
            return None;
        }
        if waits {
            self.void = true;
            return None;
        }
        let last = self.at_once.mask < bit << 1;
        let fails = last && self.at_once.fails;
        self.void |= fails && !can_fail;
        Some(if fails && can_fail { Fate::Fails } else { Fate::Succeeds })
    }
}
