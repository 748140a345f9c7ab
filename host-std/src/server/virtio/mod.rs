//! The virtio devices of a server, apart from the protocol that serves them and the threads that poll them.

mod backend;
mod blk;
mod scsi;
mod unit;

pub(super) use backend::{DriverCacheView, Negotiated, QueueGroup, VirtioBackend};
pub(super) use blk::Blk;
pub(super) use scsi::Scsi;
pub(super) use unit::{Unit, open as open_unit};
