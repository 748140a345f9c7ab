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
mod error;
mod notices;
mod options;
mod queue;
mod scsi;
mod scsi_done;
mod session;
mod slots;
mod ticket;
pub mod vfio_user;
mod watchdog;

pub use blk::{Blk, BlkDone, Payload, Request};
pub use error::ClientError;
pub use options::{EVENT_IDX, INDIRECT_DESC, Options, VERSION_1};
pub use queue::QueueCounts;
pub use scsi::{Command, Payload as ScsiPayload, Scsi};
pub use scsi_done::{ScsiDone, Sense};
pub use session::VhostUser;
pub use ticket::Ticket;
