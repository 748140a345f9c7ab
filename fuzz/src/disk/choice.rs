//! What the fuzzer chooses of a disk: what it is, and what happens to it.

use blk_core::storage::{Cache, Info};
use blk_core::units::SECTOR_BYTES;

use crate::{choices, record};

/// Bytes of a handle's staging buffers: enough for a DRQ block of 256 sectors.
pub(super) const STAGING_BYTES: usize = 1 << 17;
/// How an operation ends that succeeds: see [`Event::Complete`].
pub(super) const SUCCEEDS: u8 = 2;
/// See [`Event::AtOnce`].
pub(super) const BUSY_AFTER: u8 = 1 << 6;

record! {
    /// What the disk is.
    pub struct Kind {
        /// Cache, modulo the three there are.
        pub cache: u8,
        /// Native FUA, range operations stable, discard, read-only (one in eight); bit 6: rotational; bit 7: everything is done
        /// at once, until [`Event::AtOnce`] says otherwise.
        pub flags: u8,
    }
}

impl Kind {
    /// A disk with a write cache.
    pub const WRITE_BACK: Self = Self { cache: 1, flags: 0b100 };
    /// The same, and everything is done at once.
    pub const AT_ONCE: Self = Self { cache: 1, flags: 0b1000_0100 };

    /// As the byte `which` of [`Event::AtOnce`].
    pub(super) const fn at_once(self) -> u8 {
        if self.flags & 0x80 == 0 { 0 } else { 0xff }
    }

    pub(super) fn info(self, sectors: u64) -> Info {
        let flag = |bit: u8| self.flags >> bit & 1 != 0;
        let cache = [Cache::WriteThrough, Cache::WriteBack, Cache::Unsafe][usize::from(self.cache % 3)];
        Info {
            sectors,
            logical_block_bytes: SECTOR_BYTES,
            physical_block_bytes: SECTOR_BYTES,
            optimal_io_bytes: 0,
            read_only: self.flags >> 3 & 7 == 7,
            rotational: flag(6),
            cache,
            fua: flag(0),
            range_stable: flag(1),
            discard: flag(2),
            staging_bytes: STAGING_BYTES as u32,
            segments_max: 126,
            transfer_max_bytes: 1 << 20,
            holds: true,
            state_bytes: 0,
        }
    }
}

choices! {
    /// What happens to the disk by itself.
    pub enum Event {
        /// An operation in flight ends.
        Complete {
            /// Which, modulo how many there are.
            which: u8,
            /// How it ends. Of sixteen, 0 fails without an effect, 1 fails although it had one, and the rest succeed, as far as they
            /// can. Bit 7: a discard leaves zeroes.
            how: u8,
        },
        /// From now on it is busy, or not.
        Busy {
            /// Whether it is.
            on: bool,
        },
        /// From now on operations end by themselves, in order, as they are polled for; or only as told.
        Prompt {
            /// Whether they do.
            on: bool,
        },
        /// From now on some operations are done at once.
        AtOnce {
            /// Bit n: the n-th from now on, modulo 8.
            which: u8,
            /// How the first of these ends, as for `Complete`; later ones succeed. Bit 6: after it the disk is busy.
            how: u8,
        },
    }
}
