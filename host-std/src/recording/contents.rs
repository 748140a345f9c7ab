//! Checksums of an image's contents.

use xxhash_rust::xxh3::Xxh3;

/// The contents of an image, summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Zeroes from the first to the last byte.
    Zeroes,
    /// Something else.
    Data {
        /// Its XXH3-128.
        hash: u128,
    },
}

/// Sums up contents that come piece by piece.
#[derive(Default)]
pub(crate) struct Summary {
    hash: Xxh3,
    data: bool,
}

impl Summary {
    pub(crate) fn add(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.data |= !is_zero(piece);
    }

    pub(crate) fn contents(&self) -> Contents {
        if self.data { Contents::Data { hash: self.hash.digest128() } } else { Contents::Zeroes }
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && tail.iter().all(|&byte| byte == 0)
}
