//! Set of tags, as bits of a word.

/// The tags of a set, each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Tags {
    /// Those that are left, from `first` on.
    left: u32,
    first: u8,
}

impl Tags {
    /// The tags of `bits`, lowest first.
    #[must_use]
    pub const fn new(bits: u32) -> Self {
        Self::from(0, bits)
    }

    /// The tags of `bits` from `first` on, then those below it.
    #[must_use]
    pub const fn from(first: u8, bits: u32) -> Self {
        Self { left: bits.rotate_right(first as u32), first }
    }
}

impl Iterator for Tags {
    type Item = u8;

    #[inline]
    fn next(&mut self) -> Option<u8> {
        let n = self.left.trailing_zeros();
        self.left &= self.left.checked_sub(1)?;
        Some(self.first.wrapping_add(n as u8) & 31)
    }
}

/// The bit of a tag below 32.
pub(super) const fn bit(tag: u8) -> u32 {
    1_u32.wrapping_shl(tag as u32)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn tags_come_from_the_first_on_and_go_round() {
        let bits = bit(0) | bit(3) | bit(7) | bit(31);
        assert_eq!(Tags::new(bits).collect::<Vec<_>>(), [0, 3, 7, 31]);
        assert_eq!(Tags::from(7, bits).collect::<Vec<_>>(), [7, 31, 0, 3]);
        assert_eq!(Tags::from(8, bits).collect::<Vec<_>>(), [31, 0, 3, 7]);
        assert_eq!(Tags::from(5, 0).next(), None);
        assert_eq!(Tags::from(9, u32::MAX).count(), 32);
    }
}
