//! Servers: our devices for the virtual machines of other programs.
//!
//! ```text
//! frontend -- socket --> vhost_user (protocol)      one thread: the caller of `serve`
//!    |                        |  commands
//!    +-- shared memory --> worker (rings, event loop)      one thread for each queue
//!           eventfds          |
//!                          virtio_blk_model::Queue --> backend::Handle, one for each queue
//! ```
//!
//! PCI devices are served over vfio-user: [`vfio_user`].
//!
#![doc = include_str!("../../tests/process.md")]

mod client_fd;
mod images;
mod interrupt;
mod lifecycle;
mod mailbox;
mod mapping;
mod mutant;
mod notify;
mod options;
mod queue;
mod stats;
pub mod vfio_user;
mod vhost_user;
mod virtio;
mod vring;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::lifecycle::{DeviceLifecycle, Lifecycle, NextClient};
use self::mailbox::mailbox;
use self::queue::Worker;
use self::stats::QueueCounters;
use self::vfio_user::{PciDevice, VfioUserDevice};
use self::vhost_user::{QueueThread, VhostUserDevice};
use self::virtio::{Blk, QueueGroup, Scsi, VirtioBackend};
use crate::backend::{Backend, Handle};

pub use mutant::Mutant;
#[cfg(feature = "mutants")]
pub use mutant::{current as current_mutant, set as set_mutant};
pub use options::{BlkOptions, Lun, ScsiOptions, ServerError};
pub use stats::{QueueStats, Stats};

/// Serving has ended for a reason other than [`Controller::stop`].
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The last flush failed: acknowledged writes may not be stable.
    #[error(
        "the flush at the end failed: what the guest wrote last may not be on the disk; check the image before it is used again"
    )]
    Flush,
}

