//! The life of a served device: one client after the other, pause, drain, flush, stop. It outlives its clients.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::notify::Waker;
use super::options::{Lun, ServerError, no_unit};
use super::stats::Stats;
use crate::memory::BusErrors;
use crate::mutex::lock;

/// What the server and its operator ask of a device and its threads, whatever the protocol.
///
/// A hold is counted: the device takes requests while no hold is left. Each call returns once every thread of the device
/// knows; after the threads have ended it returns at once.
pub(super) trait DeviceLifecycle: Send + Sync {
    /// The state that all devices have.
    fn lifecycle(&self) -> &Lifecycle;

    /// Serves a client until it goes or is let go; then lets what is in flight complete. The caller may serve the next one.
    ///
    /// # Errors
    /// If this client cannot be served; the device is as before.
    fn serve_client(self: Arc<Self>, stream: UnixStream, next: NextClient<'_>) -> io::Result<()>;

    /// Lets the client go that is there: what it has sent and was not begun is forgotten.
    fn drop_client(&self) {
        self.lifecycle().hang_up();
    }

    /// Adds a hold (`true`) or takes one away.
    fn hold(&self, hold: bool);

    /// Waits until nothing is in flight. The caller has a hold.
    fn drain(&self);

    /// Flushes the images and tells whether that went well. The device is held and drained.
    fn flush(&self) -> bool;

    /// The images' `Info` has changed: tells the guest.
    fn config_changed(&self);

    /// Ends the threads, whatever they are at. Returns at once.
    fn end_threads(&self);

    /// Frees the threads from system calls that a client makes them hang in.
    fn interrupt_threads(&self);

    /// Ends the threads as a kill does, without draining, and returns when they do nothing more. Operations already at an image
    /// still land. For tests of recovery.
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

/// The socket at which the next client may be waiting while one is served.
pub(super) struct NextClient<'a> {
    listener: Option<&'a UnixListener>,
    told: bool,
}

impl<'a> NextClient<'a> {
    pub(super) const fn new(listener: Option<&'a UnixListener>) -> Self {
        Self { listener, told: false }
    }

    /// Whether the listener is still of interest, to be polled.
    pub(super) fn listener(&self) -> Option<BorrowedFd<'a>> {
        self.listener.filter(|_| !self.told).map(AsFd::as_fd)
    }

    /// Says, once, that a client waits while another is served: one that says nothing is not let go for that.
    pub(super) fn tell_if_waiting(&mut self) {
        let Some(listener) = self.listener() else { return };
        if matches!(poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&NOW)), Ok(1..)) {
            self.told = true;
            tracing::warn!(
                "another client waits while one is served; to let that one go: blk-host ctl disconnect"
            );
        }
    }
}

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// How long a client may take over a message that it has begun, its first message, or the answer to one of ours.
const PATIENCE: Duration = Duration::from_secs(60);

/// The client of the moment, whether an operator has paused the device, whether its end has begun.
pub(super) struct Lifecycle {
    clients: AtomicU64,
    client: Mutex<Option<UnixStream>>,
    /// Orders pause and resume. Nobody else waits for it: they may take long.
    pausing: Mutex<()>,
    paused: AtomicBool,
    stopping: AtomicBool,
    stop: Waker,
    patience_ms: AtomicU64,
    bus_errors: Arc<BusErrors>,
}

impl Lifecycle {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            clients: AtomicU64::new(0),
            client: Mutex::new(None),
            pausing: Mutex::new(()),
            paused: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop: Waker::new()?,
            patience_ms: AtomicU64::new(PATIENCE.as_millis() as u64),
            bus_errors: Arc::default(),
        })
    }

    /// A client has come. False if it is not to be served, since the end has begun.
    pub(super) fn connect(&self, stream: UnixStream) -> bool {
        let mut client = lock(&self.client);
        if self.is_stopping() {
            return false;
        }
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.bus_errors.forget();
        *client = Some(stream);
        true
    }

    /// The client has gone.
    pub(super) fn disconnect(&self) {
        *lock(&self.client) = None;
    }

    /// Whether the client that is served has closed its connection, or we have.
    pub(super) fn client_has_gone(&self) -> bool {
        let client = lock(&self.client);
        let gone = |client| matches!(poll(&mut [PollFd::new(client, PollFlags::RDHUP)], Some(&NOW)), Ok(1..));
        client.as_ref().is_some_and(gone)
    }

    /// Ends the connection of the client that is there: whoever serves it sees its socket closed.
    pub(super) fn hang_up(&self) {
        if let Some(client) = &*lock(&self.client) {
            // It may have been closed by the client.
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Pauses or resumes, by `hold` where that is a change.
    pub(super) fn set_paused(&self, pause: bool, hold: impl FnOnce(bool)) {
        let _one_at_a_time = lock(&self.pausing);
        if self.paused.load(Ordering::Relaxed) != pause {
            hold(pause);
            self.paused.store(pause, Ordering::Relaxed);
        }
    }

    /// Begins the end: nobody waits for a client any more. The caller lets the one go that is there.
    pub(super) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stop.wake();
    }

    /// Who is told if memory of the client goes away. Whoever polls the device's rings looks at it, and lets the client go.
    pub(super) const fn bus_errors(&self) -> &Arc<BusErrors> {
        &self.bus_errors
    }

    /// Lets the client go if its memory has gone away.
    #[inline]
    pub(super) fn check_memory(&self) {
        if self.bus_errors.have_come() {
            self.memory_is_gone();
        }
    }

    #[cold]
    fn memory_is_gone(&self) {
        self.bus_errors.forget();
        tracing::warn!(
            "the client is let go: memory that it shares has gone away (SIGBUS): a file that was cut short, or no room for it"
        );
        self.hang_up();
    }

    /// How long a client may keep the device waiting.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms.load(Ordering::Relaxed))
    }

    pub(super) fn set_patience(&self, patience: Duration) {
        let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        self.patience_ms.store(patience_ms.max(1), Ordering::Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Readable once the end has begun.
    pub(super) const fn stop_waker(&self) -> &Waker {
        &self.stop
    }

    /// The part of [`Stats`] that all devices have.
    pub(super) fn stats(&self) -> Stats {
        Stats {
            clients: self.clients.load(Ordering::Relaxed),
            connected: lock(&self.client).is_some(),
            paused: self.paused.load(Ordering::Relaxed),
            ..Stats::default()
        }
    }
}
