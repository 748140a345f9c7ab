//! Saving and restoring a device's state.
//!
//! The state of a device is plain data with one canonical encoding: postcard's, of its `serde` form. The crash explorer
//! hashes the same encoding. A snapshot frames it with a kind and a version, and ends in a CRC-32.
//!
//! Only a device that is [quiet](Quiet) is saved: operations in flight live in the storage, and no snapshot of the device brings
//! them back. Staging buffers belong to the storage too; a device that can be quiet with data in one says so and saves it.

use core::fmt;

use crc::{CRC_32_ISCSI, Crc};
use postcard::experimental::max_size::MaxSize;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::bus::Quiet;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// A device whose state can be saved and restored.
pub trait Snapshot: Quiet + Serialize + DeserializeOwned + MaxSize {
    /// What kind of device it is. A snapshot of another kind is refused.
    const KIND: Kind;

    /// Bytes of a snapshot at most: a buffer that is as long never is [too short](SnapshotError::BufferTooShort).
    const BYTES_MAX: usize = {
        let frame = Kind::POSTCARD_MAX_SIZE.saturating_add(size_of::<u32>());
        frame.saturating_add(Self::POSTCARD_MAX_SIZE)
    };
}

/// Kind of a snapshot: a device type's name, the version of its state's layout, and the sizes in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, MaxSize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Kind {
    /// Four letters that name the device type.
    pub name: [u8; 4],
    /// Version of the layout.
    pub version: u16,
    /// The sizes that the device type was made with, such as its number of queues: see [`Self::sized`].
    pub shape: u32,
}

impl Kind {
    /// A device type without sizes.
    #[must_use]
    pub const fn new(name: [u8; 4], version: u16) -> Self {
        Self { name, version, shape: 0 }
    }

    /// The kind with one more size of the device type.
    #[must_use]
    pub const fn sized(self, size: usize) -> Self {
        /// FNV's prime: sizes that change places make another shape.
        const PRIME: u32 = 0x0100_0193;
        let shape = (self.shape ^ (size as u32).wrapping_add(1)).wrapping_mul(PRIME);
        Self { shape, ..self }
    }

    /// The kind of a device behind a bus, whose registers are part of the state.
    #[must_use]
    pub const fn behind(self, bus: [u8; 4]) -> Self {
        self.sized(u32::from_be_bytes(bus) as usize)
    }
}

/// Why a snapshot could not be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum SnapshotError {
    /// The buffer is too short for the state.
    BufferTooShort,
    /// The bytes are damaged, cut off, or no snapshot at all.
    Damaged,
    /// The snapshot is of another device type, version or size.
    WrongKind(Kind),
    /// The device has something under way. Poll it until it is quiet.
    NotQuiet,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BufferTooShort => f.write_str("the buffer is too short for the state"),
            Self::Damaged => f.write_str("the snapshot is damaged, cut off, or none at all"),
            Self::WrongKind(Kind { name, version, shape }) => {
                let name = name.escape_ascii();
                write!(f, "the snapshot is of another device: {name}, version {version}, shape {shape:08x}")
            }
            Self::NotQuiet => f.write_str("the device has something under way; poll it until it is quiet"),
        }
    }
}

impl core::error::Error for SnapshotError {}

/// Writes the state of a quiet device into `buffer` and returns the part that it fills.
///
/// # Errors
/// [`SnapshotError::NotQuiet`] or [`SnapshotError::BufferTooShort`].
pub fn save<'b, D: Snapshot>(device: &D, buffer: &'b mut [u8]) -> Result<&'b [u8], SnapshotError> {
    if device.is_quiet() { encode(D::KIND, device, buffer) } else { Err(SnapshotError::NotQuiet) }
}

/// Reads a device back: as it was saved, quiet.
///
/// The CRC tells damage from a state that was saved; it is no seal. A state that an adversary could have written gives a
/// device that answers that adversary's guest wrongly, but, like any state, one that does not panic and reaches no memory
/// and no sector that the guest could not.
///
/// # Errors
/// [`SnapshotError::Damaged`] or [`SnapshotError::WrongKind`].
pub fn load<D: Snapshot>(bytes: &[u8]) -> Result<D, SnapshotError> {
    let device: D = decode(D::KIND, bytes)?;
    if device.is_quiet() { Ok(device) } else { Err(SnapshotError::Damaged) }
}

/// Writes any state, as [`save`] does a device's: for whoever sees to it that nothing is lost.
///
/// # Errors
/// [`SnapshotError::BufferTooShort`].
pub fn encode<'b>(
    kind: Kind,
    state: &impl Serialize,
    buffer: &'b mut [u8],
) -> Result<&'b [u8], SnapshotError> {
    let written = postcard::to_slice_crc32(&(kind, state), buffer, CRC.digest());
    written.map(|bytes| &*bytes).map_err(|_| SnapshotError::BufferTooShort)
}

/// Reads back what [`encode`] wrote.
///
/// # Errors
/// [`SnapshotError::Damaged`] or [`SnapshotError::WrongKind`].
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, SnapshotError> {
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

    const KIND: Kind = Kind::new(*b"TEST", 3);

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
        let saved = encode(KIND, &sequencer, &mut buffer).unwrap().to_vec();
        let mut back: Sequencer<u8, 4> = decode(KIND, &saved).unwrap();
        assert_eq!(back, sequencer);
        // It was done at once, and waits to be released.
        assert_eq!(back.release(started.done().unwrap().slot), Some(9));

        for cut in 0..saved.len() {
            assert!(decode::<Sequencer<u8, 4>>(KIND, &saved[..cut]).is_err(), "cut off at {cut}");
        }
        for at in 0..saved.len() {
            let mut damaged = saved.clone();
            damaged[at] ^= 1;
            assert!(decode::<Sequencer<u8, 4>>(KIND, &damaged).is_err(), "damaged at {at}");
        }
        let newer = Kind { version: 4, ..KIND };
        assert_eq!(decode::<Sequencer<u8, 4>>(newer, &saved), Err(SnapshotError::WrongKind(KIND)));
        assert_eq!(encode(KIND, &sequencer, &mut [0; 8]), Err(SnapshotError::BufferTooShort));
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, MaxSize)]
    struct Busy(bool);

    impl Quiet for Busy {
        fn is_quiet(&self) -> bool {
            !self.0
        }
    }

    impl Snapshot for Busy {
        const KIND: Kind = KIND.sized(2).sized(3);
    }

    #[test]
    fn only_a_quiet_device_is_saved_and_only_one_comes_back() {
        let mut buffer = [0; Busy::BYTES_MAX];
        assert_eq!(save(&Busy(true), &mut buffer), Err(SnapshotError::NotQuiet));
        let saved = save(&Busy(false), &mut buffer).unwrap();
        assert_eq!(load(saved), Ok(Busy(false)));
        let busy = encode(Busy::KIND, &Busy(true), &mut buffer).unwrap();
        assert_eq!(load::<Busy>(busy), Err(SnapshotError::Damaged));
    }

    #[test]
    fn another_size_is_another_kind() {
        let sizes = [[2, 3], [3, 2], [2, 2], [0, 0]].map(|[a, b]| KIND.sized(a).sized(b));
        for (at, kind) in sizes.iter().enumerate() {
            assert!(!sizes[..at].contains(kind) && *kind != KIND);
        }
        let mut buffer = [0; 32];
        let saved = encode(sizes[1], &Busy(false), &mut buffer).unwrap();
        assert_eq!(load::<Busy>(saved), Err(SnapshotError::WrongKind(sizes[1])));
    }
}
