//! Contents of a disk: the words of a sector are all the same number, which names the write it came from.

use blk_core::units::{Extent, SECTOR_BYTES};

const SECTOR: usize = SECTOR_BYTES as usize;

/// The contents of a sector that is not one number throughout: torn, or never written by [`stamp`].
pub const MIXED: u64 = u64::MAX;

/// The bytes of a sector that holds `value`.
pub fn stamp(value: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// The bytes of a run of sectors that hold `value`.
pub fn stamps(extent: Extent, value: u64) -> Vec<u8> {
    stamp(value).repeat(usize::try_from(extent.sectors).expect("small"))
}

/// A run on a disk of `sectors`, from the low bits of `at` on, of at most `longest` sectors by its bits from `shift` on.
pub fn extent(at: u8, shift: u8, longest: u64, sectors: u64) -> Extent {
    let start = u64::from(at) % sectors;
    Extent::new(start, (1 + u64::from(at >> shift) % longest).min(sectors - start))
}

/// The value of a sector's bytes, or [`MIXED`].
pub fn value(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().expect("8 bytes")));
    let first = words.next().unwrap_or(MIXED);
    if words.all(|word| word == first) { first } else { MIXED }
}
