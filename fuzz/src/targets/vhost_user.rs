//! The vhost-user server: any messages with any descriptors, and shared memory that changes meanwhile, from several clients one after
//! the other, to a virtio-blk device on an image in memory. No thread of the server may panic or hang: in the end a client that
//! behaves is served, and its flush succeeds.

mod descriptors;
mod messages;

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::image::image;
use host_std::server::{BlkOptions, Server};
use host_std::testing::client::{Blk, Options};
use rustix::fs::ftruncate;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use descriptors::Descriptors;
use messages::{HEADER_BYTES, message};

pub use messages::seeds;

/// How long the server waits for a client that owes it something.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the last client waits for the server: less than the fuzzer takes for a hang.
const LIMIT: Duration = Duration::from_secs(8);
/// Most descriptors that a message may have.
const FDS_MAX: usize = 40;

// What a step does, beside sending a message with a descriptor of the kind that its number says.
const WRITE_MEMORY: u8 = 24;
const CUT_MEMORY: u8 = 25;
const KICK: u8 = 26;
const READ_REPLIES: u8 = 27;
const NEXT_CLIENT: u8 = 28;
const WAIT: u8 = 29;
const STEPS: u8 = 32;
/// In a step's number: the message has its own header.
const RAW: u8 = 0x80;

struct Fixture {
    socket: PathBuf,
    _image: OwnedFd,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let (image, backend) = image();
    let options = BlkOptions { queues: 2, ..BlkOptions::default() };
    let server = Server::blk(&options, Arc::new(backend)).expect("a server").with_client_patience(PATIENCE);
    let socket = std::env::temp_dir().join(format!("vhost-user-fuzz-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("a socket");
    std::thread::spawn(move || server.serve(&listener));
    Fixture { socket, _image: image }
});

/// Runs steps, each behind a byte for its length and one for what it is. Where the first byte's lowest bit is set, the client has
/// negotiated, shared memory and started a ring before.
pub fn run(data: &[u8]) {
    let fixture = &*FIXTURE;
    let Some((&start, mut rest)) = data.split_first() else { return };
    let mut client = Client::connect(fixture, start & 1 != 0);
    while let [len, step, more @ ..] = rest {
        let bytes = more.get(..usize::from(*len)).unwrap_or(more);
        rest = more.get(bytes.len()..).unwrap_or_default();
        if step % STEPS == NEXT_CLIENT {
            // One at a time: the one before is gone first.
            drop(client);
            client = Client::connect(fixture, bytes.first().is_some_and(|byte| byte & 1 != 0));
        } else {
            client.step(*step, bytes);
        }
    }
    drop(client);
    let options =
        Options { size: 8, transfer_bytes: 4096, segment_bytes: 4096, timeout: LIMIT, ..Options::default() };
    let mut last = Blk::connect(&fixture.socket, options).expect("the next client is served");
    last.flush().expect("its flush succeeds");
}

struct Client {
    stream: UnixStream,
    descriptors: Descriptors,
}

impl Client {
    fn connect(fixture: &Fixture, prepared: bool) -> Self {
        let stream = UnixStream::connect(&fixture.socket).expect("the server listens");
        // Whatever the server does, nobody waits for it here.
        stream.set_nonblocking(true).expect("a socket");
        let client = Self { stream, descriptors: Descriptors::new() };
        if prepared {
            for (bytes, kind) in messages::preparation() {
                client.send(&bytes, &client.descriptors.of_kind(kind, &client.stream));
            }
        }
        client
    }

    fn step(&self, step: u8, bytes: &[u8]) {
        let at = bytes.first_chunk().map_or(0, |at| u64::from(u16::from_le_bytes(*at)));
        match step % STEPS {
            WRITE_MEMORY => {
                let _ = rustix::io::pwrite(self.descriptors.memory(), bytes.get(2..).unwrap_or_default(), at);
            }
            CUT_MEMORY => {
                let _ = ftruncate(self.descriptors.memory(), at);
            }
            KICK => self.descriptors.kick(),
            READ_REPLIES => {
                let _ = (&self.stream).read(&mut [0; 4096]);
            }
            WAIT => std::thread::sleep(Duration::from_millis(1)),
            kind => {
                let fds = self.descriptors.of_kind(kind, &self.stream);
                match bytes {
                    [request, flags, body @ ..] if step & RAW == 0 => {
                        self.send(&message(*request, *flags, body), &fds);
                    }
                    bytes => self.send(bytes, &fds),
                }
            }
        }
    }

    /// The descriptors come with the header, as the protocol has it.
    fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let (header, body) = bytes.split_at(bytes.len().min(HEADER_BYTES));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        // The server may have let this client go.
        let _ = sendmsg(&self.stream, &[IoSlice::new(header)], &mut ancillary, SendFlags::NOSIGNAL);
        if !body.is_empty() {
            let mut none = SendAncillaryBuffer::default();
            let _ = sendmsg(&self.stream, &[IoSlice::new(body)], &mut none, SendFlags::NOSIGNAL);
        }
    }
}
