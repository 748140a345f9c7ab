//! A disk that this process serves.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::backend::Backend;
use crate::server::{BlkOptions, Controller, ServeError, Server, ServerError};

/// A disk cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeDiskError {
    /// Its socket or its thread cannot be made.
    #[error(
        "{path}: cannot serve a disk on this socket: {error}; its folder must be writable, and its path shorter than 108 bytes"
    )]
    System {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        error: io::Error,
    },
    /// The device cannot be made.
    #[error(transparent)]
    Device(#[from] ServerError),
}

/// A virtio-blk disk, served over vhost-user by a thread of this process. Dropped, it is stopped.
pub struct ServedDisk {
    controller: Controller,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl ServedDisk {
    /// Serves `backend` on a new socket.
    ///
    /// # Errors
    /// [`ServeDiskError`].
    pub fn start(backend: Arc<dyn Backend>, socket: &Path) -> Result<Self, ServeDiskError> {
        let failed = |error| ServeDiskError::System { path: socket.into(), error };
        let listener = UnixListener::bind(socket).map_err(failed)?;
        let server = Server::blk(&BlkOptions::default(), backend)?;
        let controller = server.controller();
        let serve = move || server.serve(&listener);
        let thread = std::thread::Builder::new().name("serve-disk".into()).spawn(serve).map_err(failed)?;
        Ok(Self { controller, thread: Some(thread) })
    }

    /// Stops it once nothing is in flight, and flushes the image.
    ///
    /// # Errors
    /// [`ServeError`] if the flush fails.
    pub fn stop(mut self) -> Result<(), ServeError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ServeError> {
        self.controller.stop();
        // A panic has been printed; what it left is not known to be stable.
        self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap_or(Err(ServeError::Flush)))
    }
}

impl Drop for ServedDisk {
    fn drop(&mut self) {
        // Who wants to know calls `stop`.
        let _ = self.end();
    }
}
