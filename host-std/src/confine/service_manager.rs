//! The connection to a service manager (sd_notify(3)), made before the process confines itself: no
//! socket is made later.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A service manager that wants to be told when the service is ready, and when it stops.
#[derive(Debug)]
pub struct ServiceManager(UnixDatagram);

impl ServiceManager {
    /// Connects to the one that `NOTIFY_SOCKET` names. `None` if this process was not started by
    /// one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect() -> io::Result<Option<Self>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Some(Self(socket)))
    }

    /// Tells it a state, such as `READY=1`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn tell(&self, state: &str) -> io::Result<()> {
        self.0.send(state.as_bytes()).map(drop)
    }
}
