//! Descriptors by which a client and the device wake each other: the one place that holds them.
//!
//! The client keeps its end, shares the open file description with us, and is hostile. So a descriptor is taken only if it is an
//! eventfd, a pipe, or one of a pair of sockets (User-Mode Linux passes these), it is made non-blocking, and no call here waits.
//! The client can undo the flag between two calls and make one of them wait after all: then it holds up its own requests, until
//! whoever waits for the thread frees it ([`interrupt`](super::interrupt)).
//!
//! A socket that leads to a name is refused: it may be the client's own end of its connection. With a copy of that in our hands we
//! would never see the client go.

use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// What to write to an eventfd so that it becomes readable.
const ONE: [u8; 8] = 1_u64.to_ne_bytes();

/// A descriptor of the client's: a ring's kick, call or err, or an interrupt of a PCI device.
#[derive(Debug)]
pub(super) struct ClientFd {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Eventfd,
    Pipe,
    Socket,
}

impl ClientFd {
    /// Takes a descriptor over, and makes it non-blocking, as QEMU's vhost-user servers do.
    ///
    /// # Errors
    /// Says why the descriptor is of no use, for the log.
    pub(super) fn new(fd: impl Into<OwnedFd>) -> Result<Self, String> {
        let fd = fd.into();
        let fail = |errno: Errno| format!("its descriptor to be woken by cannot be used: {errno}");
        let kind = match FileType::from_raw_mode(fstat(&fd).map_err(fail)?.st_mode) {
            _ if is_eventfd(fd.as_fd()) => Kind::Eventfd,
            FileType::Fifo => Kind::Pipe,
            FileType::Socket if is_one_of_a_pair(fd.as_fd()) => Kind::Socket,
            _ => {
                let why =
                    "its descriptor to be woken by is no eventfd, no pipe and none of a pair of sockets";
                return Err(why.into());
            }
        };
        let flags = fcntl_getfl(&fd).map_err(fail)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(fail)?;
        Ok(Self { fd, kind })
    }

    /// Wakes the client. What is full has a wake-up in it already.
    pub(super) fn signal(&self) {
        // A client that has gone is no error of ours: the connection's end says so.
        if self.write() == Err(Errno::INTR) {
            // Once more: the client would wait for ever. Not for as long as it takes: it may make us wait here, and whoever
            // frees us does it by this error.
            let _ = self.write();
        }
    }

    fn write(&self) -> rustix::io::Result<usize> {
        match self.kind {
            Kind::Eventfd | Kind::Pipe => rustix::io::write(&self.fd, &ONE),
            Kind::Socket => send(&self.fd, &ONE, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        }
    }

    /// Takes the wake-ups that are there.
    pub(super) fn take(&self) {
        // What is left of a stream wakes us again.
        let _ = rustix::io::read(&self.fd, &mut [0_u8; 512]);
    }

    /// Whether to wait for it by edges. An eventfd gives one for each write, also if nobody reads it: that saves a system call
    /// for each wake-up, and a counter of 64 bits does not fill up.
    pub(super) fn by_edges(&self) -> bool {
        self.kind == Kind::Eventfd
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

/// Whether a socket is of the kind that socketpair(2) makes: its other end has no name.
fn is_one_of_a_pair(fd: BorrowedFd<'_>) -> bool {
    let copy = fd.try_clone_to_owned().map(UnixStream::from);
    copy.and_then(|socket| socket.peer_addr()).is_ok_and(|peer| peer.is_unnamed())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

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
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = ClientFd::new(ours).unwrap();
        while send(&socket, &[0; 4096], SendFlags::DONTWAIT).is_ok() {}
        socket.signal();
        // The other end has sent nothing.
        socket.take();
        // A socket's signal does not wait although the client undoes that.
        fcntl_setfl(&socket, OFlags::empty()).unwrap();
        socket.signal();
        drop(theirs);
        socket.signal();
        socket.take();
    }

    #[test]
    fn what_is_of_no_use_to_be_woken_by_is_refused() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let zeroes = std::fs::File::open("/dev/zero").unwrap();
        for fd in [OwnedFd::from(client), listener.into(), zeroes.into()] {
            assert!(ClientFd::new(fd).unwrap_err().contains("no eventfd, no pipe"));
        }
    }
}
