//! The messages that the crate vhost does not take as they come, or cannot send.
//!
//! - SET_BACKEND_REQ_FD: the crate wraps the socket in a type that cannot send CONFIG_CHANGE.
//! - SET_MEM_TABLE: User-Mode Linux sends room for two regions, whatever their number; the crate wants the exact size.

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::UnixStream;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType, recv,
    recvmsg, send, sockopt,
};
use vhost::vhost_user::{Error, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes as _, KnownLayout};

use super::device::VhostUserDevice;
use super::handler::Handler;
use super::header::{BODY_MAX, Header, NEED_REPLY, REPLY, VERSION};
use super::memory_table::UncheckedRegion;

const SET_MEM_TABLE: u32 = 5;
const SET_BACKEND_REQ_FD: u32 = 21;

/// Most descriptors with a header: as the crate has it.
const FDS_MAX: usize = 32;

/// Whether a message is taken here.
pub(super) const fn takes(header: Header) -> bool {
    matches!(header.request, SET_MEM_TABLE | SET_BACKEND_REQ_FD)
}

/// Takes such a message, and answers it.
pub(super) fn handle(device: &VhostUserDevice, handler: &mut Handler, stream: &UnixStream) -> Result<()> {
    let (header, fds) = receive(stream)?;
    if header.flags & !NEED_REPLY != VERSION || header.bytes > BODY_MAX {
        return Err(Error::InvalidMessage);
    }
    let mut body = vec![0; header.bytes as usize];
    // To receive nothing means to wait for something.
    if !body.is_empty() {
        let (_, received) = recv(stream, &mut *body, RecvFlags::WAITALL).map_err(broken)?;
        if received != body.len() {
            return Err(Error::PartialMessage);
        }
    }
    let done = match header.request {
        SET_MEM_TABLE => set_mem_table(handler, &body, fds),
        _ => set_backend_req_fd(device, handler, stream, fds),
    };
    if handler.was_answered(header) {
        let reply = Header { flags: VERSION | REPLY, bytes: 8, ..header };
        let message = [reply.as_bytes(), &u64::from(done.is_err()).to_ne_bytes()].concat();
        send(stream, &message, SendFlags::NOSIGNAL).map_err(broken)?;
    }
    done
}

fn broken(errno: rustix::io::Errno) -> Error {
    Error::SocketBroken(errno.into())
}

/// Receives a header and the descriptors that come with it.
fn receive(stream: &UnixStream) -> Result<(Header, Vec<OwnedFd>)> {
    let mut header = Header { request: 0, flags: 0, bytes: 0 };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(header.as_mut_bytes())];
    let received = recvmsg(stream, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC).map_err(broken)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == Header::BYTES { Ok((header, fds)) } else { Err(Error::PartialMessage) }
}

/// Beginning of SET_MEM_TABLE.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MemTable {
    regions: u32,
    padding: u32,
}

/// A region in SET_MEM_TABLE.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct MemRegion {
    guest: u64,
    bytes: u64,
    user: u64,
    offset: u64,
}

fn set_mem_table(handler: &mut Handler, body: &[u8], fds: Vec<OwnedFd>) -> Result<()> {
    let (table, body) = MemTable::read_from_prefix(body).map_err(|_| Error::InvalidMessage)?;
    let count = table.regions as usize;
    if table.padding != 0 || count != fds.len() {
        return Err(Error::InvalidMessage);
    }
    let mut body = body;
    let mut regions = Vec::with_capacity(count);
    for fd in fds {
        let region;
        (region, body) = MemRegion::read_from_prefix(body).map_err(|_| Error::InvalidMessage)?;
        let MemRegion { guest, bytes, user, offset } = region;
        regions.push((UncheckedRegion { guest, bytes, user, offset }, File::from(fd)));
    }
    handler.set_regions(regions)
}

fn set_backend_req_fd(
    device: &VhostUserDevice,
    handler: &Handler,
    stream: &UnixStream,
    fds: Vec<OwnedFd>,
) -> Result<()> {
    let [channel] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| Error::IncorrectFds)?;
    let unix_stream = matches!(sockopt::socket_domain(&channel), Ok(AddressFamily::UNIX))
        && matches!(sockopt::socket_type(&channel), Ok(SocketType::STREAM));
    if !unix_stream || !handler.may_send_requests() {
        return Err(Error::InvalidMessage);
    }
    let channel = UnixStream::from(channel);
    if leads_to(&channel, stream) {
        return Err(Error::InvalidMessage);
    }
    device.set_request_channel(Some(channel.into()));
    Ok(())
}

/// Whether `channel` is the other end of a socket of this server's, such as `stream`: a client that hands over its own end would
/// never be seen to go. A pair of sockets has no names.
fn leads_to(channel: &UnixStream, stream: &UnixStream) -> bool {
    let (Ok(peer), Ok(own)) = (channel.peer_addr(), stream.local_addr()) else { return false };
    own.as_pathname().is_some_and(|name| peer.as_pathname() == Some(name))
        || own.as_abstract_name().is_some_and(|name| peer.as_abstract_name() == Some(name))
}
