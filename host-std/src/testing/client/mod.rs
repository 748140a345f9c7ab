//! Clients in this process: the other end of a server's socket, without a virtual machine.
//!
//! - [`VhostUser`]: one session with a server: negotiation, shared memory, rings, the in-flight region, and all of it once
//!   more after the server was restarted.
//! - [`vfio_user::VfioUser`]: a session with a server of PCI devices.
//! - [`Blk`]: a virtio-blk driver over it, with as many requests under way as the rings hold.
//! - [`Scsi`]: a virtio-scsi driver over it: commands for its units, task management, events.
//!
//! It checks what a server does as it goes: every chain comes back exactly once, with a length that fits what the chain had
//! to be written, a status that was written, and a notification when one was asked for. Every wait has a deadline.
//!
//! **Not goals:** a guest's block layer. **Not there:** packed rings, migration, a dirty log.

mod blk;
pub mod cdb;
mod connection;
mod notices;
mod queue;
mod scsi;
mod session;
mod slots;
pub mod vfio_user;
mod watchdog;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures;

pub use blk::{Blk, BlkDone, Payload, Request};
pub use queue::QueueCounts;
pub use scsi::{Command, Payload as ScsiPayload, Scsi, ScsiDone, Sense};
pub use session::VhostUser;
pub use slots::Ticket;

use crate::memory::MappingError;

/// What a client asks of a server, and how it uses its rings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Queues to set up. For virtio-scsi the control and the event queue count as two of them.
    pub queues: u16,
    /// Descriptors in each ring: a power of two.
    pub size: u16,
    /// Most bytes of data in a request.
    pub transfer_bytes: u32,
    /// Most bytes of data in a descriptor.
    pub segment_bytes: u32,
    /// Features of the device that are taken if the server offers them.
    pub features: u64,
    /// Protocol features that are taken if the server offers them.
    pub protocol: VhostUserProtocolFeatures,
    /// Bytes of the device's configuration that are read at each connection, before the rings start, as QEMU does. A server may take
    /// a client that never reads `writeback` for one that knows of no write cache. 0: none are.
    pub config_bytes: u32,
    /// Whether the rings are kicked once when they start, as QEMU does and the specification demands.
    pub first_kick: bool,
    /// Whether completions are looked for only after a notification, as an interrupt handler does: a notification that never comes
    /// is then found out also where the next request, or a new connection, would have had the ring looked at.
    pub interrupts_only: bool,
    /// How long any one wait may take.
    pub timeout: Duration,
}

/// VIRTIO_F_RING_INDIRECT_DESC.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_RING_EVENT_IDX.
pub const EVENT_IDX: u64 = 1 << 29;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u64 = 1 << 32;

/// The feature bits that belong to the device: up to 23, and those of VIRTIO 1.3, 6 that this client speaks.
const KNOWN: u64 = 0x00ff_ffff | INDIRECT_DESC | EVENT_IDX | VERSION_1;

impl Default for Options {
    /// One queue of 128, as QEMU makes them, with every feature that the client knows.
    fn default() -> Self {
        Self {
            queues: 1,
            size: 128,
            transfer_bytes: 128 << 10,
            segment_bytes: 128 << 10,
            features: KNOWN,
            protocol: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::INFLIGHT_SHMFD
                | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
                | VhostUserProtocolFeatures::RESET_DEVICE,
            config_bytes: 60,
            first_kick: true,
            interrupts_only: false,
            timeout: Duration::from_secs(20),
        }
    }
}

impl Options {
    /// These options without some features of the device.
    #[must_use]
    pub fn without(mut self, features: u64) -> Self {
        self.features &= !features;
        self
    }

    /// These options without some protocol features.
    #[must_use]
    pub fn without_protocol(mut self, features: VhostUserProtocolFeatures) -> Self {
        self.protocol &= !features;
        self
    }
}

/// What went wrong between this client and its server.
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
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
