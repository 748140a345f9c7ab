//! Servers: our devices for the virtual machines of other programs.
//!
//! ```text
//! frontend -- socket --> vhost_user (protocol)      one thread: the caller of `serve`
//!    |                        |  commands
//!    +-- shared memory --> worker (rings, event loop)      one thread for each queue
//!           eventfds          |
//!                          virtio_blk_model::Queue --> backend::Handle, one for each queue
//! ```

mod stats;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use crate::backend::{Backend, OpenError};

pub use stats::{QueueStats, Stats};

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

/// Serving has ended for a reason other than [`Controller::stop`].
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listening socket failed.
    #[error("the listening socket failed: {0}")]
    Socket(#[from] io::Error),
    /// The last flush failed: acknowledged writes may not be stable.
    #[error(
        "the flush at the end failed: what the guest wrote last may not be on the disk; check the image before it is used again"
    )]
    Flush,
}

/// A device and its threads, for one client after the other.
pub struct Server {
    controller: Controller,
}

impl Server {
    /// A virtio-blk device on an image.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn blk(_options: &BlkOptions, _backend: Arc<dyn Backend>) -> Result<Self, ServerError> {
        Ok(Self { controller: Controller {} })
    }

    /// A virtio-scsi host with logical units.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn scsi(_options: &ScsiOptions, _luns: Vec<Lun>) -> Result<Self, ServerError> {
        Ok(Self { controller: Controller {} })
    }

    /// The operator's hand on it.
    #[must_use]
    pub fn controller(&self) -> Controller {
        self.controller.clone()
    }

    /// Serves one client after the other, until [`Controller::stop`].
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve(&self, _listener: &UnixListener) -> Result<(), ServeError> {
        Ok(())
    }

    /// Serves one client that has connected, until it goes or [`Controller::stop`].
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve_stream(&self, _stream: UnixStream) -> Result<(), ServeError> {
        Ok(())
    }
}

/// The operator's hand on a server. A clone is another hand on the same.
#[derive(Clone)]
pub struct Controller {}

impl Controller {
    /// Takes no more requests, until [`Self::resume`]; what is in flight goes on. Returns once every queue knows.
    pub fn pause(&self) {}

    /// Takes requests again.
    pub fn resume(&self) {}

    /// Returns when nothing is in flight. No request is taken until then.
    pub fn drain(&self) {}

    /// The backend's `Info` has changed: tells the guest.
    pub fn resized(&self) {}

    /// Adds a logical unit to a virtio-scsi host.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn hotplug(&self, _lun: Lun) -> Result<(), ServerError> {
        Ok(())
    }

    /// Removes a logical unit from a virtio-scsi host.
    ///
    /// # Errors
    /// [`ServerError`] if there is none.
    pub fn unplug(&self, _target: u8, _lun: u16) -> Result<(), ServerError> {
        Ok(())
    }

    /// What the server has done.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Ends [`Server::serve`]: what is in flight completes, the image is flushed, the client is let go. Returns at once.
    pub fn stop(&self) {}
}
