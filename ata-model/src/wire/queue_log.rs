//! Log 10h: the queued error log (ATA8-ACS and ACS-3, NCQ Command Error log; Linux `ata_eh_read_log_10h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Entry of the NCQ command error log: the command that ended the queue.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct QueueErrorLog {
    /// Bit 7 (NQ): it was not a queued one; bits 4:0: its tag.
    pub tag: u8,
    /// Reserved.
    pub reserved_1: u8,
    /// Status.
    pub status: u8,
    /// Error.
    pub error: u8,
    /// LBA 7:0, 15:8 and 23:16.
    pub lba: [u8; 3],
    /// Device.
    pub device: u8,
    /// LBA 31:24, 39:32 and 47:40.
    pub lba_previous: [u8; 3],
    /// Reserved.
    pub reserved_11: u8,
    /// Count.
    pub count: [u8; 2],
    /// Sense data, reserved and vendor specific.
    pub rest: [u8; 497],
    /// Makes the sum of all bytes zero.
    pub checksum: u8,
}

impl QueueErrorLog {
    /// The address of the log.
    pub const ADDRESS: u8 = 0x10;
    /// Bit NQ of [`Self::tag`].
    pub const NOT_QUEUED: u8 = 0x80;
}

const _: () = assert!(size_of::<QueueErrorLog>() == 512);
