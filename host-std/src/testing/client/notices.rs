//! The channel on which a server speaks first: changes of the configuration.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::{FrontendReqHandler, HandlerResult, VhostUserFrontendReqHandler};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::ClientError;
use crate::mutex::lock;

/// Counts the server's notices.
#[derive(Debug, Default)]
pub(super) struct Changes {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Changes {
    pub(super) fn count(&self) -> u64 {
        *lock(&self.count)
    }

    /// Waits until more than `known` notices came. Returns how many.
    pub(super) fn wait(&self, known: u64, timeout: Duration) -> u64 {
        let count = lock(&self.count);
        let waited = self.changed.wait_timeout_while(count, timeout, |count| *count <= known);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl VhostUserFrontendReqHandler for Changes {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        *lock(&self.count) += 1;
        self.changed.notify_all();
        Ok(0)
    }
}

/// Answers the server on a thread of its own, until it is dropped.
#[derive(Debug)]
pub(super) struct Notices {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    /// The server's end, until it has been sent.
    server_end: RawFd,
}

impl Notices {
    pub(super) fn new(changes: Arc<Changes>, reply_ack: bool) -> Result<Self, ClientError> {
        let mut handler = FrontendReqHandler::new(changes)?;
        handler.set_reply_ack_flag(reply_ack);
        let server_end = handler.get_tx_raw_fd();
        let stop = Arc::new(EventFd::new(EFD_NONBLOCK).map_err(ClientError::system("eventfd"))?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("notices".into())
            .spawn(
                move || {
                    while wait(&handler, &stopped).unwrap_or(false) && handler.handle_request().is_ok() {}
                },
            )
            .map_err(ClientError::system("cannot start a thread"))?;
        Ok(Self { stop, thread: Some(thread), server_end })
    }

    /// The descriptor to send to the server.
    pub(super) fn server_end(&self) -> RawFd {
        self.server_end
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        // An eventfd at 1 takes another write; a thread that has ended needs none.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for a message. False once it should stop.
fn wait(handler: &impl AsRawFd, stop: &EventFd) -> io::Result<bool> {
    // SAFETY: both descriptors are open as long as what owns them, which this call borrows.
    let (message, stop) =
        unsafe { (BorrowedFd::borrow_raw(handler.as_raw_fd()), BorrowedFd::borrow_raw(stop.as_raw_fd())) };
    let mut fds = [PollFd::new(&message, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
    loop {
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(fds[1].revents().is_empty()),
        }
    }
}
