//! The vfio-user server: any stream of messages with any descriptors, to an AHCI controller on an image in memory. The server has to
//! let the client go and be there for the next one; a hang is a time limit exceeded.

use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::time::Duration;

use crate::image::{image, memory_file};
use ata_model::DriveConfig;
use host_std::server::Server;
use host_std::server::vfio_user::devices;
use host_std::server::vfio_user::protocol::{Flags, Header, RegionAccess, command};
use host_std::testing::client::vfio_user::map;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::IntoBytes as _;

const MEMORY_BYTES: u64 = 0x1_0000;
/// How long the server waits for a client that takes no replies.
const PATIENCE: Duration = Duration::from_millis(100);

struct Fixture {
    server: Server,
    _image: OwnedFd,
    memory: OwnedFd,
    signal: OwnedFd,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let (image, backend) = image();
    let handle = Box::new(backend.handle().expect("a handle"));
    let device = devices::ahci(vec![DriveConfig::new("FUZZ", "1")], true).expect("a controller");
    let server = Server::pci("ahci", device, vec![handle]).expect("a server").with_client_patience(PATIENCE);
    let memory = memory_file("memory", MEMORY_BYTES);
    let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an event");
    Fixture { server, _image: image, memory, signal }
});

/// Runs a stream: pieces, each behind a byte for its length and one for what comes with it. Where the first byte's lowest bit
/// is set, a client has agreed on a version, shared memory and switched the device on before.
pub fn run(data: &[u8]) {
    let fixture = &*FIXTURE;
    let Some((&start, mut rest)) = data.split_first() else { return };
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    // Nobody reads what comes back: that much is taken before the server has to wait.
    ours.set_nonblocking(true).expect("a socket");
    if start & 1 != 0 {
        send(&ours, &message(command::VERSION, &[0; 4]), &[]);
        send(&ours, &message(command::DMA_MAP, map(0, MEMORY_BYTES, 0).as_bytes()), &[&fixture.memory]);
        send(&ours, &write(7, 4, &[6, 0]), &[]);
    }
    while let [len, with, more @ ..] = rest {
        let piece = more.get(..usize::from(*len)).unwrap_or(more);
        rest = more.get(piece.len()..).unwrap_or_default();
        let fds = match with % 8 {
            1 => vec![&fixture.memory],
            2 => vec![&fixture.signal],
            3 => vec![&fixture.memory, &fixture.signal],
            4 => vec![&fixture.signal; 17],
            _ => Vec::new(),
        };
        send(&ours, piece, &fds);
    }
    let _ = ours.shutdown(std::net::Shutdown::Write);
    fixture.server.serve_stream(theirs).expect("the image is flushed");
}

fn send(stream: &UnixStream, bytes: &[u8], fds: &[&OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if fds.is_empty() || !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        let _ = (&mut &*stream).write(bytes);
    } else {
        let _ = sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL);
    }
}

fn message(command: u16, body: &[u8]) -> Vec<u8> {
    let header = Header { flags: Flags::NO_REPLY.bits(), ..Header::command(1, command, body.len()) };
    [header.as_bytes(), body].concat()
}

fn write(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let access = RegionAccess { offset, region, count: data.len() as u32 };
    message(command::REGION_WRITE, &[access.as_bytes(), data].concat())
}

/// Inputs that reach deep.
pub fn seeds() -> Vec<Vec<u8>> {
    let read = RegionAccess { offset: 0, region: 7, count: 64 };
    let set_irqs = [20_u32, 0x24, 0, 0, 1];
    let port = |offset: u64, value: u32| write(5, offset, &value.to_le_bytes());
    let streams: [Vec<(u8, Vec<u8>)>; 4] = [
        vec![(0, message(command::REGION_READ, read.as_bytes())), (0, message(command::DEVICE_RESET, &[]))],
        vec![
            (2, message(command::DEVICE_SET_IRQS, set_irqs.as_bytes())),
            (0, port(4, 0x8000_0002)),
            (0, port(0x108, 0x400)),
            (0, port(0x114, u32::MAX)),
            (0, port(0x118, 0x11)),
            (0, port(0x138, 1)),
        ],
        vec![
            (1, message(command::DMA_MAP, map(0x10_0000, 0x1000, 0).as_bytes())),
            (0, message(command::DMA_MAP, map(0x20_0000, 0x1000, 0).as_bytes())),
            (0, port(0x100, 0x20_0000)),
            (0, port(0x108, 0x20_0400)),
            (0, port(0x118, 0x11)),
            (0, port(0x138, 1)),
        ],
        vec![(0, message(command::DMA_UNMAP, map(0, MEMORY_BYTES, 0).as_bytes())), (4, vec![0; 16])],
    ];
    let stream = |pieces: Vec<(u8, Vec<u8>)>| {
        let piece = |(with, bytes): (u8, Vec<u8>)| [&[bytes.len() as u8, with][..], &bytes].concat();
        [vec![1], pieces.into_iter().flat_map(piece).collect()].concat()
    };
    streams.into_iter().map(stream).collect()
}
