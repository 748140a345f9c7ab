//! Device state that outlives the server: cache settings and latches.
//!
//! The in-flight region of vhost-user keeps requests only; a successor also needs these. They are in the region's trailer, one
//! word for each unit.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::inflight::Region;
use crate::backend::{Durable, LatchCause};
use crate::mutex::lock;
use crate::server::images::Images;

/// What a word says of a unit. It is stored as a whole: bit 0 whether there is a setting, 1-3 the setting, 4-5 latch, 6-17
/// errno, 18-39 the unit's key, 40-63 a checksum of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Word {
    key: u32,
    /// What the guest has set, in three bits of the device's; `None`: unknown.
    setting: Option<u8>,
    /// Why the image has latched.
    latch: Option<(Durable, Option<Errno>)>,
}

const CHECKED_BITS: u32 = 40;
const KEY_BITS: u32 = 22;

impl Word {
    fn encode(self) -> u64 {
        let setting = self.setting.map_or(0, |setting| 1 | u64::from(setting & 7) << 1);
        let latch = match self.latch {
            None => 0,
            Some((what, errno)) => {
                let what = match what {
                    Durable::Flush => 1,
                    // Two bits are what there is: a record is a write, to a file beside the image.
                    Durable::Write | Durable::Record => 2,
                    Durable::Truncated => 3,
                };
                what | (errno.map_or(0, |errno| errno.raw_os_error() as u64) & 0xfff) << 2
            }
        };
        let payload = setting | latch << 4 | u64::from(self.key) << 18;
        payload | checksum(payload) << CHECKED_BITS
    }

    /// `None` if the checksum does not fit: then nothing is known.
    fn decode(word: u64) -> Option<Self> {
        let payload = word & ((1 << CHECKED_BITS) - 1);
        if checksum(payload) != word >> CHECKED_BITS {
            return None;
        }
        let setting = (payload & 1 != 0).then_some((payload >> 1 & 7) as u8);
        let errno = match payload >> 6 & 0xfff {
            0 => None,
            errno => Some(Errno::from_raw_os_error(errno as i32)),
        };
        let latch = match payload >> 4 & 3 {
            0 => None,
            1 => Some((Durable::Flush, errno)),
            2 => Some((Durable::Write, errno)),
            _ => Some((Durable::Truncated, errno)),
        };
        Some(Self { key: (payload >> 18) as u32 & ((1 << KEY_BITS) - 1), setting, latch })
    }
}

/// 24 bits of CRC-32C. The checksum of no payload is not 0: a trailer of zeroes says nothing.
fn checksum(payload: u64) -> u64 {
    u64::from(crc32c::crc32c(&payload.to_le_bytes()) >> 8)
}

/// The trailer of a client's region.
pub(in crate::server) struct PersistentState {
    region: Region,
    images: Arc<Images>,
    /// What the guest has set in each unit.
    settings: Mutex<Vec<Option<u8>>>,
}

impl PersistentState {
    /// The trailer of `region`. An image that had latched is latched again, for this client: it holds the region, and can write
    /// there what it likes.
    pub(in crate::server) fn open(region: Region, images: Arc<Images>) -> Self {
        let words: Vec<_> = (0..)
            .map_while(|index| region.word(index))
            .filter_map(|word| Word::decode(u64::from_le(word.load(Ordering::Acquire))))
            .collect();
        let mut settings = Vec::new();
        for image in &*images.lock() {
            let word = image.as_ref().and_then(|image| words.iter().find(|word| word.key == image.key));
            if let (Some(image), Some(Word { latch: Some((what, errno)), .. })) = (image, word) {
                image.backend.set_client_latch(Some(LatchCause { what: *what, errno: *errno, lba: None }));
            }
            settings.push(word.and_then(|word| word.setting));
        }
        Self { region, images, settings: Mutex::new(settings) }
    }

    /// What the guest has set in each unit, as far as it is known.
    pub(in crate::server) fn settings(&self) -> Vec<Option<u8>> {
        self.lock().clone()
    }

    /// Stores the setting that the guest chose for a unit.
    pub(in crate::server) fn store_setting(&self, unit: usize, setting: Option<u8>) {
        let mut settings = self.lock();
        if let Some(slot) = settings.get_mut(unit) {
            *slot = setting;
        }
        self.store(&settings);
    }

    /// An operation has failed: keeps the latch, if there is one now, before the guest hears of the failure.
    pub(in crate::server) fn store_latches(&self) {
        self.store(&self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<u8>>> {
        lock(&self.settings)
    }

    /// The lock on `settings` keeps stores in order.
    fn store(&self, settings: &[Option<u8>]) {
        for (index, (&setting, image)) in settings.iter().zip(&*self.images.lock()).enumerate() {
            let Some(word) = self.region.word(index as u32) else { return };
            let said = image.as_ref().map_or(0, |image| {
                let latch = image.backend.latched().map(|cause| (cause.what, cause.errno));
                Word { key: image.key, setting, latch }.encode()
            });
            word.store(said.to_le(), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_survives_and_a_damaged_one_says_nothing() {
        for (key, setting) in [(0, None), (0, Some(0)), (0x3f_ffff, Some(7)), (0x1_0005, Some(1))] {
            let latches = [
                None,
                Some((Durable::Flush, Some(Errno::IO))),
                Some((Durable::Write, None)),
                Some((Durable::Truncated, None)),
            ];
            for latch in latches {
                let word = Word { key, setting, latch };
                assert_eq!(Word::decode(word.encode()), Some(word));
                for bit in 0..64 {
                    assert_eq!(Word::decode(word.encode() ^ 1 << bit), None, "{word:?}, bit {bit}");
                }
            }
        }
        assert_eq!(Word::decode(0), None);
    }
}
