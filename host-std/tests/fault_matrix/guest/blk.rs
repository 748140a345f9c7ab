//! A guest of virtio-blk. It keeps its rings and the in-flight region when its server is gone, as QEMU does.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use vhost::vhost_user::Error;

use super::{
    BLOCK, Blk, BlkRequest, ClientError, Guest, Id, Outcome, Payload, Request, SECTORS_PER_BLOCK, Ticket,
    Trouble, contents,
};

const QUEUE: u16 = 0;

pub(crate) struct BlkGuest {
    socket: PathBuf,
    limit: Duration,
    disk: Option<Blk>,
    /// Requests in flight; `true`: a read.
    in_flight: Vec<(Ticket, bool)>,
    /// Requests that were messages, and have ended.
    ended: VecDeque<(Id, Outcome)>,
    messages: u64,
}

impl BlkGuest {
    pub(crate) fn new(socket: PathBuf, limit: Duration) -> Self {
        Self { socket, limit, disk: None, in_flight: Vec::new(), ended: VecDeque::new(), messages: 0 }
    }

    fn disk(&mut self) -> Result<&mut Blk, Trouble> {
        self.disk.as_mut().ok_or_else(|| Trouble::Lost("not connected".into()))
    }
}

/// Numbers of requests that are messages begin here.
const MESSAGES: Id = 1 << 60;

impl Guest for BlkGuest {
    fn connect(&mut self) -> Result<bool, Trouble> {
        match &mut self.disk {
            Some(disk) => {
                disk.session_mut().reconnect()?;
                Ok(true)
            }
            None => {
                self.disk = Some(Blk::connect(&self.socket, super::options(1, self.limit))?);
                Ok(false)
            }
        }
    }

    fn leave(&mut self) {
        self.disk = None;
        self.in_flight.clear();
    }

    fn submit(&mut self, request: &Request) -> Result<Id, Trouble> {
        if *request == Request::CacheOff {
            let outcome = match self.disk()?.set_writeback(false) {
                Ok(()) => Outcome::Done(Vec::new()),
                Err(ClientError::Vhost(vhost::Error::VhostUserProtocol(Error::BackendInternalError))) => {
                    Outcome::Failed("the message is refused".into())
                }
                Err(error) => return Err(error.into()),
            };
            self.messages += 1;
            let id = MESSAGES + self.messages;
            self.ended.push_back((id, outcome));
            return Ok(id);
        }
        let sector = |block: u64| block * SECTORS_PER_BLOCK;
        let data;
        let (request, read) = match *request {
            Request::Write { block, version, .. } => {
                data = contents(block, version);
                (BlkRequest::Write { sector: sector(block), data: Payload::Bytes(&data) }, false)
            }
            Request::Zero { block } => {
                let sectors = SECTORS_PER_BLOCK as u32;
                (BlkRequest::WriteZeroes { sector: sector(block), sectors, unmap: false }, false)
            }
            Request::Read { block } => {
                (BlkRequest::Read { sector: sector(block), bytes: BLOCK as u32 }, true)
            }
            Request::Exchange { .. } => return Err(Trouble::Wrong("virtio-blk cannot exchange".into())),
            Request::Flush | Request::CacheOff => (BlkRequest::Flush, false),
        };
        let ticket = self.disk()?.submit(QUEUE, request)?;
        self.in_flight.push((ticket, read));
        Ok(ticket.sequence)
    }

    fn wait(&mut self) -> Result<(Id, Outcome), Trouble> {
        if let Some(ended) = self.ended.pop_front() {
            return Ok(ended);
        }
        let done = self.disk()?.wait(QUEUE)?;
        let place = self.in_flight.iter().position(|(ticket, _)| *ticket == done.ticket);
        let place = place.ok_or_else(|| Trouble::Wrong("a request came back twice".into()))?;
        let (ticket, read) = self.in_flight.swap_remove(place);
        if !done.is_ok() {
            return Ok((ticket.sequence, Outcome::Failed(format!("status {}", done.status))));
        }
        let mut data = vec![0; if read { BLOCK } else { 0 }];
        self.disk()?.data(ticket, &mut data);
        Ok((ticket.sequence, Outcome::Done(data)))
    }

    fn nothing_more(&mut self) -> Result<(), Trouble> {
        match self.disk()?.poll(QUEUE)? {
            Some(done) => Err(Trouble::Wrong(format!("{done:?} came back, and nothing was in flight"))),
            None => Ok(()),
        }
    }
}
