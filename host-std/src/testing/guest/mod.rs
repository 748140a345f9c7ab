//! Guests in this process: small drivers that speak a front's own registers, rings and command blocks over real memory
//! and a real image.
//!
//! They serve the integrity table, the tests that trace system calls, and whoever wants to try a model without a virtual
//! machine. Each call blocks until the device has answered, as a polling firmware driver's would.

mod ahci;
mod ide;
mod machine;
mod scsi;
mod virtio;
mod virtio_scsi;

use std::time::Duration;

pub use ahci::{Ahci, Commands};
pub use ide::{Ide, Transfer};
pub use machine::Machine;
pub use scsi::{BUFFER, Carrier, Scsi, Unit};
pub use virtio::VirtioBlk;
pub use virtio_scsi::VirtioScsi;

/// How long a guest waits for an answer before it calls the device stuck.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Why a guest's request came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// The device answered with an error.
    #[error("the device reported an error: {0}")]
    Failed(String),
    /// The device did not answer in time.
    #[error("the device did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The device is not what the driver expects.
    #[error("the driver does not know this device: {0}")]
    Unknown(String),
}

/// A disk as its driver offers it to the rest of a guest.
pub trait GuestDisk {
    /// Capacity in 512-byte sectors.
    fn sectors(&self) -> u64;

    /// Whether the device says that it has a volatile write cache, now.
    ///
    /// # Errors
    /// [`GuestError`] if asking fails.
    fn write_cache(&mut self) -> Result<bool, GuestError>;

    /// Whether the front has a write with Force Unit Access.
    fn has_fua(&self) -> bool;

    /// Writes `data`, a multiple of 512 bytes and at most [`TRANSFER_MAX_BYTES`], at sector `lba`.
    ///
    /// # Errors
    /// [`GuestError`] if the device reports one, or if `fua` is asked of a front without it.
    fn write(&mut self, lba: u64, data: &[u8], fua: bool) -> Result<(), GuestError>;

    /// Reads into `into`, as [`Self::write`] writes.
    ///
    /// # Errors
    /// [`GuestError`] if the device reports one.
    fn read(&mut self, lba: u64, into: &mut [u8]) -> Result<(), GuestError>;

    /// Makes what was written stable.
    ///
    /// # Errors
    /// [`GuestError`] if the device reports one.
    fn flush(&mut self) -> Result<(), GuestError>;
}

/// Most bytes that one [`GuestDisk`] request moves.
pub const TRANSFER_MAX_BYTES: usize = 64 << 10;
