//! Why a command failed, and the one place where that becomes register contents.

use core::fmt;

use blk_core::log;
use blk_core::storage::{Info, IoError, IoErrorKind};

use crate::command::Addressing;
use crate::wire::{ErrorBits, Status, TaskFile};

/// Why a command failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Failure {
    /// The command, or a field of it, is not supported; or it was cut short.
    Aborted,
    /// An address is beyond the end of the disk; the first such block, where the registers can say it.
    NoSuchAddress,
    /// The storage failed it.
    Io {
        /// How.
        error: IoError,
        /// Whether it was a read from the medium.
        reading: bool,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("the command, or a field of it, is not supported"),
            Self::NoSuchAddress => f.write_str("an address is beyond the end of the disk"),
            Self::Io { error, reading: true } => write!(f, "a read failed: {error}"),
            Self::Io { error, reading: false } => error.fmt(f),
        }
    }
}

impl core::error::Error for Failure {}

/// A failure as the registers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Report {
    /// Error register.
    pub error: ErrorBits,
    /// Status bit DF.
    pub fault: bool,
    /// First block in error, in 512-byte sectors.
    pub sector: Option<u64>,
}

impl Report {
    /// Status bits: ERR, and DF for a fault.
    #[must_use]
    pub const fn status(&self) -> Status {
        if self.fault { Status::ERR.union(Status::DF) } else { Status::ERR }
    }
}

impl Failure {
    /// How the registers show it (ACS-3, the normal outputs of STATUS and ERROR).
    #[must_use]
    pub fn report(self) -> Report {
        let plain = |error| Report { error, fault: false, sector: None };
        match self {
            Self::Aborted => plain(ErrorBits::ABRT),
            Self::NoSuchAddress => plain(ErrorBits::IDNF),
            Self::Io { error: IoError { kind, lba }, reading } => {
                let error = match kind {
                    IoErrorKind::Medium if reading => ErrorBits::UNC,
                    IoErrorKind::OutOfRange => ErrorBits::IDNF,
                    _ => ErrorBits::ABRT,
                };
                // "A condition where continued operation may affect user data integrity": only a restart ends it.
                let fault = kind == IoErrorKind::Latched;
                Report { error, fault, sector: lba.map(|lba| lba.0) }
            }
        }
    }

    /// Tells the operator of a command that has failed.
    pub(crate) fn log(self) {
        match self {
            Self::Io { error, .. } => log!(warn, "ata: operation failed: {}", error),
            refused => log!(debug, "ata: command refused: {}", refused),
        }
    }

    /// Whether guest memory was at fault, which a DMA engine reports as its own error.
    #[must_use]
    pub const fn is_memory(self) -> bool {
        matches!(self, Self::Io { error: IoError { kind: IoErrorKind::Memory, .. }, .. })
    }
}

/// Puts a failure's address into the registers, in the form of the command that failed.
pub(crate) fn report_address(task: &mut TaskFile, addressing: Addressing, sector: u64, info: &Info) {
    let block = sector.checked_div(info.sectors_per_block()).unwrap_or(0);
    match addressing {
        Addressing::Lba48 | Addressing::Queued => task.set_lba48(block),
        Addressing::None | Addressing::Lba28 => task.set_lba28(block),
    }
}
