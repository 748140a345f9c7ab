//! What a server that comes back has to know beside the requests in flight: what the guest believes about the write cache, and
//! whether an image has latched. It is kept in the trailer of the in-flight region, one word for each image.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::inflight::Region;
use crate::backend::{Backend, Durable, LatchCause};

/// What a word says of an image. It is stored as a whole: bits 0-1 cache, 2-3 latch, 4-15 errno, 40-63 a checksum of the
/// others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Word {
    /// Whether the guest believes in a volatile write cache; `None`: unknown, which means write-through.
    pub(super) write_back: Option<bool>,
    /// Why the image has latched.
    pub(super) latch: Option<(Durable, Option<Errno>)>,
}

const CHECKED_BITS: u32 = 40;

impl Word {
    fn encode(self) -> u64 {
        let cache = match self.write_back {
            None => 0,
            Some(false) => 1,
            Some(true) => 2,
        };
        let latch = match self.latch {
            None => 0,
            Some((what, errno)) => {
                let what = match what {
                    Durable::Flush => 1,
                    Durable::Write => 2,
                };
                what | (errno.map_or(0, |errno| errno.raw_os_error() as u64) & 0xfff) << 2
            }
        };
        let payload = cache | latch << 2;
        payload | checksum(payload) << CHECKED_BITS
    }

    /// `None` if the checksum does not fit, or a field has no meaning: then nothing is known.
    fn decode(word: u64) -> Option<Self> {
        let payload = word & ((1 << CHECKED_BITS) - 1);
        if checksum(payload) != word >> CHECKED_BITS {
            return None;
        }
        let write_back = match payload & 3 {
            0 => None,
            1 => Some(false),
            2 => Some(true),
            _ => return None,
        };
        let errno = match payload >> 4 & 0xfff {
            0 => None,
            errno => Some(Errno::from_raw_os_error(errno as i32)),
        };
        let latch = match payload >> 2 & 3 {
            0 => None,
            1 => Some((Durable::Flush, errno)),
            2 => Some((Durable::Write, errno)),
            _ => return None,
        };
        Some(Self { write_back, latch })
    }
}

/// 24 bits of CRC-32C. The checksum of no payload is not 0: a trailer of zeroes says nothing.
fn checksum(payload: u64) -> u64 {
    u64::from(crc32c::crc32c(&payload.to_le_bytes()) >> 8)
}

/// The trailer of a client's region.
pub(super) struct Trailer {
    region: Region,
    images: Vec<Arc<dyn Backend>>,
    /// What the guest believes about each image's cache.
    write_back: Mutex<Vec<Option<bool>>>,
}

impl Trailer {
    /// The trailer of `region`, and what it said: for each image what the guest believes about its cache. An image that had
    /// latched is latched again.
    pub(super) fn open(region: Region, images: Vec<Arc<dyn Backend>>) -> Self {
        let words = (0..images.len() as u32).map(|index| {
            let word = region.word(index)?.load(Ordering::Acquire);
            Word::decode(u64::from_le(word))
        });
        let mut write_back = Vec::with_capacity(images.len());
        for (word, image) in words.zip(&images) {
            let Word { write_back: believed, latch } = word.unwrap_or_default();
            if let Some((what, errno)) = latch
                && image.latched().is_none()
            {
                image.latch(LatchCause { what, errno, lba: None });
            }
            write_back.push(believed);
        }
        Self { region, images, write_back: Mutex::new(write_back) }
    }

    /// What the guest believes about an image's cache.
    pub(super) fn believed(&self, image: usize) -> Option<bool> {
        let believed = self.write_back.lock().unwrap_or_else(PoisonError::into_inner);
        believed.get(image).copied().flatten()
    }

    /// What the guest believes about an image's cache from now on.
    pub(super) fn believes(&self, image: usize, write_back: Option<bool>) {
        let mut believed = self.write_back.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = believed.get_mut(image) {
            *slot = write_back;
        }
        self.store(&believed);
    }

    /// An operation has failed: keeps the latch, if there is one now, before the guest hears of the failure.
    pub(super) fn keep_latches(&self) {
        self.store(&self.write_back.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The lock on `believed` keeps stores in order.
    fn store(&self, believed: &[Option<bool>]) {
        for (index, (&write_back, image)) in believed.iter().zip(&self.images).enumerate() {
            let latch = image.latched().map(|cause| (cause.what, cause.errno));
            if let Some(word) = self.region.word(index as u32) {
                word.store(Word { write_back, latch }.encode().to_le(), Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_survives_and_a_damaged_one_says_nothing() {
        for write_back in [None, Some(false), Some(true)] {
            let latches = [None, Some((Durable::Flush, Some(Errno::IO))), Some((Durable::Write, None))];
            for latch in latches {
                let word = Word { write_back, latch };
                assert_eq!(Word::decode(word.encode()), Some(word));
                for bit in 0..64 {
                    assert_eq!(Word::decode(word.encode() ^ 1 << bit), None, "{word:?}, bit {bit}");
                }
            }
        }
        assert_eq!(Word::decode(0), None);
    }
}
