//! The registers' bits (AHCI 1.3.1, 3, HBA Memory Registers; names as there and in Linux `drivers/ata/ahci.h`).

use bitflags::bitflags;

pub(super) use crate::wire::ahci::{PORT_BYTES, PORTS_AT, host, port};

/// Command slots of a port, and queued commands of a drive.
pub(super) const SLOTS: usize = 32;

/// CAP without the number of ports: 64-bit addressing, NCQ, command list override, 6 Gb/s, AHCI only, several DRQ blocks, 32
/// slots. No port multipliers, no enclosure management, no coalescing, no link power states, no staggered spin-up.
pub(super) const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 24 | 3 << 20 | 1 << 18 | 1 << 15 | 31 << 8;

/// VS: 1.3.1.
pub(super) const VERSION: u32 = 0x0001_0301;

/// GHC.AE: always set, as CAP.SAM says.
pub(super) const GHC_AE: u32 = 1 << 31;
/// GHC.IE.
pub(super) const GHC_IE: u32 = 1 << 1;
/// GHC.HR.
pub(super) const GHC_HR: u32 = 1;

bitflags! {
    /// PxIS and PxIE (3.3.5, 3.3.6).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub(super) struct Interrupts: u32 {
        /// A Register FIS with its interrupt bit set.
        const DHRS = 1;
        /// A PIO Setup FIS with its interrupt bit set, and its data.
        const PSS = 1 << 1;
        /// A Set Device Bits FIS with its interrupt bit set.
        const SDBS = 1 << 3;
        /// A region that asked for it is done.
        const DPS = 1 << 5;
        /// PxSERR.DIAG.X; cleared there.
        const PCS = 1 << 6;
        /// PxSERR.DIAG.N; cleared there.
        const PRCS = 1 << 22;
        /// The PRD table was too short.
        const OFS = 1 << 24;
        /// Interface fatal error.
        const IFS = 1 << 27;
        /// Host bus fatal error.
        const HBFS = 1 << 29;
        /// Status has ERR set.
        const TFES = 1 << 30;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Interrupts {
    const POSTCARD_MAX_SIZE: usize = u32::POSTCARD_MAX_SIZE;
}

/// The bits of PxIE that can be set: those that PxIS has (3.3.6).
pub(super) const IE_MASK: u32 = 0xfdc0_00ff;

bitflags! {
    /// PxCMD (3.3.7).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub(super) struct Cmd: u32 {
        /// The command list is to be processed.
        const ST = 1;
        /// Spun up; read-only, since CAP.SSS is 0.
        const SUD = 1 << 1;
        /// Powered on; read-only, since there is no cold presence detection.
        const POD = 1 << 2;
        /// Command list override: clears BSY and DRQ.
        const CLO = 1 << 3;
        /// FISes are to be received.
        const FRE = 1 << 4;
        /// They are.
        const FR = 1 << 14;
        /// The command list is processed.
        const CR = 1 << 15;
        /// Drives come and go.
        const HPCP = 1 << 18;
        /// The device is ATAPI: software's note to the activity LED.
        const ATAPI = 1 << 24;
        /// The activity LED is driven for it.
        const DLAE = 1 << 25;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Cmd {
    const POSTCARD_MAX_SIZE: usize = u32::POSTCARD_MAX_SIZE;
}

impl Cmd {
    /// What software writes and reads back.
    pub(super) const WRITABLE: Self = Self::ST.union(Self::FRE).union(Self::ATAPI).union(Self::DLAE);
    /// What is always set.
    pub(super) const FIXED: Self = Self::SUD.union(Self::POD).union(Self::HPCP);
}

bitflags! {
    /// PxSERR (3.3.12), as far as something sets it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub(super) struct Serr: u32 {
        /// Protocol error.
        const P = 1 << 10;
        /// PhyRdy changed.
        const N = 1 << 16;
        /// A device appeared.
        const X = 1 << 26;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Serr {
    const POSTCARD_MAX_SIZE: usize = u32::POSTCARD_MAX_SIZE;
}

/// PxTFD.STS of a port without a device, and before one has answered (3.3.8).
pub(super) const STATUS_NONE: u8 = 0x7f;
/// PxSIG before a device has sent its signature (3.3.9).
pub(super) const SIGNATURE_NONE: u32 = u32::MAX;

/// PxSCTL.DET (3.3.11): COMRESET for as long as it is there.
pub(super) const DET_COMRESET: u32 = 1;
/// PxSCTL.DET: the interface is off.
pub(super) const DET_OFF: u32 = 4;
/// The bits of PxSCTL that can be set: IPM, SPD, DET.
pub(super) const SCTL_MASK: u32 = 0xfff;
