//! Parts of a request's chain: header, status, range segments.

use bitflags::bitflags;
use blk_core::storage::{IoError, IoErrorKind};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

/// The readable beginning of every request: `struct virtio_blk_req` (VIRTIO 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// What to do.
    pub kind: le::U32,
    /// Reserved; `ioprio` in legacy drivers. With REQ_FLAGS, request flags.
    pub reserved: le::U32,
    /// First sector of a read or write.
    pub sector: le::U64,
}

const _: () = assert!(size_of::<RequestHeader>() == 16);

/// A run of sectors in a discard or write-zeroes: `struct virtio_blk_discard_write_zeroes` (VIRTIO 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RangeSegment {
    /// First sector.
    pub sector: le::U64,
    /// Number of sectors.
    pub num_sectors: le::U32,
    /// [`RangeFlags`].
    pub flags: le::U32,
}

const _: () = assert!(size_of::<RangeSegment>() == 16);

bitflags! {
    /// Flags of a [`RangeSegment`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RangeFlags: u32 {
        /// The space may be released. For write-zeroes only.
        const UNMAP = 1;
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for RangeFlags {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

/// The last writable byte of every request (VIRTIO 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR: the device or the driver is at fault.
    IoErr = 1,
    /// VIRTIO_BLK_S_UNSUPP: the device does not do this.
    Unsupported = 2,
}

impl From<Result<(), IoError>> for Status {
    fn from(result: Result<(), IoError>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(IoError { kind: IoErrorKind::Unsupported, .. }) => Self::Unsupported,
            Err(_) => Self::IoErr,
        }
    }
}
