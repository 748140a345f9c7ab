//! The descriptors by which a ring's two sides wake each other.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What to write to an eventfd so that it becomes readable.
const ONE: [u8; 8] = 1_u64.to_ne_bytes();

/// Whether a descriptor is an eventfd: User-Mode Linux passes pipes.
fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

fn ready(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    matches!(poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&NOW)), Ok(1..))
}

/// A descriptor of the client's to which we write: a ring's call or err.
#[derive(Debug)]
pub(super) struct Notifier {
    fd: File,
    is_eventfd: bool,
}

impl Notifier {
    pub(super) fn new(fd: File) -> Self {
        let is_eventfd = is_eventfd(fd.as_fd());
        Self { fd, is_eventfd }
    }

    /// Wakes the client.
    ///
    /// The descriptor's flags are the client's, and it may be blocking. A full pipe has a wake-up in it already; an eventfd is
    /// full only if the client made it so, and [`Self::unblock`] frees who hangs in it.
    pub(super) fn signal(&self) {
        if self.is_eventfd || ready(self.fd.as_fd(), PollFlags::OUT) {
            // A client that has gone is no error of ours: the connection's end says so.
            let _ = rustix::io::write(&self.fd, &ONE);
        }
    }

    /// Lets a thread go on that hangs in [`Self::signal`], for a client that has gone.
    pub(super) fn unblock(&self) {
        if self.is_eventfd && ready(self.fd.as_fd(), PollFlags::IN) {
            let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        }
    }
}

/// A descriptor of the client's that tells us of requests.
#[derive(Debug)]
pub(super) struct Kick {
    fd: File,
    is_eventfd: bool,
}

impl Kick {
    pub(super) fn new(fd: File) -> Self {
        let is_eventfd = is_eventfd(fd.as_fd());
        Self { fd, is_eventfd }
    }

    /// Whether to wait for it by edges. An eventfd gives one for each write, also if nobody reads it: that saves a system call
    /// for each wake-up, and a counter of 64 bits does not fill up.
    pub(super) const fn by_edges(&self) -> bool {
        self.is_eventfd
    }

    /// It has woken us.
    pub(super) fn woken(&self) {
        if !self.is_eventfd && ready(self.fd.as_fd(), PollFlags::IN) {
            let _ = rustix::io::read(&self.fd, &mut [0_u8; 512]);
        }
    }
}

impl AsFd for Kick {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Wakes a thread of ours.
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn wake(&self) {
        // It fails only where the counter is full, and then it is readable.
        let _ = rustix::io::write(&self.0, &ONE);
    }

    /// It has woken us.
    pub(super) fn woken(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
