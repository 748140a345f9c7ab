//! Physical region descriptors ("Programming Interface for Bus Master IDE Controller", revision 1.0).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One physical region of a bus-master transfer.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Prd {
    /// First byte of the region; bit 0 is ignored.
    pub base: U32,
    /// Length in bytes, 0 standing for 64 KiB; bit 0 is ignored.
    pub bytes: U16,
    /// Bit 15: the last region of the table.
    pub flags: U16,
}

impl Prd {
    /// The bit in [`Prd::flags`] that ends the table.
    pub const END_OF_TABLE: u16 = 0x8000;
}

const _: () = assert!(size_of::<Prd>() == 8);
