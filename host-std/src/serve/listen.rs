//! Sockets: made here, or handed over by a supervisor.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, open};
use rustix::io::{Errno, FdFlags};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::config::ConfigError;
use crate::confine::permissions::{SocketAccess, bind_socket};

/// A socket that a device is served on.
#[derive(Debug)]
pub enum Socket {
    /// For one client after the other.
    Listening(UnixListener),
    /// A client that is there already.
    Connected(UnixStream),
}

impl Socket {
    /// Its path, where it has one.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Listening(listener) => Some(listener.local_addr().ok()?.as_pathname()?.to_owned()),
            Self::Connected(_) => None,
        }
    }
}

/// A socket file made here: removed with this, if it is still the same file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            // Gone already, or its folder is: nobody misses it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.st_dev(), metadata.st_ino()))
}

/// Makes a listening socket at `path`, in the place of one that a killed process left, for whom `access` permits. `option` is what
/// gave the path.
///
/// # Errors
/// [`ConfigError`] if it cannot be made, or somebody listens there.
pub fn bind(
    path: &Path,
    access: &SocketAccess,
    option: &str,
) -> Result<(UnixListener, SocketFile), ConfigError> {
    let place = format!("{option} {}", path.display());
    let error = |error: io::Error, remedy: &str| {
        ConfigError::new(&place, format!("cannot make the socket: {error}"), remedy)
    };
    let listener = match bind_socket(path, access) {
        Err(in_use) if in_use.kind() == io::ErrorKind::AddrInUse => {
            let socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
            if !socket {
                return Err(error(in_use, "a file that is no socket is there; give another path"));
            }
            match connect_at_once(path) {
                Err(Errno::CONNREFUSED) => {}
                _ => {
                    return Err(error(
                        in_use,
                        "another program listens there: stop it, or give another path",
                    ));
                }
            }
            // Nobody listens. Should two servers come to this point at once, the file of one of them is removed under it; the image's
            // lock has it end before that matters.
            fs::remove_file(path)
                .and_then(|()| bind_socket(path, access))
                .map_err(|failed| error(failed, "remove what is there, or give another path"))?
        }
        result => result.map_err(|failed| {
            let remedy = match failed.kind() {
                io::ErrorKind::NotFound => "make its folder first",
                io::ErrorKind::NotADirectory => {
                    "a part of the path is a file and no folder; give another path"
                }
                io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => {
                    "give a shorter path: 107 bytes at most"
                }
                io::ErrorKind::PermissionDenied => "give a path in a folder that this user may write",
                _ => "give a path in a folder that can be written",
            };
            error(failed, remedy)
        })?,
    };
    let inode = inode(path).map_err(|failed| error(failed, "give another path"))?;
    Ok((listener, SocketFile { path: path.into(), inode }))
}

/// Connects without waiting: a listener whose backlog is full would have one wait for ever. `EAGAIN` from that one.
fn connect_at_once(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Descriptors that this process was started with.
#[derive(Debug, Default)]
pub struct Inherited(Vec<RawFd>);

impl Inherited {
    /// Those that are open now, the standard three left out.
    ///
    /// # Safety
    /// Nothing in this process owns an open descriptor yet: to be called at the start of `main`.
    #[must_use]
    pub unsafe fn at_start() -> Self {
        // Not by the standard library, which panics where the folder cannot be closed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open("/proc/self/fd", flags, Mode::empty()).and_then(Dir::new);
        let Ok(folder) = folder else { return Self::default() };
        let listed = folder.filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok());
        let mut open: Vec<RawFd> = listed.filter(|&fd| fd > 2).collect();
        // The folder's own has been closed.
        open.retain(|fd| Path::new(&format!("/proc/self/fd/{fd}")).symlink_metadata().is_ok());
        Self(open)
    }

    /// Takes one over, once. `option` is what gave its number.
    ///
    /// # Errors
    /// [`ConfigError`] if it is not a unix stream socket.
    pub fn take(&mut self, fd: RawFd, option: &str) -> Result<Socket, ConfigError> {
        let remedy = "give the number of an open unix stream socket, from 3 on, and each once";
        let wrong = |what: String| ConfigError::new(format!("{option} {fd}"), what, remedy);
        let index = self.0.iter().position(|&open| open == fd);
        let index = index.ok_or_else(|| wrong("this process was not started with that descriptor".into()))?;
        self.0.swap_remove(index);
        // SAFETY: open, and owned by nothing, as `at_start` demanded; taken off the list, so that it is handed out once.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let failed = |errno: Errno| wrong(format!("not a socket: {errno}"));
        let (kind, domain) = (socket_type(&socket).map_err(failed)?, socket_domain(&socket).map_err(failed)?);
        if kind != SocketType::STREAM || domain != AddressFamily::UNIX {
            return Err(wrong("not a unix stream socket".into()));
        }
        rustix::io::fcntl_setfd(socket.as_fd(), FdFlags::CLOEXEC).map_err(failed)?;
        let listens = socket_acceptconn(&socket).map_err(failed)?;
        Ok(if listens { Socket::Listening(socket.into()) } else { Socket::Connected(socket.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn a_socket_that_a_killed_server_left_is_replaced_and_one_in_use_is_not() {
        let folder = folder();
        let path = folder.path().join("s");
        // A listener that is dropped leaves its file, as a killed process does.
        drop(UnixListener::bind(&path).unwrap());
        let (listener, file) = bind(&path, &SocketAccess::default(), "socket").unwrap();
        let error = bind(&path, &SocketAccess::default(), "socket").unwrap_err().to_string();
        assert!(error.contains("another program listens there"), "{error}");
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_listener_that_accepts_nobody_does_not_hang_the_start() {
        let folder = folder();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = connect_at_once(&path) {
            waiting.push(stream);
        }
        let error = bind(&path, &SocketAccess::default(), "socket").unwrap_err().to_string();
        assert!(error.contains("another program listens there"), "{error}");
    }

    #[test]
    fn another_file_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = bind(&path, &SocketAccess::default(), "socket").unwrap_err().to_string();
        assert!(error.contains("no socket is there") && error.contains("give another path"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_file_that_somebody_replaced_is_left_alone() {
        let folder = folder();
        let path = folder.path().join("s");
        let (_listener, file) = bind(&path, &SocketAccess::default(), "socket").unwrap();
        // Beside it first, so that the inode cannot be the same.
        let other = UnixListener::bind(folder.path().join("other")).unwrap();
        fs::rename(folder.path().join("other"), &path).unwrap();
        drop(file);
        assert!(path.exists());
        drop(other);
    }
}
