//! The control socket: JSON, one object on each line.
//!
//! A request names a command; where there are several devices it names one of those, too. The answer is `{"ok": ...}` or
//! `{"error": "..."}`, in the order of the requests.
//!
//! ```text
//! {"command":"stats"}                              {"ok":{"version":"0.1.0","uptime_seconds":12,"sandbox":"...","log_lines_lost":0,
//!                                                         "devices":[...]}}
//! {"command":"pause"}                              {"ok":{}}
//! {"command":"resume"}                             {"ok":{"retried":2}}
//! {"command":"drain"}                              {"ok":{}}     nothing is in flight, the images are flushed, until a resume
//! {"command":"resize","image":0,"bytes":2147483648}    {"ok":{"bytes":2147483648}}
//! {"command":"resize","image":0,"grow":1073741824}     the same, by so much
//! {"command":"resize"}                             takes over the size that the image has been given outside
//! {"command":"throttle","image":0,"limits":{"iops":500}}  {"ok":{"iops":500,"iops_burst":50,...}}; 0 is no limit
//! {"command":"mark","text":"fsync 7"}              {"ok":{"position":815}}
//! {"command":"hotplug","image":"more.img,lun=0:3"} {"ok":{"lun":"0:3"}}
//! {"command":"unplug","lun":"0:3"}                 {"ok":{}}
//! {"command":"disconnect"}                         {"ok":{}}     the client is let go, and the next one may come
//! {"command":"events"}                             {"ok":{}}, then {"event":"paused","device":"disk0",...} as it happens
//! ```
//!
//! A line has 64 KiB at most; a longer one, or one that is not UTF-8, ends the connection. What is not a request is answered
//! by an error, and the connection goes on. Before an answer that takes longer there is a line `{"waiting":"..."}` every second,
//! which says what it waits for. There are 16 connections at most; when one more comes, the one that has been idle for longest is
//! let go. Whoever can open the socket's file is an operator: it is made
//! for its owner alone.

mod connections;
mod server;
mod waiting;

use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::Address;
use super::device::DeviceStats;
use super::throttle::LimitChange;

pub(super) use server::Control;

/// Bytes of a line, its end included.
pub const LINE_MAX: u64 = 64 * 1024;
/// Connections at a time.
pub const CONNECTIONS_MAX: usize = 16;

/// How long a client waits for the next line of an answer. A server that is at work says so every second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A request. `device` may be left out where there is one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What has been done; of all devices if none is named.
    Stats {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Take no more requests of the guest.
    Pause {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Take requests again, and try those again that the error policy holds.
    Resume {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Pause, wait until nothing is in flight, flush the images.
    Drain {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Take over the size of an image, after extending it if a size is given.
    Resize {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// Which image, from 0 on.
        #[serde(default)]
        image: usize,
        /// The size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// The size, as what is added to the present one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        grow: Option<u64>,
    },
    /// Change the limits of an image, or ask for them.
    Throttle {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// Which image, from 0 on.
        #[serde(default)]
        image: usize,
        /// The limits.
        #[serde(default)]
        limits: LimitChange,
    },
    /// Write a note into the recordings.
    Mark {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// The note.
        text: String,
    },
    /// Add a logical unit to a virtio-scsi host.
    Hotplug {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// The image and its options, as the command line has them.
        image: String,
    },
    /// Remove a logical unit from a virtio-scsi host.
    Unplug {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
        /// Where it is.
        lun: Address,
    },
    /// Let the client go that is connected.
    Disconnect {
        /// The device.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<String>,
    },
    /// Send events as they happen, on this connection.
    Events {},
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// Done.
    Ok(Value),
    /// Not done, and why.
    Error(String),
    /// Not done yet: another line follows. What it waits for.
    Waiting(String),
}

/// What `stats` answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The program's version.
    pub version: String,
    /// Seconds since it began.
    pub uptime_seconds: u64,
    /// How it is confined.
    #[serde(default)]
    pub sandbox: String,
    /// Lines of its log that standard error did not take.
    #[serde(default)]
    pub log_lines_lost: u64,
    /// Its devices.
    pub devices: Vec<DeviceStats>,
}

/// A line could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// More than [`LINE_MAX`] bytes.
    #[error("a line has {LINE_MAX} bytes at most")]
    TooLong,
    /// Not text.
    #[error("a line has to be UTF-8")]
    NotText,
}

/// The next line, without its end; `None` at the end. What ends without a line's end is no line.
///
/// # Errors
/// [`LineError`]; after one the place in the stream is lost.
pub fn read_line(from: &mut impl BufRead) -> Result<Option<String>, LineError> {
    let mut line = Vec::new();
    io::Read::take(from, LINE_MAX).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => String::from_utf8(line).map(Some).map_err(|_| LineError::NotText),
        Some(_) if line.len() as u64 + 1 >= LINE_MAX => Err(LineError::TooLong),
        _ => Ok(None),
    }
}

/// An operator's connection.
#[derive(Debug)]
pub struct Client {
    from: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// As [`UnixStream::connect`].
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { from: BufReader::new(UnixStream::connect(path)?) })
    }

    /// The same; to connect, and each read and write from then on, fails after `timeout`.
    ///
    /// # Errors
    /// As [`UnixStream::connect`]; [`io::ErrorKind::WouldBlock`] if it takes too long.
    pub fn connect_within(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Of the time to connect, too: unix(7), SO_SNDTIMEO.
        set_socket_timeout(&socket, Timeout::Send, Some(timeout))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(timeout))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { from: BufReader::new(socket.into()) })
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// If the connection breaks, or what comes is no answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        self.ask_patiently(request, |_| {})
    }

    /// The same, and tells what the answer waits for, every second that it does.
    ///
    /// # Errors
    /// As [`Client::ask`]; also if nothing comes for 10 s, as from a socket that is no control socket.
    pub fn ask_patiently(&mut self, request: &Request, mut waiting: impl FnMut(&str)) -> io::Result<Reply> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        self.from.get_mut().write_all(line.as_bytes())?;
        self.from.get_ref().set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let reply = loop {
            let line = match self.line() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "it says nothing for 10 s"));
                }
                line => line?.ok_or_else(|| {
                    io::Error::new(io::ErrorKind::UnexpectedEof, "it has closed the connection")
                })?,
            };
            match serde_json::from_str(&line)? {
                Reply::Waiting(what) => waiting(&what),
                reply => break reply,
            }
        };
        // Events come when they come.
        self.from.get_ref().set_read_timeout(None)?;
        Ok(reply)
    }

    /// The next line, such as an event; `None` once the server is gone.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn line(&mut self) -> io::Result<Option<String>> {
        read_line(&mut self.from).map_err(|error| match error {
            LineError::Io(error) => error,
            error => io::Error::new(io::ErrorKind::InvalidData, error),
        })
    }
}

#[cfg(test)]
mod tests;
