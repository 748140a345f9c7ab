//! The life of a vhost-user device: what a client's messages do to rings with requests under way, to the cache setting, and to
//! a server that takes another's place. Server and client are in this process, with a socket between them; every wait has a
//! deadline. Servers that are killed for real, garbage and the policies of errors are in `faults*.rs` and `serve.rs`.

mod cache;
mod descriptors;
mod memory_gone;
#[cfg(feature = "mutants")]
mod mutants;
mod recovery;
mod rings;
mod scsi;
mod silence;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blk_core::storage::CacheMode;
use host_std::backend::{Backend, FileBackend, FileOptions};
use host_std::fault::Faulty;
use host_std::server::{BlkOptions, Controller, ServeError, Server};
use host_std::testing::client::{Blk, Options, Payload, Request, Ticket};
use tempfile::TempDir;
use vhost::VhostBackend as _;

const BLOCK: usize = 4096;
const BLOCK_SECTORS: u64 = 8;
const IMAGE_BYTES: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

fn options(queues: u16) -> Options {
    let bytes = BLOCK as u32;
    Options { queues, transfer_bytes: bytes, segment_bytes: bytes, timeout: PATIENCE, ..Options::default() }
}

/// An image, and the socket of what serves it.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        let disk = Self(TempDir::new().unwrap());
        std::fs::File::create(disk.path("image")).unwrap().set_len(IMAGE_BYTES).unwrap();
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Serves it as a virtio-blk device with a write-back cache, and with faults, if there are to be any.
    fn serve(&self, queues: u16, faults: &str) -> Served {
        let options = BlkOptions { queues, ..BlkOptions::default() };
        self.serve_with(faults, |backend| Server::blk(&options, backend).unwrap())
    }

    fn serve_with(&self, faults: &str, server: impl FnOnce(Arc<dyn Backend>) -> Server) -> Served {
        let options = FileOptions { lock_wait: PATIENCE, ..FileOptions::new(CacheMode::WriteBack) };
        let mut backend: Arc<dyn Backend> =
            Arc::new(FileBackend::open(self.path("image"), &options).unwrap());
        if !faults.is_empty() {
            backend = Arc::new(Faulty::new(backend, faults.parse().unwrap()));
        }
        let server = Arc::new(server(Arc::clone(&backend)));
        let _ = std::fs::remove_file(self.path("socket"));
        let listener = UnixListener::bind(self.path("socket")).unwrap();
        let controller = server.controller();
        let serving = Arc::clone(&server);
        #[cfg(feature = "mutants")]
        let mutant = host_std::server::current_mutant();
        let thread = std::thread::spawn(move || {
            #[cfg(feature = "mutants")]
            host_std::server::set_mutant(mutant);
            serving.serve(&listener)
        });
        Served { controller, backend, server, thread: Some(thread) }
    }

    fn connect(&self, options: Options) -> Blk {
        let mut guest = Blk::connect(self.path("socket"), options).unwrap();
        // That it knows of a write-back cache holds when the server has taken the next message, and not before the reply.
        guest.session_mut().message(|frontend| frontend.get_features()).unwrap();
        guest
    }
}

/// A server at work. It is stopped when it is dropped.
struct Served {
    controller: Controller,
    backend: Arc<dyn Backend>,
    server: Arc<Server>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Served {
    /// Ends it as a kill does.
    fn kill(self) {
        self.server.abandon();
    }

    /// Waits until a queue has so many requests in flight.
    fn until_in_flight(&self, queue: usize, count: u32) {
        until("the requests are taken", || self.controller.stats().queues[queue].in_flight == count);
    }

    /// Operations so far that made something stable.
    fn durable(&self) -> u64 {
        let counts = self.backend.counts();
        counts.fdatasync_calls + counts.dsync_writes + counts.fua_writes
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

fn contents(block: u64, round: u8) -> [u8; BLOCK] {
    [(block as u8).wrapping_mul(31) ^ round; BLOCK]
}

/// Makes a write of each block available, and tells the device.
fn submit_writes(guest: &mut Blk, queue: u16, blocks: impl Iterator<Item = u64>, round: u8) -> Vec<Ticket> {
    let tickets = blocks.map(|block| {
        let data = contents(block, round);
        let request = Request::Write { sector: block * BLOCK_SECTORS, data: Payload::Bytes(&data) };
        guest.submit(queue, request).unwrap()
    });
    let tickets = tickets.collect();
    guest.session_mut().kick(queue).unwrap();
    tickets
}

/// Takes what has come back, without waiting, and returns how many succeeded.
fn take_done(guest: &mut Blk, queue: u16) -> usize {
    let done = std::iter::from_fn(|| guest.poll(queue).unwrap());
    done.inspect(|done| assert!(done.is_ok(), "{done:?}")).count()
}

fn wait_all(guest: &mut Blk, queue: u16, tickets: &[Ticket]) {
    for &ticket in tickets {
        assert!(guest.wait_for(ticket).unwrap().is_ok());
    }
    assert_eq!(guest.session().in_flight(queue), 0);
}

fn check(guest: &mut Blk, queue: u16, blocks: impl Iterator<Item = u64>, round: u8) {
    for block in blocks {
        let request = Request::Read { sector: block * BLOCK_SECTORS, bytes: BLOCK as u32 };
        let ticket = guest.submit(queue, request).unwrap();
        assert!(guest.wait_for(ticket).unwrap().is_ok());
        let mut back = [0; BLOCK];
        guest.data(ticket, &mut back);
        assert_eq!(back, contents(block, round), "block {block}");
    }
}
