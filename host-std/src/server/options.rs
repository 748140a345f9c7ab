//! Options of a server, and the errors that keep one from being made.

use std::io;
use std::sync::Arc;

use crate::backend::{Backend, OpenError};

/// How a virtio-blk device is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkOptions {
    /// The serial that the guest reads: 20 bytes at most.
    pub serial: String,
    /// Request queues, each with a thread of its own: 1 to 64.
    pub queues: u16,
    /// Most entries of a queue: a power of two, 1024 at most.
    pub queue_size_max: u16,
    /// Refuse writes, although the image would take them.
    pub read_only: bool,
    /// Offer the experimental FUA write (virtio-spec issue 237).
    pub experimental_fua: bool,
}

impl BlkOptions {
    /// The serial as the guest reads it.
    pub(super) fn serial_bytes(&self) -> Result<[u8; 20], ServerError> {
        let bytes = self.serial.as_bytes();
        let mut serial = [0; 20];
        let Some(start) = serial.get_mut(..bytes.len()) else {
            let (option, value, remedy) = ("serial", self.serial.clone(), "give 20 bytes at most");
            return Err(ServerError::Option { option, value, remedy });
        };
        start.copy_from_slice(bytes);
        Ok(serial)
    }
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            queues: 1,
            queue_size_max: 256,
            read_only: false,
            experimental_fua: false,
        }
    }
}

/// How a virtio-scsi host is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScsiOptions {
    /// Request queues, beside the control and the event queue: 1 to 62. One thread serves them all.
    pub queues: u16,
    /// Most entries of a queue: a power of two, 1024 at most.
    pub queue_size_max: u16,
}

impl Default for ScsiOptions {
    fn default() -> Self {
        Self { queues: 1, queue_size_max: 256 }
    }
}

/// A logical unit of a virtio-scsi host.
pub struct Lun {
    /// The target's number.
    pub target: u8,
    /// The unit's number in its target.
    pub lun: u16,
    /// What it calls itself, and what it does.
    pub config: scsi_model::Config,
    /// Its image.
    pub backend: Arc<dyn Backend>,
}

/// A server cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An option is out of range.
    #[error("{option} may not be {value}: {remedy}")]
    Option {
        /// Which.
        option: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        remedy: &'static str,
    },
    /// A handle of the image could not be made.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// A thread or descriptor could not be made.
    #[error("cannot start the server: {0}; raise the limits on processes and open files")]
    System(#[from] io::Error),
}

pub(super) fn check_ring_size(size: u16) -> Result<(), ServerError> {
    if size.is_power_of_two() && (2..=blk_core::virtq::SIZE_MAX).contains(&size) {
        return Ok(());
    }
    let remedy = "give a power of two from 2 to 1024";
    Err(ServerError::Option { option: "queue-size", value: size.to_string(), remedy })
}

pub(super) fn no_unit(value: String, remedy: &'static str) -> ServerError {
    ServerError::Option { option: "lun", value, remedy }
}