/// A device and its threads, for one client after the other.
///
/// What the threads log is in the span (crate `tracing`) in which the server was made.
pub struct Server {
    device: Arc<dyn DeviceLifecycle>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// A virtio-blk device on an image.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn blk(options: &BlkOptions, backend: Arc<dyn Backend>) -> Result<Self, ServerError> {
        IdleServer::blk(options, backend)?.start(|| {})
    }

    /// A virtio-scsi host with logical units: 16 at most.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn scsi(options: &ScsiOptions, luns: Vec<Lun>) -> Result<Self, ServerError> {
        IdleServer::scsi(options, luns)?.start(|| {})
    }

    /// A PCI device with its images, over vfio-user. `name` is what its thread is called.
    ///
    /// # Errors
    /// [`ServerError::System`].
    pub fn pci(
        name: &'static str,
        device: Box<dyn PciDevice>,
        handles: Vec<Box<dyn Handle>>,
    ) -> Result<Self, ServerError> {
        IdleServer::pci(name, device, handles)?.start(|| {})
    }

    /// Lets a client go that takes longer than this over its first message, a message that it has begun, a reply of ours, or the
    /// answer to a request of ours. The default is a minute, so that a machine may be stopped for a while.
    #[must_use]
    pub fn with_client_patience(self, patience: Duration) -> Self {
        self.device.lifecycle().set_patience(patience);
        self
    }

    /// The operator's hand on it.
    #[must_use]
    pub fn controller(&self) -> Controller {
        Controller(Arc::clone(&self.device))
    }

    /// Serves one client after the other, until [`Controller::stop`]. Then the images are flushed. No error of a client, nor of
    /// accepting one, ends it.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve(&self, listener: &UnixListener) -> Result<(), ServeError> {
        while let Some(stream) = self.accept(listener) {
            self.serve_client(stream, NextClient::new(Some(listener)));
        }
        self.finish()
    }

    /// Waits for a client to connect. `None` once [`Controller::stop`] has been called.
    #[must_use]
    pub fn accept(&self, listener: &UnixListener) -> Option<UnixStream> {
        let lifecycle = self.device.lifecycle();
        // Whoever shares the socket may take the client that was seen.
        let _ = listener.set_nonblocking(true);
        let mut failed = None;
        loop {
            let stop = PollFd::new(lifecycle.stop_waker(), PollFlags::IN);
            // Interrupted, it looks again.
            let ready = poll(&mut [stop, PollFd::new(listener, PollFlags::IN)], failed.as_ref());
            if lifecycle.is_stopping() {
                return None;
            }
            if failed.take().is_none() && ready.is_err() {
                continue;
            }
            match listener.accept() {
                Ok((stream, _)) => return Some(stream),
                Err(error) if is_about_one_client(&error) => {}
                Err(error) => {
                    tracing::warn!("cannot accept a client: {error}; trying again");
                    failed = Some(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Serves one client that has connected, until it goes or [`Controller::stop`]. Then the images are flushed.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve_stream(&self, stream: UnixStream) -> Result<(), ServeError> {
        self.serve_client(stream, NextClient::new(None));
        self.finish()
    }

    fn serve_client(&self, stream: UnixStream, next: NextClient<'_>) {
        if let Err(error) = Arc::clone(&self.device).serve_client(stream, next) {
            tracing::warn!("a client is turned away: {error}; raise the limits on open files and memory");
            // What is missing may be there again when the next one comes.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends the queues' threads at once and leaves rings and in-flight regions as they are, as a kill does: for tests of what
    /// comes after. Operations that an image has begun still land. Returns once the threads do nothing more; the server is
    /// of no use then but to be stopped.
    pub fn abandon(&self) {
        self.device.abandon();
    }

    /// Flushes the images, with nothing in flight.
    fn finish(&self) -> Result<(), ServeError> {
        self.device.hold(true);
        self.device.drain();
        let flushed = self.device.flush();
        self.device.hold(false);
        if flushed { Ok(()) } else { Err(ServeError::Flush) }
    }
}

/// A server that has opened all that it works with, and started no thread: for a process that restricts what threads it will
/// start may do.
pub struct IdleServer {
    device: Arc<dyn DeviceLifecycle>,
    /// Name, and what the thread does.
    threads: Vec<(String, Box<dyn FnOnce() + Send>)>,
}

impl IdleServer {
    /// As [`Server::blk`].
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn blk(options: &BlkOptions, backend: Arc<dyn Backend>) -> Result<Self, ServerError> {
        let device = Blk::new(options, backend)?;
        let threads = device.threads()?.into_iter().map(|rings| (1, rings));
        Self::new(threads.collect(), Box::new(device))
    }

    /// As [`Server::scsi`].
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn scsi(options: &ScsiOptions, luns: Vec<Lun>) -> Result<Self, ServerError> {
        let (device, count, rings) = Scsi::new(options, luns)?;
        Self::new(vec![(count, rings)], Box::new(device))
    }

    /// As [`Server::pci`].
    ///
    /// # Errors
    /// [`ServerError::System`].
    pub fn pci(
        name: &'static str,
        device: Box<dyn PciDevice>,
        handles: Vec<Box<dyn Handle>>,
    ) -> Result<Self, ServerError> {
        let (device, run) = VfioUserDevice::new(device, handles)?;
        Ok(Self { device, threads: vec![(format!("pci-{name}"), in_context(run))] })
    }

    /// A thread for each group of rings: how many, and what works on them.
    fn new(
        groups: Vec<(usize, Box<dyn QueueGroup>)>,
        backend: Box<dyn VirtioBackend>,
    ) -> Result<Self, ServerError> {
        let lifecycle = Arc::new(Lifecycle::new()?);
        let mut queue_threads = Vec::new();
        let mut counters = Vec::new();
        let mut threads = Vec::new();
        for (count, rings) in groups {
            let first = counters.len();
            let own: Vec<_> = (0..count).map(|_| Arc::new(QueueCounters::default())).collect();
            let (mailbox, inbox) = mailbox()?;
            let worker = Worker::new(rings, first as u16, &own, inbox, Arc::clone(&lifecycle))
                .map_err(io::Error::from)?;
            threads.push((format!("blk-queue-{first}"), in_context(move || worker.run())));
            queue_threads.push(QueueThread { mailbox, first });
            counters.extend(own);
        }
        let device = Arc::new(VhostUserDevice::new(backend, lifecycle, queue_threads, counters));
        Ok(Self { device, threads })
    }

    /// The operator's hand on it: of use once the threads have been started. Until then, what asks one of them waits.
    #[must_use]
    pub fn controller(&self) -> Controller {
        Controller(Arc::clone(&self.device))
    }

    /// Starts the threads. Each calls `begin` first.
    ///
    /// # Errors
    /// [`ServerError::System`].
    pub fn start(self, begin: fn()) -> Result<Server, ServerError> {
        // Its drop ends those that have started, should one fail.
        let mut server = Server { device: self.device, threads: Vec::new() };
        for (name, run) in self.threads {
            let begun = move || {
                begin();
                run();
            };
            server.threads.push(std::thread::Builder::new().name(name).spawn(begun)?);
        }
        Ok(server)
    }
}

/// What a thread does, in the span of the log in which the server was made.
fn in_context(run: impl FnOnce() + Send + 'static) -> Box<dyn FnOnce() + Send> {
    #[cfg(feature = "mutants")]
    let switched_on = mutant::current();
    let span = tracing::Span::current();
    Box::new(move || {
        let _in_span = span.enter();
        #[cfg(feature = "mutants")]
        mutant::set(switched_on);
        run();
    })
}

impl Drop for Server {
    /// Ends the threads. What is in flight completes in the image, and its client does not hear of it.
    fn drop(&mut self) {
        self.device.end_threads();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                self.device.interrupt_threads();
                std::thread::sleep(Duration::from_millis(1));
            }
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// How long to wait after the listening socket failed. It may be out of descriptors or memory, which others give back.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Whether the next client may be accepted at once.
fn is_about_one_client(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED | libc::EAGAIN))
}

/// The operator's hand on a server. A clone is another hand on the same.
#[derive(Clone)]
pub struct Controller(Arc<dyn DeviceLifecycle>);

impl Controller {
    /// Takes no more requests, until [`Self::resume`]; what is in flight goes on. Returns once every queue knows.
    pub fn pause(&self) {
        self.set_paused(true);
    }

    /// Takes requests again.
    pub fn resume(&self) {
        self.set_paused(false);
    }

    /// Returns when nothing is in flight. No request is taken until then.
    pub fn drain(&self) {
        self.0.hold(true);
        self.0.drain();
        self.0.hold(false);
    }

    /// The backend's `Info` has changed: tells the guest.
    pub fn resized(&self) {
        self.0.config_changed();
    }

    /// Adds a logical unit to a virtio-scsi host, and tells the guest.
    ///
    /// # Errors
    /// [`ServerError`] if there is one at its address, or no room, or this is no virtio-scsi host.
    pub fn hotplug(&self, lun: Lun) -> Result<(), ServerError> {
        self.0.plug(lun)
    }

    /// Takes a logical unit away from a virtio-scsi host: its commands are aborted, and the guest is told.
    ///
    /// # Errors
    /// [`ServerError`] if there is none.
    pub fn unplug(&self, target: u8, lun: u16) -> Result<(), ServerError> {
        self.0.unplug(target, lun)
    }

    /// Lets the client go that is there, if there is one; the next may come. Returns at once.
    pub fn disconnect(&self) {
        self.0.drop_client();
    }

    /// What the server has done.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Ends [`Server::serve`]: what is in flight completes, the client is let go, the images are flushed. Returns at once.
    pub fn stop(&self) {
        self.0.lifecycle().begin_stop();
        self.0.drop_client();
    }

    fn set_paused(&self, pause: bool) {
        self.0.lifecycle().set_paused(pause, |hold| self.0.hold(hold));
    }
}
