//! What a server asks of the device that it serves, whatever the protocol.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::stats::Stats;
use super::vhost_user::Waker;
use super::{Lun, ServerError};

/// A device and its threads, as the server and its operator see them.
pub(super) trait Served: Send + Sync {
    /// Serves a client until it goes, and lets what is in flight complete.
    fn serve_client(self: Arc<Self>, stream: UnixStream) -> io::Result<()>;

    /// Takes no requests, or takes them again; returns once every thread knows.
    fn set_paused(&self, pause: bool);

    /// Holds, and waits until nothing is in flight.
    fn hold_and_drain(&self);

    /// Undoes one hold.
    fn release(&self);

    /// Flushes the images, while held and drained.
    fn flush(&self) -> bool;

    /// What the images are has changed.
    fn config_changed(&self);

    /// Whether the end has begun.
    fn is_stopping(&self) -> bool;

    /// Begins the end: nobody waits for a client any more, and the one that is there is let go.
    fn begin_stop(&self);

    /// Wakes who waits for a client.
    fn stop_waker(&self) -> &Waker;

    /// Ends the threads, whatever they are at.
    fn end_threads(&self);

    /// The same, and returns when they do nothing more.
    fn abandon(&self);

    /// What has been done so far.
    fn stats(&self) -> Stats;

    /// Adds a logical unit.
    fn plug(&self, lun: Lun) -> Result<(), ServerError> {
        Err(no_unit(format!("{}:{}", lun.target, lun.lun), "serve virtio-scsi over vhost-user"))
    }

    /// Takes a logical unit away.
    fn unplug(&self, target: u8, lun: u16) -> Result<(), ServerError> {
        Err(no_unit(format!("{target}:{lun}"), "serve virtio-scsi over vhost-user"))
    }
}

pub(super) fn no_unit(value: String, remedy: &'static str) -> ServerError {
    ServerError::Option { option: "lun", value, remedy }
}
