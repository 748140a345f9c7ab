//! One client: its socket, from the first message to the last.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{SendFlags, send};
use vhost::vhost_user::{BackendReqHandler, Error};
use zerocopy::IntoBytes as _;

use super::handler::Handler;
use super::own::{self, Header};
use crate::server::shared::Shared;

/// The client, as others than its own thread see it.
pub(in crate::server) struct Peer {
    stream: UnixStream,
    /// Where we send requests of our own (SET_BACKEND_REQ_FD).
    requests: Option<OwnedFd>,
}

impl Peer {
    /// Ends the connection: its thread sees the socket closed.
    pub(in crate::server) fn hang_up(&self) {
        // It may have been closed by the client.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    pub(in crate::server) fn set_requests(&mut self, channel: OwnedFd) {
        self.requests = Some(channel);
    }

    /// Tells the client that the configuration space has changed.
    pub(in crate::server) fn config_changed(&self) -> Result<(), String> {
        let requests = self.requests.as_ref().ok_or("the client takes no requests from its backend")?;
        match send(requests, Header::CONFIG_CHANGE.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(Header::BYTES) => Ok(()),
            Ok(_) => Err("the client does not read its backend's requests".into()),
            Err(errno) => Err(format!("the socket for requests to the client fails: {errno}")),
        }
    }
}

/// Serves a client until it goes, then lets what is in flight complete.
pub(in crate::server) fn serve_client(shared: &Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    let peek = stream.try_clone()?;
    if !shared.connect(Peer { stream: stream.try_clone()?, requests: None }) {
        return Ok(());
    }
    let handler = Arc::new(Mutex::new(Handler::new(Arc::clone(shared))));
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
    tracing::info!(device = shared.device.name(), "a client has connected");
    loop {
        let header = Header::peek(&peek);
        let handled = match header {
            Some(header) if own::takes(header) => own::handle(shared, &mut lock(&handler), &peek),
            _ => requests.handle_request(),
        };
        let mut handler = lock(&handler);
        let refused = handler.take_refusal();
        match (handled, refused) {
            (Ok(()), _) => handler.replied(),
            // The crate has answered that it failed, or the client reads for itself what has become of it.
            (Err(_), Some(refusal))
                if refusal.tolerable || header.is_some_and(|header| handler.was_answered(header)) =>
            {
                tracing::warn!("a request of the client failed: {}", refusal.why);
            }
            (Err(Error::Disconnected), _) => {
                tracing::info!("the client has gone");
                break;
            }
            (Err(_), Some(refusal)) => {
                tracing::warn!("the client is let go: {}", refusal.why);
                break;
            }
            (Err(error), None) => {
                let request = header.map(|header| header.request);
                tracing::warn!(request, "the client is let go: {error}");
                break;
            }
        }
    }
    // What the client owes us it no longer pays: a thread that hangs in a descriptor of its is freed.
    lock(&handler).close();
    shared.disconnect();
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
