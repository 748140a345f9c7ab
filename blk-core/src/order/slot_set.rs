//! Set of slots.

/// A set of the slots below `N`, which is 1 to 128. Up to 64 it costs what one word costs: the compiler leaves the other out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct SlotSet<const N: usize> {
    low: u64,
    high: u64,
}

impl<const N: usize> SlotSet<N> {
    pub(super) const EMPTY: Self = Self { low: 0, high: 0 };

    const ALL: Self = {
        assert!(N > 0 && N <= 128, "a sequencer has 1 to 128 slots");
        Self {
            low: if N >= 64 { u64::MAX } else { (1 << N) - 1 },
            high: if N > 64 { u64::MAX >> (128 - N) } else { 0 },
        }
    };

    const WIDE: bool = N > 64;

    #[inline(always)]
    pub(super) const fn is_empty(self) -> bool {
        self.low == 0 && (!Self::WIDE || self.high == 0)
    }

    #[inline(always)]
    pub(super) const fn is_full(self) -> bool {
        self.low == Self::ALL.low && (!Self::WIDE || self.high == Self::ALL.high)
    }

    pub(super) const fn len(self) -> u32 {
        self.low.count_ones().wrapping_add(self.high.count_ones())
    }

    #[inline(always)]
    pub(super) const fn insert(&mut self, slot: u16) {
        if Self::WIDE && slot >= 64 {
            self.high |= bit(slot);
        } else {
            self.low |= bit(slot);
        }
    }

    #[inline(always)]
    pub(super) const fn remove(&mut self, slot: u16) {
        if Self::WIDE && slot >= 64 {
            self.high &= !bit(slot);
        } else {
            self.low &= !bit(slot);
        }
    }

    #[inline(always)]
    pub(super) const fn lowest(self) -> Option<u16> {
        if self.low != 0 {
            Some(self.low.trailing_zeros() as u16)
        } else if Self::WIDE && self.high != 0 {
            Some((self.high.trailing_zeros() as u16).wrapping_add(64))
        } else {
            None
        }
    }

    /// The lowest slot that is not in the set.
    #[inline(always)]
    pub(super) const fn lowest_absent(self) -> Option<u16> {
        Self { low: !self.low & Self::ALL.low, high: !self.high & Self::ALL.high }.lowest()
    }
}

/// The bit within its word.
const fn bit(slot: u16) -> u64 {
    1_u64.wrapping_shl(slot as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fills<const N: usize>() {
        let mut set = SlotSet::<N>::EMPTY;
        for slot in 0..N as u16 {
            assert_eq!((set.lowest_absent(), set.len(), set.is_full()), (Some(slot), slot.into(), false));
            set.insert(slot);
        }
        assert_eq!((set.lowest_absent(), set.is_full()), (None, true));
        for slot in 0..N as u16 {
            assert_eq!(set.lowest(), Some(slot));
            set.remove(slot);
        }
        assert!(set.is_empty() && set.lowest().is_none());
    }

    #[test]
    fn a_set_has_as_many_slots_as_it_says() {
        fills::<1>();
        fills::<63>();
        fills::<64>();
        fills::<65>();
        fills::<128>();
    }
}
