//! Permissions of what the process makes: files for its user alone, sockets for whom the operator
//! names.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::{AtFlags, CWD, Gid, Mode, chmod, chownat};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use super::error::Error;
use super::privileges;

/// Permissions of a file with a guest's data: its owner reads and writes it, and nobody else.
pub const PRIVATE_MODE: u32 = 0o600;

/// Connections that wait to be accepted; what the standard library has.
const BACKLOG: i32 = 128;

/// Opens a file for reading and writing, and makes it if there is none: with [`PRIVATE_MODE`],
/// whatever the umask.
///
/// # Errors
/// The kernel's.
pub fn open_or_make_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(PRIVATE_MODE).open(path)
}

/// Access to a socket: `--socket-mode` and `--socket-group`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permissions; [`PRIVATE_MODE`], or 0660 for a group, if none are given. Write permission is the
    /// one to connect (unix(7)).
    pub mode: Option<SocketMode>,
    /// Group; the process's own if none is given.
    pub group: Option<SocketGroup>,
}

/// Permissions of a socket: `--socket-mode OCTAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(u32);

impl FromStr for SocketMode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o777);
        mode.map(Self).ok_or_else(|| {
            let remedy = "give three octal digits, such as 660";
            Error::new(format_args!("--socket-mode {text}"), "use it", "not permissions", remedy)
        })
    }
}

/// A group that exists, or is given by number: `--socket-group NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketGroup {
    name: String,
    gid: u32,
}

impl FromStr for SocketGroup {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let gid = privileges::find_group(text).ok_or_else(|| {
            let remedy = "give the name or number of a group";
            Error::new(
                format_args!("--socket-group {text}"),
                "find the group",
                "there is no such name",
                remedy,
            )
        })?;
        Ok(Self { name: text.into(), gid })
    }
}

/// Makes a listening socket at `path`. It listens only once its permissions are as they shall be:
/// until then, whoever connects is refused.
///
/// # Errors
/// The kernel's: EADDRINUSE if there is a file. Then, and whenever else it fails, no socket is left
/// behind.
pub fn bind_socket(path: &Path, access: &SocketAccess) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &address)?;
    finish(&socket, path, access).inspect_err(|_| {
        // Made just now, and of no use.
        let _ = std::fs::remove_file(path);
    })?;
    Ok(socket.into())
}

fn finish(socket: &OwnedFd, path: &Path, access: &SocketAccess) -> io::Result<()> {
    if let Some(SocketGroup { gid, name }) = &access.group {
        chownat(CWD, path, None, Some(Gid::from_raw(*gid)), AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| {
            let text = format!("cannot give it to group {name}: {errno}; give a group that this user is in");
            io::Error::new(io::Error::from(errno).kind(), text)
        })?;
    }
    let SocketMode(mode) = access.mode.unwrap_or(match access.group {
        Some(_) => SocketMode(0o660),
        None => SocketMode(PRIVATE_MODE),
    });
    chmod(path, Mode::from_raw_mode(mode))?;
    Ok(listen(socket, BACKLOG)?)
}
