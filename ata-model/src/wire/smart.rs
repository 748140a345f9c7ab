//! SMART data and logs (ATA/ATAPI-7 volume 1, SMART; names after smartmontools).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// SMART READ DATA, and, with its attributes taken as thresholds, SMART READ THRESHOLDS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartData {
    /// Bytes 0-1: structure revision, vendor specific; 10h by custom.
    pub revision: U16,
    /// Bytes 2-361: 30 attributes of 12 bytes, vendor specific; all zero where there are none.
    pub attributes: [[u8; 12]; 30],
    /// Byte 362: off-line data collection status.
    pub offline_status: u8,
    /// Byte 363: self-test execution status: bits 7:4 result, bits 3:0 tenths left.
    pub self_test_status: u8,
    /// Bytes 364-365: seconds that off-line data collection takes.
    pub offline_seconds: U16,
    /// Byte 366: vendor specific.
    pub vendor_366: u8,
    /// Byte 367: off-line data collection capability; bit 0: SMART EXECUTE OFF-LINE IMMEDIATE, bit 4: self-tests.
    pub offline_capability: u8,
    /// Bytes 368-369: SMART capability; bit 0: saved before power down, bit 1: saved by itself.
    pub capability: U16,
    /// Byte 370: bit 0: error logging.
    pub error_logging: u8,
    /// Byte 371: vendor specific.
    pub vendor_371: u8,
    /// Byte 372: minutes of a short self-test.
    pub short_test_minutes: u8,
    /// Byte 373: minutes of an extended self-test.
    pub extended_test_minutes: u8,
    /// Bytes 374-510: reserved and vendor specific.
    pub rest: [u8; 137],
    /// Byte 511: makes the sum of all bytes zero.
    pub checksum: u8,
}

/// A log directory: address 00h.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogDirectory {
    /// Version: 1.
    pub version: U16,
    /// Length in 512-byte blocks of the logs at addresses 1 to 255.
    pub blocks: [U16; 255],
}

/// SMART log 01h: the summary error log.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SummaryErrorLog {
    /// Version: 1.
    pub version: u8,
    /// Index of the newest entry: 1 to 5, or 0 if there is none.
    pub index: u8,
    /// Five entries of 90 bytes.
    pub entries: [[u8; 90]; 5],
    /// Errors in all.
    pub count: U16,
    /// Reserved.
    pub rest: [u8; 57],
    /// Makes the sum of all bytes zero.
    pub checksum: u8,
}

/// One self-test in [`SelfTestLog`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SelfTestEntry {
    /// The LBA Low register of the command: which test.
    pub test: u8,
    /// Execution status: 0: completed without error.
    pub status: u8,
    /// Power-on hours when it ended.
    pub hours: U16,
    /// Vendor specific.
    pub checkpoint: u8,
    /// First sector that failed.
    pub failing_lba: U32,
    /// Vendor specific.
    pub vendor: [u8; 15],
}

/// SMART log 06h: the self-test log.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SelfTestLog {
    /// Revision: 1.
    pub revision: U16,
    /// A ring of 21 tests.
    pub entries: [SelfTestEntry; 21],
    /// Vendor specific.
    pub vendor: [u8; 2],
    /// Index of the newest entry: 1 to 21, or 0 if there is none.
    pub index: u8,
    /// Reserved.
    pub reserved: [u8; 2],
    /// Makes the sum of all bytes zero.
    pub checksum: u8,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<SmartData>() == 512);
    assert!(offset_of!(SmartData, offline_capability) == 367);
    assert!(offset_of!(SmartData, extended_test_minutes) == 373);
    assert!(size_of::<LogDirectory>() == 512);
    assert!(size_of::<SummaryErrorLog>() == 512);
    assert!(size_of::<SelfTestEntry>() == 24);
    assert!(size_of::<SelfTestLog>() == 512);
    assert!(offset_of!(SelfTestLog, index) == 508);
};
