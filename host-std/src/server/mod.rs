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

mod blk;
mod device;
mod images;
mod mutant;
mod scsi;
mod served;
mod shared;
mod stats;
pub mod vfio_user;
mod vhost_user;

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use self::blk::Blk;
use self::device::{Device, Rings};
use self::scsi::Scsi;
use self::served::Served;
use self::shared::{Shared, Thread};
use self::stats::QueueCounters;
use self::vfio_user::{Pci, PciDevice};
use self::vhost_user::{Waker, Worker};

use crate::backend::{Backend, Handle, OpenError};

pub use mutant::Mutant;
#[cfg(feature = "mutants")]
pub use mutant::{current as current_mutant, set as set_mutant};
pub use stats::{QueueStats, Stats};

/// How a virtio-blk device is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkOptions {
    /// The serial that the guest reads: 20 bytes at most.
    pub serial: String,
    /// Request queues, each with a thread of its own: 1 to 64.
    pub queues: u16,
    /// Most entries of a queue: a power of two, 1024 at most.
    pub queue_size_max: u16,
    /// Refuse writes, although the image would take them.
    pub read_only: bool,
    /// Offer the experimental FUA write (virtio-spec issue 237).
    pub experimental_fua: bool,
}

impl BlkOptions {
    /// The serial as the guest reads it.
    fn serial_bytes(&self) -> Result<[u8; 20], ServerError> {
        let bytes = self.serial.as_bytes();
        let mut serial = [0; 20];
        let Some(start) = serial.get_mut(..bytes.len()) else {
            let (option, value, remedy) = ("serial", self.serial.clone(), "give 20 bytes at most");
            return Err(ServerError::Option { option, value, remedy });
        };
        start.copy_from_slice(bytes);
        Ok(serial)
    }
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            queues: 1,
            queue_size_max: 256,
            read_only: false,
            experimental_fua: false,
        }
    }
}

/// How a virtio-scsi host is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScsiOptions {
    /// Request queues, beside the control and the event queue: 1 to 62. One thread serves them all.
    pub queues: u16,
    /// Most entries of a queue: a power of two, 1024 at most.
    pub queue_size_max: u16,
}

impl Default for ScsiOptions {
    fn default() -> Self {
        Self { queues: 1, queue_size_max: 256 }
    }
}

/// A logical unit of a virtio-scsi host.
pub struct Lun {
    /// The target's number.
    pub target: u8,
    /// The unit's number in its target.
    pub lun: u16,
    /// What it calls itself, and what it does.
    pub config: scsi_model::Config,
    /// Its image.
    pub backend: Arc<dyn Backend>,
}

/// A server cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An option is out of range.
    #[error("{option} may not be {value}: {remedy}")]
    Option {
        /// Which.
        option: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        remedy: &'static str,
    },
    /// A handle of the image could not be made.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// A thread or descriptor could not be made.
    #[error("cannot start the server: {0}; raise the limits on processes and open files")]
    System(#[from] io::Error),
}

/// Serving has ended for a reason other than [`Controller::stop`].
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listening socket failed.
    #[error("the listening socket failed: {0}")]
    Socket(#[from] io::Error),
    /// The last flush failed: acknowledged writes may not be stable.
    #[error(
        "the flush at the end failed: what the guest wrote last may not be on the disk; check the image before it is used again"
    )]
    Flush,
}

