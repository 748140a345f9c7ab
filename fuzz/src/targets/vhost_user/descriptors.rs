//! Descriptors that a client may hand over, most of which it should not.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, OFlags, fcntl_setfl, ftruncate, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};

/// What the client shares with the guest's rings in it.
pub(super) const MEMORY: u8 = 1;
pub(super) const MEMORY_BYTES: u64 = 0x1_0000;
/// An eventfd as it should be, which the client kicks by.
pub(super) const SIGNAL: u8 = 2;
/// An eventfd that is full, and blocks.
pub(super) const FULL: u8 = 4;
/// The client's own end of its connection.
pub(super) const OWN_END: u8 = 9;
/// A memory file that is shorter than it is said to be.
pub(super) const SHORT: u8 = 10;

pub(super) struct Descriptors {
    memory: OwnedFd,
    signal: OwnedFd,
    blocking: OwnedFd,
    full: OwnedFd,
    pipe: (OwnedFd, OwnedFd),
    full_pipe: (OwnedFd, OwnedFd),
    socket: (UnixStream, UnixStream),
    short: OwnedFd,
    zeroes: File,
    directory: File,
}

impl Descriptors {
    pub(super) fn new() -> Self {
        let memory = |bytes| {
            let memory = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a memory file");
            ftruncate(&memory, bytes).expect("its size");
            memory
        };
        let event = |flags| eventfd(0, EventfdFlags::CLOEXEC | flags).expect("an event");
        let full = event(EventfdFlags::empty());
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("room for that");
        let pipe = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
        let full_pipe = pipe();
        while rustix::io::write(&full_pipe.1, &[0; 4096]).is_ok() {}
        fcntl_setfl(&full_pipe.1, OFlags::empty()).expect("a flag");
        Self {
            memory: memory(MEMORY_BYTES),
            signal: event(EventfdFlags::NONBLOCK),
            blocking: event(EventfdFlags::empty()),
            full,
            pipe: pipe(),
            full_pipe,
            socket: UnixStream::pair().expect("sockets"),
            short: memory(0x800),
            zeroes: OpenOptions::new().read(true).write(true).open("/dev/zero").expect("zeroes"),
            directory: File::open("/").expect("a directory"),
        }
    }

    /// The descriptors of a kind: none, one, or more than one.
    pub(super) fn of_kind<'a>(&'a self, kind: u8, own_end: &'a UnixStream) -> Vec<BorrowedFd<'a>> {
        let one = match kind {
            MEMORY => self.memory.as_fd(),
            SIGNAL => self.signal.as_fd(),
            3 => self.blocking.as_fd(),
            FULL => self.full.as_fd(),
            5 => self.pipe.0.as_fd(),
            6 => self.pipe.1.as_fd(),
            7 => self.full_pipe.1.as_fd(),
            8 => self.socket.0.as_fd(),
            OWN_END => own_end.as_fd(),
            SHORT => self.short.as_fd(),
            11 => self.zeroes.as_fd(),
            12 => self.directory.as_fd(),
            13 => return vec![self.memory.as_fd(), self.short.as_fd()],
            14 => return vec![self.memory.as_fd(); 8],
            15 => return vec![self.signal.as_fd(); 33],
            _ => return Vec::new(),
        };
        vec![one]
    }

    pub(super) fn memory(&self) -> &OwnedFd {
        &self.memory
    }

    pub(super) fn kick(&self) {
        let _ = rustix::io::write(&self.signal, &1_u64.to_ne_bytes());
    }
}
