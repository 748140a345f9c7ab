//! Garbage for a vhost-user socket: messages that look valid, from a seed.

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// More than any request that the protocol knows.
const REQUEST_MAX: u32 = 48;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// A source of clients that send garbage.
pub struct Garbage {
    random: Rng,
    /// What they attach to messages: memory, an event, and neither.
    fds: [OwnedFd; 3],
}

impl Garbage {
    pub fn new(random: Rng) -> Self {
        let memory = memfd_create("garbage", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, 1 << 20).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap().into();
        Self { random, fds: [memory, eventfd(0, EventfdFlags::NONBLOCK).unwrap(), null] }
    }

    /// Connects, sends a few messages, and goes.
    pub fn client(&mut self, socket: &Path) {
        let Self { random, fds } = self;
        let stream = connect(socket);
        stream.set_nonblocking(true).unwrap();
        for _ in 0..random.usize(1..40) {
            if !send(&stream, random, fds) {
                break;
            }
            // Answers are taken, so that the server is never held up by a full socket.
            while let Ok(1..) = (&stream).read(&mut [0; 4096]) {}
            if random.u8(..4) == 0 {
                std::thread::sleep(Duration::from_micros(random.u64(..300)));
            }
        }
    }
}

/// A server that has just been started may not listen yet; its socket may be there before it does.
fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", socket.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends one message. False once the server has closed the connection.
fn send(stream: &UnixStream, random: &mut Rng, fds: &[OwnedFd]) -> bool {
    let body: Vec<u8> = match random.u8(..8) {
        0 => Vec::new(),
        // As long as most messages are; small numbers, which are valid where they are indices and sizes.
        1..=5 => (0..random.usize(1..=5)).flat_map(|_| word(random).to_le_bytes()).collect(),
        _ => (0..random.usize(..512)).map(|_| random.u8(..)).collect(),
    };
    let flags = match random.u8(..8) {
        0 => random.u32(..),
        1..=4 => VERSION | NEED_REPLY,
        _ => VERSION,
    };
    let size = match random.u8(..16) {
        0 => random.u32(..),
        1 => body.len() as u32 + random.u32(1..64),
        _ => body.len() as u32,
    };
    let header = [random.u32(..REQUEST_MAX), flags, size].map(u32::to_le_bytes).concat();
    let attached: Vec<BorrowedFd<'_>> =
        (0..random.usize(..4) / 2).map(|_| random.choice(fds).unwrap().as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !attached.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&attached)));
    }
    let parts = [IoSlice::new(&header), IoSlice::new(&body)];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(stream, &parts, &mut ancillary, flags).is_ok()
}

fn word(random: &mut Rng) -> u64 {
    match random.u8(..6) {
        0 => random.u64(..),
        1 => 1 << random.u32(..64),
        2 => random.u64(..0x1_0000_0000),
        3 => random.u64(..4) | random.u64(..4) << 32,
        _ => random.u64(..1024),
    }
}
