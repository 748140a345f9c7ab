//! Frame information structures (Serial ATA revision 3.0, 10.3, FIS types; names after Linux `ata_tf_to_fis`).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::task_file::{Pair, TaskFile};

/// Register, host to device.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RegisterH2d {
    /// [`Self::TYPE`].
    pub fis_type: u8,
    /// Bits 3:0 port multiplier port; bit 7 (C): the Command register is written, not Device Control.
    pub flags: u8,
    /// Command.
    pub command: u8,
    /// Features, current byte.
    pub features: u8,
    /// LBA 7:0, 15:8 and 23:16.
    pub lba: [u8; 3],
    /// Device.
    pub device: u8,
    /// LBA 31:24, 39:32 and 47:40.
    pub lba_previous: [u8; 3],
    /// Features, previous byte.
    pub features_previous: u8,
    /// Count, current byte.
    pub count: u8,
    /// Count, previous byte.
    pub count_previous: u8,
    /// Isochronous command completion; not used.
    pub icc: u8,
    /// Device Control.
    pub control: u8,
    /// Auxiliary; not used.
    pub auxiliary: U32,
}

impl RegisterH2d {
    /// The type.
    pub const TYPE: u8 = 0x27;
    /// Bit C of [`Self::flags`].
    pub const COMMAND: u8 = 0x80;

    /// The registers that the FIS of a command fills.
    #[must_use]
    pub const fn task_file(&self) -> TaskFile {
        let [low, mid, high] = self.lba;
        let [low_previous, mid_previous, high_previous] = self.lba_previous;
        TaskFile {
            features: Pair { current: self.features, previous: self.features_previous },
            count: Pair { current: self.count, previous: self.count_previous },
            lba_low: Pair { current: low, previous: low_previous },
            lba_mid: Pair { current: mid, previous: mid_previous },
            lba_high: Pair { current: high, previous: high_previous },
            device: self.device,
            command: self.command,
        }
    }
}

/// Register, device to host.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the bytes that stay zero")]
pub struct RegisterD2h {
    /// [`Self::TYPE`].
    pub fis_type: u8,
    /// Bit 6 (I): interrupt.
    pub flags: u8,
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
    pub _11: u8,
    /// Count, current byte.
    pub count: u8,
    /// Count, previous byte.
    pub count_previous: u8,
    pub _14: [u8; 6],
}

impl RegisterD2h {
    /// The type.
    pub const TYPE: u8 = 0x34;
}

/// Set Device Bits.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetDeviceBits {
    /// [`Self::TYPE`].
    pub fis_type: u8,
    /// Bit 6 (I): interrupt.
    pub flags: u8,
    /// Status, without BSY and DRQ.
    pub status: u8,
    /// Error.
    pub error: u8,
    /// SActive: the tags that have ended.
    pub ended: U32,
}

impl SetDeviceBits {
    /// The type.
    pub const TYPE: u8 = 0xa1;
    /// The bits of Status that it changes.
    pub const STATUS: u8 = 0x77;
}

/// PIO Setup.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the bytes that stay zero")]
pub struct PioSetup {
    /// [`Self::TYPE`].
    pub fis_type: u8,
    /// Bit 5 (D): to the host; bit 6 (I): interrupt.
    pub flags: u8,
    /// Status while the block moves.
    pub status: u8,
    /// Error.
    pub error: u8,
    /// LBA 7:0, 15:8 and 23:16.
    pub lba: [u8; 3],
    /// Device.
    pub device: u8,
    /// LBA 31:24, 39:32 and 47:40.
    pub lba_previous: [u8; 3],
    pub _11: u8,
    /// Count, current byte.
    pub count: u8,
    /// Count, previous byte.
    pub count_previous: u8,
    pub _14: u8,
    /// Status when the block has moved.
    pub end_status: u8,
    /// Bytes of the block.
    pub transfer_bytes: U16,
    pub _18: U16,
}

impl PioSetup {
    /// The type.
    pub const TYPE: u8 = 0x5f;
    /// Bit D of [`Self::flags`].
    pub const TO_HOST: u8 = 0x20;
}

/// DMA Setup.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the bytes that stay zero")]
pub struct DmaSetup {
    /// [`Self::TYPE`].
    pub fis_type: u8,
    /// Bit 5 (D): to the host.
    pub flags: u8,
    pub _2: U16,
    /// Bits 4:0: the tag.
    pub tag: U32,
    pub _8: U32,
    pub _12: U32,
    /// First byte of the command's data that moves now.
    pub offset: U32,
    /// How many bytes move.
    pub bytes: U32,
    pub _24: U32,
}

impl DmaSetup {
    /// The type.
    pub const TYPE: u8 = 0x41;
}

/// Bit I of the flags of every FIS to the host that has one.
pub const INTERRUPT: u8 = 0x40;

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<RegisterH2d>() == 20);
    assert!(offset_of!(RegisterH2d, control) == 15);
    assert!(size_of::<RegisterD2h>() == 20);
    assert!(offset_of!(RegisterD2h, count) == 12);
    assert!(size_of::<SetDeviceBits>() == 8);
    assert!(size_of::<PioSetup>() == 20);
    assert!(offset_of!(PioSetup, end_status) == 15);
    assert!(size_of::<DmaSetup>() == 28);
    assert!(offset_of!(DmaSetup, bytes) == 20);
};
