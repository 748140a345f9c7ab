//! Layout of the file of records: two copies of each record, in one half of the file each.
//!
//! ```text
//! place   0       1             31      0       1             31
//!         +-------+------ ... --+-------+-------+------ ... --+-------+
//!         | first copies                | second copies               |
//!         +-------+------ ... --+-------+-------+------ ... --+-------+
//! ```
//!
//! All integers are little-endian. A place that was never used is all zeroes.

use blk_core::units::StateKey;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most bytes of a record.
pub(super) const RECORD_BYTES_MAX: usize = 3584;
/// Records of a file.
pub(super) const PLACES: usize = 32;
pub(super) const COPY_BYTES: usize = 4096;
pub(super) const FILE_BYTES: u64 = (2 * PLACES * COPY_BYTES) as u64;

/// With the version of the layout.
const MAGIC: [u8; 8] = *b"BLKSTAT1";

/// A copy of a record: what a physical block of 4 KiB holds.
#[derive(Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RecordCopy {
    magic: [u8; 8],
    key: U32,
    /// Length of the record.
    bytes: U32,
    /// Counts the times that the record was stored, from 1 on.
    generation: U64,
    data: [u8; RECORD_BYTES_MAX],
    reserved: [u8; 484],
    /// CRC-32C of all before it.
    crc: U32,
}

const _: () = assert!(size_of::<RecordCopy>() == COPY_BYTES);

impl RecordCopy {
    /// `None` if the data is too long.
    pub(super) fn new(key: StateKey, generation: u64, data: &[u8]) -> Option<Box<Self>> {
        let mut copy = Box::new(Self {
            magic: MAGIC,
            key: key.0.into(),
            bytes: u32::try_from(data.len()).ok()?.into(),
            generation: generation.into(),
            data: [0; RECORD_BYTES_MAX],
            reserved: [0; 484],
            crc: 0.into(),
        });
        copy.data.get_mut(..data.len())?.copy_from_slice(data);
        copy.crc = copy.checksum().into();
        Some(copy)
    }

    /// A copy that was written whole.
    pub(super) fn parse(bytes: &[u8]) -> Option<Box<Self>> {
        let copy = Box::new(Self::read_from_bytes(bytes).ok()?);
        let whole = copy.magic == MAGIC && copy.crc.get() == copy.checksum() && copy.data().is_some();
        whole.then_some(copy)
    }

    pub(super) const fn key(&self) -> StateKey {
        StateKey(self.key.get())
    }

    pub(super) const fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// The record. `Some` of what [`new`](Self::new) or [`parse`](Self::parse) returned.
    pub(super) fn data(&self) -> Option<&[u8]> {
        self.data.get(..self.bytes.get() as usize)
    }

    fn checksum(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c(&bytes[..COPY_BYTES - size_of::<U32>()])
    }
}

/// Byte at which a copy of a place lies.
pub(super) const fn offset(half: usize, place: usize) -> u64 {
    ((half * PLACES + place) * COPY_BYTES) as u64
}
