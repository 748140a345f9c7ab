//! A vhost-user device's life, as its server leads it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::connection;
use super::device::VhostUserDevice;
use crate::server::lifecycle::{DeviceLifecycle, Lifecycle, NextClient};
use crate::server::options::{Lun, ServerError, no_unit};
use crate::server::queue::Command;
use crate::server::stats::Stats;
use crate::server::virtio::open_unit;

impl DeviceLifecycle for VhostUserDevice {
    fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    fn serve_client(self: Arc<Self>, stream: UnixStream, next: NextClient<'_>) -> io::Result<()> {
        connection::serve_client(&self, stream, next)
    }

    fn hold(&self, hold: bool) {
        Self::hold(self, hold);
    }

    fn drain(&self) {
        Self::drain(self);
    }

    fn flush(&self) -> bool {
        Self::flush(self)
    }

    fn config_changed(&self) {
        Self::config_changed(self);
    }

    fn end_threads(&self) {
        Self::end_threads(self);
    }

    fn interrupt_threads(&self) {
        Self::interrupt_threads(self);
    }

    fn abandon(&self) {
        self.end_threads();
        // Nobody answers: each thread drops the question when it ends.
        self.drain();
    }

    fn stats(&self) -> Stats {
        Self::stats(self)
    }

    fn plug(&self, lun: Lun) -> Result<(), ServerError> {
        let value = format!("{}:{}", lun.target, lun.lun);
        let (image, unit) = open_unit(lun)?;
        let plugged = self.call(0, |_, done| Command::Plug(Box::new(unit), done));
        let place = plugged.map_err(io::Error::other)?.map_err(|remedy| no_unit(value, remedy))?;
        self.backend.images().set(place, Some(image));
        Ok(())
    }

    fn unplug(&self, target: u8, lun: u16) -> Result<(), ServerError> {
        let unplugged = self.call(0, |_, done| Command::Unplug { target, lun, done });
        let Some(place) = unplugged.map_err(io::Error::other)? else {
            return Err(no_unit(format!("{target}:{lun}"), "give the address of a unit that is there"));
        };
        self.backend.images().set(place, None);
        Ok(())
    }
}
