//! A client's socket: messages out of a stream of bytes, and back.
//!
//! A message may come in any number of pieces, and many at once. The descriptors that a receive brings belong to the message that
//! its last byte is in: the kernel ends a receive behind the piece that they were sent with.
//!
//! While we wait for the client's answer to a DMA message it may go on sending commands; they wait here, in order. A stream that
//! makes no sense, or a client that takes too long over an answer or takes no replies, breaks the connection.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags,
    recvmsg, sendmsg,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::protocol::{DATA_MAX, DmaAccess, FDS_MAX, Header, Kind, MESSAGE_MAX, command};

/// Bytes that are received at a time, unless a message is longer.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Bytes of commands that may wait while we wait for an answer.
const WAITING_MAX: usize = 8 << 20;

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The client has closed it, or we have.
    Gone,
    /// It is of no more use.
    Fault(String),
}

/// A message as it came.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// One end of the socket.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    /// How long the client may take.
    patience: Duration,
    inbox: Inbox,
    /// Commands that came while we waited for an answer.
    waiting: VecDeque<Message>,
    waiting_bytes: usize,
    next_id: u16,
    /// Most bytes of data in a message that the client takes.
    data_max: usize,
    broken: Option<Broken>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, patience: Duration) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            patience,
            inbox: Inbox::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            next_id: 0,
            data_max: DATA_MAX,
            broken: None,
        })
    }

    pub(super) const fn set_data_max(&mut self, bytes: usize) {
        self.data_max = bytes;
    }

    pub(super) const fn patience(&self) -> Duration {
        self.patience
    }

    /// Whether a message has begun to come and is not all there.
    pub(super) fn is_in_mid_message(&self) -> bool {
        !self.inbox.held().is_empty() && !self.inbox.has_message()
    }

    pub(super) const fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// The first reason counts.
    pub(super) fn fail(&mut self, why: Broken) {
        let _ = self.broken.get_or_insert(why);
        // It may have been closed by the client.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    fn fault(&mut self, why: impl Into<String>) {
        self.fail(Broken::Fault(why.into()));
    }

    /// Receives what is there, without waiting.
    pub(super) fn receive(&mut self) {
        match self.inbox.receive(&self.stream) {
            Ok(()) | Err(Received::Nothing) => {}
            Err(Received::End) => self.fail(Broken::Gone),
            Err(Received::Fault(why)) => self.fault(why),
        }
    }

    /// Takes the next command, if all of it is there.
    pub(super) fn take(&mut self, message: &mut Message) -> bool {
        if let Some(waiting) = self.waiting.pop_front() {
            self.waiting_bytes -= waiting.header.bytes as usize;
            *message = waiting;
            return true;
        }
        if !self.whole(message) {
            return false;
        }
        if message.header.kind() == Some(Kind::Reply) {
            self.fault("a reply that nobody waits for");
            return false;
        }
        true
    }

    /// Takes the next message of any kind, if all of it is there.
    fn whole(&mut self, message: &mut Message) -> bool {
        if matches!(self.broken, Some(Broken::Fault(_))) {
            return false;
        }
        match self.inbox.take(message) {
            Some(Ok(())) => true,
            Some(Err(header)) => {
                // Said before it is let go, should it still listen.
                let _ = self.send(&[header.failure(Errno::INVAL).as_bytes()]);
                self.fault(format!("a message header that makes no sense: {header:?}"));
                false
            }
            None => false,
        }
    }

    /// Whether there is something to take, or to learn, that has been received already: while we waited for an answer.
    pub(super) fn is_ready(&self) -> bool {
        !self.waiting.is_empty() || self.broken.is_some() || self.inbox.has_message()
    }

    /// Sends a message, or breaks the connection.
    pub(super) fn send(&mut self, parts: &[&[u8]]) -> Result<(), ()> {
        if self.broken.is_some() {
            return Err(());
        }
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut sent = 0;
        let mut deadline = None;
        while sent < total {
            let mut skip = sent;
            let mut slices = [IoSlice::new(&[]); 3];
            for (slice, part) in slices.iter_mut().zip(parts) {
                let rest = part.get(skip.min(part.len())..).unwrap_or_default();
                skip -= skip.min(part.len());
                *slice = IoSlice::new(rest);
            }
            match sendmsg(&self.stream, &slices, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(bytes) => sent += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.patience);
                    if !self.wait(PollFlags::OUT, deadline) {
                        self.fault("it takes no replies");
                        return Err(());
                    }
                }
                Err(_) => {
                    self.fail(Broken::Gone);
                    return Err(());
                }
            }
        }
        Ok(())
    }

    /// Waits for the socket, at most until the deadline.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&self.stream, flags)], Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Reads memory that the client has.
    pub(super) fn dma_read(&mut self, address: u64, into: &mut [u8]) -> Result<(), ()> {
        let mut address = address;
        for piece in into.chunks_mut(self.data_max) {
            let request = DmaAccess { address, count: piece.len() as u64 };
            let reply = self.exchange(command::DMA_READ, &request, &[])?;
            let data = reply.body.get(size_of::<DmaAccess>()..).unwrap_or_default();
            if data.len() != piece.len() {
                self.fault("an answer to DMA_READ of another length");
                return Err(());
            }
            piece.copy_from_slice(data);
            address += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes memory that the client has.
    pub(super) fn dma_write(&mut self, address: u64, from: &[u8]) -> Result<(), ()> {
        let mut address = address;
        for piece in from.chunks(self.data_max) {
            let request = DmaAccess { address, count: piece.len() as u64 };
            // What the answer holds beside its header differs from client to client, and says nothing.
            self.exchange(command::DMA_WRITE, &request, piece)?;
            address += piece.len() as u64;
        }
        Ok(())
    }

    /// Sends a command of ours, and waits for the answer to it. An answer that it failed is an error, and no more.
    fn exchange(&mut self, command: u16, request: &DmaAccess, data: &[u8]) -> Result<Message, ()> {
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header::command(self.next_id, command, size_of::<DmaAccess>() + data.len());
        self.send(&[header.as_bytes(), request.as_bytes(), data])?;
        let deadline = Instant::now() + self.patience;
        loop {
            let mut message = Message::default();
            if !self.whole(&mut message) {
                if self.broken.is_some() {
                    return Err(());
                }
                if !self.wait(PollFlags::IN, deadline) {
                    self.fault("no answer to a DMA message");
                    return Err(());
                }
                self.receive();
                continue;
            }
            let Header { id, command: answered, .. } = message.header;
            if message.header.kind() != Some(Kind::Reply) {
                self.waiting_bytes += message.header.bytes as usize;
                self.waiting.push_back(message);
                if self.waiting_bytes > WAITING_MAX {
                    self.fault("commands without end, and no answer to a DMA message");
                    return Err(());
                }
            } else if (id, answered) != (header.id, command) {
                self.fault("a reply that nobody waits for");
                return Err(());
            } else if message.header.flags & super::protocol::Flags::ERROR.bits() != 0 {
                return Err(());
            } else {
                return Ok(message);
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What was received and not taken yet.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    /// Where the first message begins, and where what was received ends.
    start: usize,
    end: usize,
    /// Bytes of the stream before `bytes[start]`.
    position: u64,
    /// Descriptors, each batch with the position of the byte that it came with.
    fds: VecDeque<(u64, Vec<OwnedFd>)>,
}

enum Received {
    Nothing,
    End,
    Fault(&'static str),
}

impl Inbox {
    fn held(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The first message's header, if it is there.
    fn header(&self) -> Option<Header> {
        Header::read_from_prefix(self.held()).ok().map(|(header, _)| header)
    }

    /// Whether all of the first message is there, or it makes no sense.
    fn has_message(&self) -> bool {
        let whole = |header: Header| header.kind().is_none() || header.bytes as usize <= self.held().len();
        self.header().is_some_and(whole)
    }

    fn receive(&mut self, stream: &UnixStream) -> Result<(), Received> {
        self.make_room();
        let Some(room) = self.bytes.get_mut(self.end..).filter(|room| !room.is_empty()) else {
            return Ok(());
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(stream, &mut [IoSliceMut::new(room)], &mut ancillary, flags) {
            Ok(received) => received,
            Err(Errno::INTR | Errno::AGAIN) => return Err(Received::Nothing),
            Err(_) => return Err(Received::End),
        };
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(Received::End);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FDS_MAX {
            return Err(Received::Fault("more descriptors with a message than there may be"));
        }
        self.end += received.bytes;
        if !fds.is_empty() {
            let last = self.position + self.held().len() as u64 - 1;
            self.fds.push_back((last, fds));
        }
        Ok(())
    }

    /// Room for the rest of the first message, and for some more.
    fn make_room(&mut self) {
        let message = self.header().map_or(0, |header| header.bytes as usize).min(MESSAGE_MAX);
        let wanted = message.max(RECEIVE_BYTES);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.start < wanted || self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.bytes.len() < wanted {
            self.bytes.resize(wanted, 0);
        }
    }

    /// Takes the first message if all of it is there; its header, if that makes no sense.
    fn take(&mut self, message: &mut Message) -> Option<Result<(), Header>> {
        let header = self.header()?;
        if header.kind().is_none() {
            return Some(Err(header));
        }
        let bytes = header.bytes as usize;
        let body = self.held().get(Header::BYTES..bytes)?;
        message.header = header;
        message.body.clear();
        message.body.extend_from_slice(body);
        self.start += bytes;
        self.position += bytes as u64;
        message.fds.clear();
        while let Some((_, fds)) = self.fds.pop_front_if(|(at, _)| *at < self.position) {
            message.fds.extend(fds);
        }
        Some(Ok(()))
    }
}