/// A device and its threads, for one client after the other.
pub struct Server {
    served: Arc<dyn Served>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    /// A virtio-blk device on an image.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn blk(options: &BlkOptions, backend: Arc<dyn Backend>) -> Result<Self, ServerError> {
        let device = Blk::new(options, backend)?;
        let threads = device.threads()?.into_iter().map(|rings| (1, rings));
        Self::start(threads.collect(), Box::new(device))
    }

    /// A virtio-scsi host with logical units: 16 at most.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn scsi(options: &ScsiOptions, luns: Vec<Lun>) -> Result<Self, ServerError> {
        let (device, count, rings) = Scsi::new(options, luns)?;
        Self::start(vec![(count, rings)], Box::new(device))
    }

    /// A PCI device with its images, over vfio-user. `name` is what logs call it; a client that keeps it waiting for `patience`
    /// is let go.
    ///
    /// # Errors
    /// [`ServerError::System`].
    pub fn pci(
        name: &'static str,
        device: Box<dyn PciDevice>,
        handles: Vec<Box<dyn Handle>>,
        patience: Duration,
    ) -> Result<Self, ServerError> {
        let (served, thread) = Pci::start(name, device, handles, patience)?;
        Ok(Self { served, threads: vec![thread] })
    }

    /// Starts a thread for each group of rings: how many, and what works on them.
    fn start(groups: Vec<(usize, Box<dyn Rings>)>, device: Box<dyn Device>) -> Result<Self, ServerError> {
        let mut ways = Vec::new();
        let mut counters = Vec::new();
        let mut workers = Vec::new();
        for (count, rings) in groups {
            let first = counters.len();
            let own: Vec<_> = (0..count).map(|_| Arc::new(QueueCounters::default())).collect();
            let waker = Arc::new(Waker::new()?);
            let (commands, received) = channel();
            let worker = Worker::new(rings, first as u16, &own, received, Arc::clone(&waker));
            workers.push((first, worker.map_err(io::Error::from)?));
            ways.push(Thread { commands, waker, first });
            counters.extend(own);
        }
        let shared = Arc::new(Shared::new(device, ways, counters, Waker::new()?));
        let mut server = Self { served: shared, threads: Vec::new() };
        for (first, worker) in workers {
            #[cfg(feature = "mutants")]
            let switched_on = mutant::current();
            let run = move || {
                #[cfg(feature = "mutants")]
                mutant::set(switched_on);
                worker.run();
            };
            let thread = std::thread::Builder::new().name(format!("blk-queue-{first}")).spawn(run)?;
            server.threads.push(thread);
        }
        Ok(server)
    }

    /// The operator's hand on it.
    #[must_use]
    pub fn controller(&self) -> Controller {
        Controller(Arc::clone(&self.served))
    }

    /// Serves one client after the other, until [`Controller::stop`]. Then the images are flushed.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve(&self, listener: &UnixListener) -> Result<(), ServeError> {
        while !self.served.is_stopping() {
            let stop = PollFd::new(self.served.stop_waker(), PollFlags::IN);
            let ready = poll(&mut [stop, PollFd::new(listener, PollFlags::IN)], None);
            if self.served.is_stopping() || ready.is_err() {
                continue;
            }
            match listener.accept() {
                Ok((stream, _)) => Arc::clone(&self.served).serve_client(stream)?,
                Err(error) => wait_out(error)?,
            }
        }
        self.finish()
    }

    /// Serves one client that has connected, until it goes or [`Controller::stop`]. Then the images are flushed.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn serve_stream(&self, stream: UnixStream) -> Result<(), ServeError> {
        Arc::clone(&self.served).serve_client(stream)?;
        self.finish()
    }

    /// Ends the queues' threads at once and leaves rings and in-flight regions as they are, as a kill does: for tests of what
    /// comes after. Operations that an image has begun still land. Returns once the threads do nothing more; the server is
    /// of no use then but to be stopped.
    pub fn abandon(&self) {
        self.served.abandon();
    }

    /// Flushes the images, with nothing in flight.
    fn finish(&self) -> Result<(), ServeError> {
        self.served.hold_and_drain();
        let flushed = self.served.flush();
        self.served.release();
        if flushed { Ok(()) } else { Err(ServeError::Flush) }
    }
}

impl Drop for Server {
    /// Ends the threads. What is in flight completes in the image, and its client does not hear of it.
    fn drop(&mut self) {
        self.served.end_threads();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// A client that could not be accepted: is it worth another try?
fn wait_out(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EINTR | libc::ECONNABORTED | libc::EAGAIN) => Ok(()),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
            tracing::warn!("cannot accept a client: {error}; trying again");
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        }
        _ => Err(error),
    }
}

fn check_ring_size(size: u16) -> Result<(), ServerError> {
    if size.is_power_of_two() && (2..=blk_core::virtq::SIZE_MAX).contains(&size) {
        return Ok(());
    }
    let remedy = "give a power of two from 2 to 1024";
    Err(ServerError::Option { option: "queue-size", value: size.to_string(), remedy })
}

/// The operator's hand on a server. A clone is another hand on the same.
#[derive(Clone)]
pub struct Controller(Arc<dyn Served>);

impl Controller {
    /// Takes no more requests, until [`Self::resume`]; what is in flight goes on. Returns once every queue knows.
    pub fn pause(&self) {
        self.0.set_paused(true);
    }

    /// Takes requests again.
    pub fn resume(&self) {
        self.0.set_paused(false);
    }

    /// Returns when nothing is in flight. No request is taken until then.
    pub fn drain(&self) {
        self.0.hold_and_drain();
        self.0.release();
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

    /// What the server has done.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Ends [`Server::serve`]: what is in flight completes, the client is let go, the images are flushed. Returns at once.
    pub fn stop(&self) {
        self.0.begin_stop();
    }
}
