//! A PCI device over vfio-user: what a client's messages do to it, whole and broken, with requests under way and without. Server
//! and client are in this process, with a socket between them; every wait has a deadline. That real machines drive it is in
//! `guests`.

mod ahci;
mod dma;
mod interrupts;
mod life;
mod messages;
#[cfg(feature = "mutants")]
mod mutants;
mod silence;
mod stream;
mod stub;
mod throttle;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ata_model::DriveConfig;
use blk_core::storage::CacheMode;
use host_std::backend::{Backend, FileBackend, FileOptions};
use host_std::fault::Faulty;
use host_std::memory::MappedMemory;
use host_std::server::vfio_user::devices;
use host_std::server::{Controller, ServeError, Server};
use host_std::testing::client::vfio_user::VfioUser;
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the server waits for a client in the tests of clients that keep it waiting.
const SHORT: Duration = Duration::from_millis(300);

/// An image, and the socket of the AHCI controller that it is at.
struct Disk {
    folder: TempDir,
    patience: Duration,
}

impl Disk {
    fn new() -> Self {
        let disk = Self { folder: TempDir::new().unwrap(), patience: PATIENCE };
        std::fs::File::create(disk.path("image")).unwrap().set_len(IMAGE_BYTES).unwrap();
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Serves it, with faults, if there are to be any.
    fn serve(&self, faults: &str) -> Served {
        let faulty = |backend| match faults {
            "" => backend,
            plan => Arc::new(Faulty::new(backend, plan.parse().unwrap())),
        };
        self.serve_under(faulty)
    }

    /// Serves it with a layer over its image.
    fn serve_under(&self, layer: impl FnOnce(Arc<dyn Backend>) -> Arc<dyn Backend>) -> Served {
        let options = FileOptions { lock_wait: PATIENCE, ..FileOptions::new(CacheMode::WriteBack) };
        let backend = layer(Arc::new(FileBackend::open(self.path("image"), &options).unwrap()));
        let device = devices::ahci(vec![DriveConfig::new("TEST DISK", "S")], true).unwrap();
        let handles = vec![backend.handle().unwrap()];
        let server =
            Arc::new(Server::pci("ahci", device, handles).unwrap().with_client_patience(self.patience));
        let (controller, thread) = self.listen(server);
        Served { controller, backend, thread: Some(thread) }
    }

    /// Serves whatever it is at the socket.
    fn listen(&self, server: Arc<Server>) -> (Controller, JoinHandle<Result<(), ServeError>>) {
        let _ = std::fs::remove_file(self.path("socket"));
        let listener = UnixListener::bind(self.path("socket")).unwrap();
        let controller = server.controller();
        (controller, std::thread::spawn(move || server.serve(&listener)))
    }

    fn connect(&self) -> VfioUser {
        VfioUser::connect(&self.path("socket"), PATIENCE).unwrap()
    }

    /// A client that has said nothing yet.
    fn stranger(&self) -> VfioUser {
        VfioUser::new(UnixStream::connect(self.path("socket")).unwrap(), PATIENCE).unwrap()
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.path("image")).unwrap()
    }
}

/// A server at work. It is stopped when it is dropped.
struct Served {
    controller: Controller,
    backend: Arc<dyn Backend>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Served {
    fn in_flight(&self) -> u32 {
        self.controller.stats().queues[0].in_flight
    }

    fn fdatasyncs(&self) -> u64 {
        self.backend.counts().fdatasync_calls
    }

    /// Ends it as SIGTERM does.
    fn stop(mut self) -> Result<(), ServeError> {
        self.controller.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.controller.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// The memory of a guest: its first bytes are what the driver needs, data follows.
const MEMORY_BYTES: usize = 4 << 20;

fn shared() -> MappedMemory {
    MappedMemory::shared(&[(blk_core::units::GuestAddr(0), MEMORY_BYTES)]).unwrap()
}

fn pattern(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8 ^ seed ^ (at >> 9) as u8).collect()
}
