//! A message's header.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::ioctl_fionread;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version 1, in a message's flags.
pub(super) const VERSION: u32 = 1;
pub(super) const REPLY: u32 = 1 << 2;
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// Most bytes that follow a header: as the crate vhost has it.
pub(super) const BODY_MAX: u32 = 4096;

const GET_VRING_BASE: u32 = 11;
const GET_INFLIGHT_FD: u32 = 31;

/// A message's header, in the machine's byte order.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) bytes: u32,
}

impl Header {
    /// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG.
    const CONFIG_CHANGE: Self = Self { request: 2, flags: VERSION, bytes: 0 };

    pub(super) const BYTES: usize = size_of::<Self>();

    /// Waits for a message, and looks at its header if all of it is there.
    pub(super) fn peek(stream: &UnixStream) -> Option<Self> {
        let mut header = Self { request: 0, flags: 0, bytes: 0 };
        match recv(stream, header.as_mut_bytes(), RecvFlags::PEEK) {
            Ok((_, Self::BYTES)) => Some(header),
            _ => None,
        }
    }

    /// Whether all of the next message is there, or its header says that it makes no sense. Does not wait.
    pub(super) fn peek_whole(stream: &UnixStream) -> bool {
        let queued = ioctl_fionread(stream).unwrap_or(0);
        queued >= Self::BYTES as u64
            && Self::peek(stream).is_some_and(|header| {
                header.bytes > BODY_MAX || queued >= Self::BYTES as u64 + u64::from(header.bytes)
            })
    }

    /// Whether the client asked for a reply that says how it went. What has a reply of its own has none when it fails.
    pub(super) const fn asks_for_ack(self) -> bool {
        self.flags & NEED_REPLY != 0 && !matches!(self.request, GET_VRING_BASE | GET_INFLIGHT_FD)
    }
}

/// Tells the client by its socket for requests of ours that the configuration space has changed. Never waits.
pub(super) fn send_config_change(requests: &OwnedFd) -> Result<(), String> {
    match send(requests, Header::CONFIG_CHANGE.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(Header::BYTES) => Ok(()),
        Ok(_) => Err("it does not read its backend's requests".into()),
        Err(errno) => Err(format!("its socket for requests fails: {errno}")),
    }
}
