//! Descriptors by which a client and the device wake each other: the one place that holds them.
//!
//! The client keeps its end, shares the open file description with us, and is hostile. So a descriptor is taken only if it is an
//! eventfd or a pipe (User-Mode Linux passes pipes), it is made non-blocking, and no call here waits. The client can undo the
//! flag between two calls and make one of them wait after all: then it holds up its own requests, until whoever waits for the
//! thread frees it ([`interrupt`](super::interrupt)).

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;

/// What to write to an eventfd so that it becomes readable.
const ONE: [u8; 8] = 1_u64.to_ne_bytes();

/// A descriptor of the client's: a ring's kick, call or err, or an interrupt of a PCI device.
#[derive(Debug)]
pub(super) struct ClientFd {
    fd: OwnedFd,
    is_eventfd: bool,
}

impl ClientFd {
    /// Takes a descriptor over, and makes it non-blocking, as QEMU's vhost-user servers do.
    ///
    /// # Errors
    /// Says why the descriptor is of no use, for the log.
    pub(super) fn new(fd: impl Into<OwnedFd>) -> Result<Self, String> {
        let fd = fd.into();
        let fail = |errno: Errno| format!("its descriptor to be woken by cannot be used: {errno}");
        let is_eventfd = is_eventfd(fd.as_fd());
        let stat = fstat(&fd).map_err(fail)?;
        if !is_eventfd && FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
            return Err("its descriptor to be woken by is neither an eventfd nor a pipe".into());
        }
        let flags = fcntl_getfl(&fd).map_err(fail)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(fail)?;
        Ok(Self { fd, is_eventfd })
    }

    /// Wakes the client. What is full has a wake-up in it already.
    pub(super) fn signal(&self) {
        // A client that has gone is no error of ours: the connection's end says so.
        if rustix::io::write(&self.fd, &ONE) == Err(Errno::INTR) {
            // Once more: the client would wait for ever. Not for as long as it takes: it may make us wait here, and whoever
            // frees us does it by this error.
            let _ = rustix::io::write(&self.fd, &ONE);
        }
    }

    /// Takes the wake-ups that are there.
    pub(super) fn take(&self) {
        if self.is_eventfd {
            let _ = rustix::io::read(&self.fd, &mut [0_u8; 8]);
        } else {
            // What is left wakes us again.
            let _ = rustix::io::read(&self.fd, &mut [0_u8; 512]);
        }
    }

    /// Whether to wait for it by edges. An eventfd gives one for each write, also if nobody reads it: that saves a system call
    /// for each wake-up, and a counter of 64 bits does not fill up.
    pub(super) const fn by_edges(&self) -> bool {
        self.is_eventfd
    }
}

impl AsFd for ClientFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::pipe;

    use super::*;

    /// A call that waits would not return: nobody else has the other end.
    #[test]
    fn what_is_full_or_empty_is_not_waited_for_though_the_client_made_it_blocking() {
        let full = eventfd(0, EventfdFlags::empty()).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        ClientFd::new(full).unwrap().signal();
        ClientFd::new(eventfd(0, EventfdFlags::empty()).unwrap()).unwrap().take();
        let (reader, writer) = pipe().unwrap();
        ClientFd::new(reader.try_clone().unwrap()).unwrap().take();
        let writer = ClientFd::new(writer).unwrap();
        while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
        writer.signal();
    }

    #[test]
    fn what_is_neither_an_eventfd_nor_a_pipe_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for fd in [OwnedFd::from(ours), theirs.into(), std::fs::File::open("/dev/zero").unwrap().into()] {
            assert!(ClientFd::new(fd).unwrap_err().contains("neither an eventfd nor a pipe"));
        }
    }
}
