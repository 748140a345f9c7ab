//! Errors between a client and its server.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::scsi_done::ScsiDone;
use crate::memory::MappingError;

/// Error between this client and its server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to {path}: {source}; is the server running?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A message was refused, or answered wrongly.
    #[error("vhost-user: {0}")]
    Vhost(#[from] vhost::Error),
    /// A message of the crate's own kind.
    #[error("vhost-user: {0}")]
    Message(#[from] vhost::vhost_user::Error),
    /// The memory to share could not be had.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The server lacks something that was asked for.
    #[error("the server does not offer {0}")]
    NotOffered(&'static str),
    /// The server refused a vfio-user command.
    #[error("command {command} is refused with errno {errno}")]
    Errno {
        /// Which.
        command: u16,
        /// Why.
        errno: u32,
    },
    /// The server closed the connection.
    #[error("the server is gone")]
    Gone,
    /// The server did not answer a message in time.
    #[error("no answer to a message within {waited:?}")]
    NoAnswer {
        /// How long was waited.
        waited: Duration,
    },
    /// No request came back in time.
    #[error("no completion within {waited:?}: {in_flight} requests are under way")]
    Timeout {
        /// How long was waited.
        waited: Duration,
        /// Requests under way on that queue.
        in_flight: usize,
    },
    /// A completion was there, no notification had come for it though one was asked for.
    #[error("a completion without the notification that was asked for")]
    LostNotification,
    /// The server broke the rules of the ring or of the device.
    #[error("the device misbehaves: {0}")]
    Misbehaves(String),
    /// The ring has no room for another request, or the request no room in a slot.
    #[error("no room for the request")]
    Full,
    /// A SCSI command did not end with GOOD.
    #[error("command {opcode:#04x} ended with {done:?}")]
    Refused {
        /// The command's first byte.
        opcode: u8,
        /// How it ended.
        done: ScsiDone,
    },
    /// The device answered a request with an error.
    #[error("{request} ended with status {status}")]
    Failed {
        /// Which request.
        request: &'static str,
        /// virtio-blk: 1 for IOERR, 2 for UNSUPP.
        status: u8,
    },
}

impl ClientError {
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
