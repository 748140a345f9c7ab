//! A deadline for messages: the crate vhost waits for an answer for ever, and takes a socket's own timeout for a reason to
//! try again.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::ClientError;
use crate::mutex::lock;

/// Shuts a socket down when an answer on it takes too long.
#[derive(Debug)]
pub(super) struct Watchdog {
    timeout: Duration,
    shared: Arc<WatchdogState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct WatchdogState {
    watch: Mutex<Watch>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
enum Watch {
    #[default]
    Idle,
    Until(Instant),
    Barked,
    End,
}

impl WatchdogState {
    fn lock(&self) -> MutexGuard<'_, Watch> {
        lock(&self.watch)
    }

    fn set(&self, watch: Watch) {
        *self.lock() = watch;
        self.changed.notify_all();
    }

    fn run(&self, socket: &UnixStream) {
        let mut watch = self.lock();
        loop {
            let now = Instant::now();
            watch = match *watch {
                Watch::End => return,
                Watch::Idle | Watch::Barked => {
                    self.changed.wait(watch).unwrap_or_else(PoisonError::into_inner)
                }
                Watch::Until(deadline) if now >= deadline => {
                    // A socket that is closed already has nobody wait on it.
                    let _ = socket.shutdown(Shutdown::Both);
                    *watch = Watch::Barked;
                    watch
                }
                Watch::Until(deadline) => {
                    let waited = self.changed.wait_timeout(watch, deadline - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Watchdog {
    pub(super) fn new(socket: &UnixStream, timeout: Duration) -> Result<Self, ClientError> {
        let socket = socket.try_clone().map_err(ClientError::system("dup"))?;
        let shared = Arc::new(WatchdogState::default());
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(move || its.run(&socket))
            .map_err(ClientError::system("cannot start a thread"))?;
        Ok(Self { timeout, shared, thread: Some(thread) })
    }

    /// Does what waits for answers on the socket, for as long as one wait may take.
    pub(super) fn watch<R>(
        &self,
        message: impl FnOnce() -> Result<R, ClientError>,
    ) -> Result<R, ClientError> {
        self.shared.set(Watch::Until(Instant::now() + self.timeout));
        let result = message();
        let barked = matches!(*self.shared.lock(), Watch::Barked);
        self.shared.set(Watch::Idle);
        match result {
            Err(_) if barked => Err(ClientError::NoAnswer { waited: self.timeout }),
            result => result,
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.set(Watch::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
