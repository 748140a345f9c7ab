//! Accesses of registers of 32 bits by any width, anywhere.

use blk_core::bus::Width;

/// The part of an access that falls into one register.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// Where the register is.
    pub(super) register: u64,
    /// The first bit of it.
    pub(super) shift: u32,
    /// How many.
    pub(super) bits: u32,
}

impl Lane {
    pub(super) const fn ones(self) -> u32 {
        match 32_u32.checked_sub(self.bits) {
            Some(rest) if rest < 32 => u32::MAX >> rest,
            _ => 0,
        }
    }
}

/// The registers that an access touches, lowest first; at an offset that is no multiple of 4 that may be one more.
pub(super) fn lanes(offset: u64, width: Width) -> impl DoubleEndedIterator<Item = Lane> {
    let end = offset.saturating_add(u64::from(width.bytes()));
    let first = offset & !3;
    (0..3_u64).filter_map(move |n| {
        let register = first.checked_add(n.wrapping_mul(4))?;
        let from = offset.max(register);
        let to = end.min(register.saturating_add(4));
        let bytes = u32::try_from(to.checked_sub(from).filter(|&bytes| bytes > 0)?).ok()?;
        let skipped = u32::try_from(from.checked_sub(register)?).ok()?;
        Some(Lane { register, shift: skipped.saturating_mul(8), bits: bytes.saturating_mul(8) })
    })
}
