//! Structures in system memory that an AHCI HBA reads and writes (AHCI 1.3.1, 4.2, Port Memory Structures).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// One of the 32 entries of a command list (4.2.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandHeader {
    /// Bits 4:0 dwords of the command FIS; 5 ATAPI, 6 write, 7 prefetchable, 8 reset, 9 BIST, 10 clear BSY upon R_OK;
    /// 15:12 port multiplier port.
    pub options: U16,
    /// Entries of the PRD table.
    pub prd_entries: U16,
    /// Bytes transferred; the HBA writes it for commands that are not queued.
    pub transferred_bytes: U32,
    /// The command table; bits 6:0 are reserved.
    pub table: U64,
    /// Reserved.
    pub reserved: [U32; 4],
}

impl CommandHeader {
    /// Bits of [`Self::options`]: dwords of the command FIS.
    pub const FIS_DWORDS: u16 = 0x001f;
    /// Bit of [`Self::options`]: from memory to the device.
    pub const WRITE: u16 = 1 << 6;
    /// Bit of [`Self::options`]: part of a software reset.
    pub const RESET: u16 = 1 << 8;
    /// Bit of [`Self::options`]: BSY and PxCI are cleared when the FIS has been taken.
    pub const CLEAR_BUSY: u16 = 1 << 10;
    /// Bits of [`Self::options`] that select a port behind a port multiplier.
    pub const PORT: u16 = 0xf000;
    /// Where [`Self::transferred_bytes`] is.
    pub const TRANSFERRED_BYTES: u64 = 4;
    /// The bits of an address that name a command table.
    pub const TABLE: u64 = !0x7f;
}

/// Where things are in a command table (4.2.3); the command FIS is at its start.
pub const PRD_TABLE: u64 = 0x80;

/// One region of a command's data (4.2.3.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PrdEntry {
    /// First byte; bit 0 is zero.
    pub base: U64,
    /// Reserved.
    pub reserved: U32,
    /// Bits 21:0 length in bytes minus one, of which bit 0 is one; bit 31: interrupt when the region is done.
    pub count: U32,
}

impl PrdEntry {
    /// Bits of [`Self::count`]: length in bytes minus one.
    pub const BYTES: u32 = 0x003f_ffff;
    /// Bit of [`Self::count`]: interrupt.
    pub const INTERRUPT: u32 = 1 << 31;
}

/// Where the FISes from a device go in the received FIS area (4.2.1).
pub mod received {
    /// DMA Setup.
    pub const DMA_SETUP: u64 = 0x00;
    /// PIO Setup.
    pub const PIO_SETUP: u64 = 0x20;
    /// Register, device to host.
    pub const REGISTER: u64 = 0x40;
    /// Set Device Bits.
    pub const SET_DEVICE_BITS: u64 = 0x58;
    /// All of it.
    pub const BYTES: u64 = 0x100;
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<CommandHeader>() == 32);
    assert!(offset_of!(CommandHeader, transferred_bytes) == CommandHeader::TRANSFERRED_BYTES as usize);
    assert!(offset_of!(CommandHeader, table) == 8);
    assert!(size_of::<PrdEntry>() == 16);
    assert!(offset_of!(PrdEntry, count) == 12);
};

/// Offsets of the generic host control registers (3.1).
pub mod host {
    /// What the HBA can do.
    pub const CAP: u64 = 0x00;
    /// Global control: bit 0 resets, bit 1 enables interrupts.
    pub const GHC: u64 = 0x04;
    /// Pending interrupts, a bit for each port.
    pub const IS: u64 = 0x08;
    /// The ports that there are.
    pub const PI: u64 = 0x0c;
    /// Version.
    pub const VS: u64 = 0x10;
}

/// Where the first port's registers are.
pub const PORTS_AT: u64 = 0x100;
/// How far from a port's registers the next one's are.
pub const PORT_BYTES: u64 = 0x80;

/// Offsets of a port's registers (3.3).
pub mod port {
    /// The command list.
    pub const CLB: u64 = 0x00;
    /// The command list, high half.
    pub const CLBU: u64 = 0x04;
    /// The received FISes.
    pub const FB: u64 = 0x08;
    /// The received FISes, high half.
    pub const FBU: u64 = 0x0c;
    /// Pending interrupts.
    pub const IS: u64 = 0x10;
    /// Enabled interrupts.
    pub const IE: u64 = 0x14;
    /// Command and status.
    pub const CMD: u64 = 0x18;
    /// Task file data: Status, and Error above it.
    pub const TFD: u64 = 0x20;
    /// Signature.
    pub const SIG: u64 = 0x24;
    /// SATA status.
    pub const SSTS: u64 = 0x28;
    /// SATA control.
    pub const SCTL: u64 = 0x2c;
    /// SATA errors.
    pub const SERR: u64 = 0x30;
    /// Queued commands that are outstanding.
    pub const SACT: u64 = 0x34;
    /// Commands that are issued.
    pub const CI: u64 = 0x38;
}
