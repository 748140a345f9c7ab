//! One client: its socket, from the first message to the last.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::VhostUserDevice;
use super::handler::Handler;
use super::header::Header;
use super::raw_messages;

/// Serves a client until it goes, then lets what is in flight complete.
pub(super) fn serve_client(device: &Arc<VhostUserDevice>, stream: UnixStream) -> io::Result<()> {
    let peek = stream.try_clone()?;
    if !device.connect(stream.try_clone()?) {
        return Ok(());
    }
    let handler = Arc::new(Mutex::new(Handler::new(Arc::clone(device))));
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
    tracing::info!(device = device.backend.name(), "a client has connected");
    loop {
        let header = Header::peek(&peek);
        let handled = match header {
            Some(header) if raw_messages::takes(header) => {
                raw_messages::handle(device, &mut lock(&handler), &peek)
            }
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
    device.disconnect();
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
