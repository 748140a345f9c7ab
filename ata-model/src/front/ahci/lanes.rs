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
pub(super) const fn lanes(offset: u64, width: Width) -> Lanes {
    Lanes { at: offset, bytes: width.bytes() }
}

/// What is left of an access.
pub(super) struct Lanes {
    at: u64,
    bytes: u8,
}

impl Iterator for Lanes {
    type Item = Lane;

    fn next(&mut self) -> Option<Lane> {
        let skipped = (self.at & 3) as u8;
        let bytes = 4_u8.wrapping_sub(skipped).min(self.bytes);
        let lane = (bytes != 0).then_some(Lane {
            register: self.at & !3,
            shift: u32::from(skipped).wrapping_mul(8),
            bits: u32::from(bytes).wrapping_mul(8),
        });
        self.at = self.at.wrapping_add(bytes.into());
        self.bytes = self.bytes.wrapping_sub(bytes);
        lane
    }
}
