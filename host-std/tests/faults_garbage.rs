//! A socket that sends garbage: messages that look valid, from a seed. The server survives, forgets the client that sent
//! them, and keeps no memory for it.

mod serving;

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fastrand::Rng;
use host_std::client::{Blk, Options};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serving::{Disk, Server};

/// More than any request that the protocol knows.
const REQUEST_MAX: u32 = 48;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;
/// What the server may take, and keep.
const MEMORY_MAX_KIB: u64 = 128 << 10;
const DESCRIPTORS_MAX: usize = 64;

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

/// Memory that the server has now.
fn resident_kib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn garbage_harms_neither_the_server_nor_the_next_client() {
    let rounds =
        std::env::var("GARBAGE_ROUNDS").map_or(400, |rounds| rounds.parse().expect("a number of rounds"));
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    eprintln!("SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let disk = Disk::new(1 << 20);
    let mut server = disk.serve("", &[]);
    let options = Options { transfer_bytes: 4096, segment_bytes: 4096, ..Options::default() };
    drop(Blk::connect(server.socket(), options.clone()).unwrap());
    let memory = memfd_create("garbage", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, 1 << 20).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap().into();
    let fds = [memory, eventfd(0, EventfdFlags::NONBLOCK).unwrap(), null];
    for round in 0..rounds {
        let stream = UnixStream::connect(server.socket()).unwrap();
        stream.set_nonblocking(true).unwrap();
        for _ in 0..random.usize(1..40) {
            if !send(&stream, &mut random, &fds) {
                break;
            }
            // Answers are taken, so that the server is never held up by a full socket.
            while let Ok(1..) = (&stream).read(&mut [0; 4096]) {}
            if random.u8(..4) == 0 {
                std::thread::sleep(Duration::from_micros(random.u64(..300)));
            }
        }
        drop(stream);
        if round % 20 == 19 {
            assert!(server.runs(), "round {round}: the server ended");
            let mut guest = Blk::connect(server.socket(), options.clone()).unwrap();
            let data: Vec<u8> = (0..4096).map(|_| random.u8(..)).collect();
            let mut back = vec![0; 4096];
            guest.write(8, &data).unwrap();
            guest.flush().unwrap();
            guest.read(8, &mut back).unwrap();
            assert_eq!(back, data, "round {round}");
        }
    }
    let kept = resident_kib(&server);
    assert!(kept < MEMORY_MAX_KIB, "the server keeps {kept} KiB");
    let open = std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().count();
    assert!(open < DESCRIPTORS_MAX, "the server keeps {open} descriptors");
}
