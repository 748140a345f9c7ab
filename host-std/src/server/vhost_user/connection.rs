//! One client: its socket, from the first message to the last.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::device::VhostUserDevice;
use super::handler::Handler;
use super::header::Header;
use super::raw_messages;
use crate::mutex::lock;
use crate::server::lifecycle::{Lifecycle, NextClient};

/// Serves a client until it goes, then lets what is in flight complete.
pub(super) fn serve_client(
    device: &Arc<VhostUserDevice>,
    stream: UnixStream,
    mut next: NextClient<'_>,
) -> io::Result<()> {
    let peek = stream.try_clone()?;
    let patience = device.lifecycle.patience();
    // A client that takes no replies is let go.
    stream.set_write_timeout(Some(patience))?;
    if !device.connect(stream.try_clone()?) {
        return Ok(());
    }
    let handler = Arc::new(Mutex::new(Handler::new(Arc::clone(device))));
    let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
    tracing::info!("a client has connected");
    let mut first = true;
    loop {
        let until = std::mem::take(&mut first).then(|| Instant::now() + patience);
        let lifecycle = &*device.lifecycle;
        let whole = wait_for_something(&peek, &mut next, lifecycle, until)
            && wait_for_all(&peek, lifecycle, patience);
        if lifecycle.is_stopping() {
            break;
        }
        if !whole {
            tracing::warn!("the client is let go: it has sent no whole message for {patience:?}");
            break;
        }
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

/// Waits for the beginning of a message, the end of the connection, or that of the server. False if none has come in time.
fn wait_for_something(
    stream: &UnixStream,
    next: &mut NextClient<'_>,
    lifecycle: &Lifecycle,
    until: Option<Instant>,
) -> bool {
    // The end of the server ends the connection too, but where that fails the client must not keep the server.
    while !lifecycle.is_stopping() {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let message = PollFd::new(stream, PollFlags::IN);
        let listener = next.listener();
        let another = listener.as_ref().map(|listener| PollFd::new(listener, PollFlags::IN));
        let stop = PollFd::new(lifecycle.stop_waker(), PollFlags::IN);
        let mut fds: Vec<_> = [Some(message), Some(stop), another].into_iter().flatten().collect();
        match poll(&mut fds, left.as_ref()) {
            Ok(0) => return false,
            // Interrupted, it looks again.
            Err(_) => {}
            Ok(_) if fds.first().is_some_and(|message| !message.revents().is_empty()) => return true,
            Ok(_) => next.tell_if_waiting(),
        }
    }
    true
}

/// Waits for the rest of a message that has begun, the end of the connection, or that of the server: the crate vhost would wait
/// for it without end. False if it has not come in time. Nearly always it is there.
fn wait_for_all(stream: &UnixStream, lifecycle: &Lifecycle, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    loop {
        let mut end = [PollFd::new(stream, PollFlags::RDHUP)];
        let stopping = lifecycle.is_stopping();
        if stopping || Header::peek_whole(stream) || matches!(poll(&mut end, Some(&NOW)), Ok(1..)) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        // No descriptor tells of more than one byte.
        std::thread::sleep(Duration::from_millis(1));
    }
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
