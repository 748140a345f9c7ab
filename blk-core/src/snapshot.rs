//! Saving and restoring a device's state.
//!
//! The state of a device is plain data with one canonical encoding: postcard's, of its `serde` form. The crash explorer
//! hashes the same encoding. A snapshot frames it with a kind and a version, and ends in a CRC-32.
//!
//! Take one only while the device is quiet (no request in flight, no pending register write): operations in flight live
//! in the storage, and no snapshot of the device brings them back. Staging buffers belong to the storage too; a
//! device that can be quiet with data in one says so and saves it.

use core::fmt;

use crc::{CRC_32_ISCSI, Crc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Kind of a snapshot: a device type's name, and the version of its state's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Kind {
    /// Four letters that name the device type.
    pub name: [u8; 4],
    /// Version of the layout. Another version is refused.
    pub version: u16,
}

/// Why a snapshot could not be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SnapshotError {
    /// The buffer is too short for the state.
    BufferTooShort,
    /// The bytes are damaged, cut off, or no snapshot at all.
    Damaged,
    /// The snapshot is of another device type or version.
    WrongKind(Kind),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BufferTooShort => f.write_str("the buffer is too short for the state"),
            Self::Damaged => f.write_str("the snapshot is damaged, cut off, or none at all"),
            Self::WrongKind(Kind { name, version }) => {
                write!(f, "the snapshot is of another device: {}, version {version}", name.escape_ascii())
            }
        }
    }
}

impl core::error::Error for SnapshotError {}

/// Writes `state` into `buffer` and returns the part that it fills.
///
/// # Errors
/// [`SnapshotError::BufferTooShort`].
pub fn save<'b, T: Serialize>(
    kind: Kind,
    state: &T,
    buffer: &'b mut [u8],
) -> Result<&'b [u8], SnapshotError> {
    let written = postcard::to_slice_crc32(&(kind, state), buffer, CRC.digest());
    written.map(|bytes| &*bytes).map_err(|_| SnapshotError::BufferTooShort)
}

/// Reads a state back.
///
/// The CRC tells damage from a state that was saved; it is no seal. A state that an adversary could have written gives a
/// device that answers that adversary's guest wrongly, but, like any state, one that does not panic and reaches no memory
/// and no sector that the guest could not.
///
/// # Errors
/// [`SnapshotError::Damaged`] or [`SnapshotError::WrongKind`].
pub fn load<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, SnapshotError> {
    let (found, _) = postcard::take_from_bytes::<Kind>(bytes).map_err(|_| SnapshotError::Damaged)?;
    if found != kind {
        return Err(SnapshotError::WrongKind(found));
    }
    let decoded = postcard::from_bytes_crc32::<(Kind, T)>(bytes, CRC.digest());
    decoded.map(|(_, state)| state).map_err(|_| SnapshotError::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::order::{GuestCache, Request, Sequencer};
    use crate::ram::{Ram, RamDisk};

    const KIND: Kind = Kind { name: *b"TEST", version: 3 };

    #[test]
    fn a_state_comes_back_whole_and_a_damaged_one_not_at_all() {
        let mut bytes = [0; 512];
        let mut disk = RamDisk::<2>::new(Ram::new(&mut bytes), &mut []);
        let memory = crate::memory::CellMemory::new(Default::default(), &mut []);
        let mut sequencer = Sequencer::<u8, 4>::new();
        let flush = Request::new(Op::Flush);
        let cache = GuestCache::WriteBack;
        let started = sequencer.submit(&memory, &mut disk, &flush, cache, &[], 9).unwrap();

        let mut buffer = [0; 256];
        let saved = save(KIND, &sequencer, &mut buffer).unwrap().to_vec();
        let mut back: Sequencer<u8, 4> = load(KIND, &saved).unwrap();
        assert_eq!(back, sequencer);
        // It was done at once, and waits to be released.
        assert_eq!(back.release(started.done().unwrap().slot), Some(9));

        for cut in 0..saved.len() {
            assert!(load::<Sequencer<u8, 4>>(KIND, &saved[..cut]).is_err(), "cut off at {cut}");
        }
        for at in 0..saved.len() {
            let mut damaged = saved.clone();
            damaged[at] ^= 1;
            assert!(load::<Sequencer<u8, 4>>(KIND, &damaged).is_err(), "damaged at {at}");
        }
        let newer = Kind { version: 4, ..KIND };
        assert_eq!(load::<Sequencer<u8, 4>>(newer, &saved), Err(SnapshotError::WrongKind(KIND)));
        assert_eq!(save(KIND, &sequencer, &mut [0; 8]), Err(SnapshotError::BufferTooShort));
    }
}
