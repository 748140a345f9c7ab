//! A virtio-blk driver (VIRTIO 1.3, 5.2).

use std::collections::VecDeque;
use std::path::Path;

use virtio_blk_model::wire::{ConfigSpace, Features, RangeFlags, RangeSegment, RequestHeader};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::error::ClientError;
use super::options::Options;
use super::queue::misbehaves;
use super::session::{Chain, Completed, Data, VhostUser};
use super::ticket::Ticket;

// Request types (VIRTIO 1.3, 5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const STATUS_OK: u8 = 0;
const STATUS_MAX: u8 = 2;
/// Bytes of a disk's serial number.
const ID_BYTES: u32 = 20;

/// Data of a write.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// As many bytes as this of whatever the request's buffer holds, for a benchmark: no copy.
    Whatever(u32),
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// Read so many bytes.
    Read {
        /// First sector.
        sector: u64,
        /// How many bytes.
        bytes: u32,
    },
    /// Write.
    Write {
        /// First sector.
        sector: u64,
        /// What.
        data: Payload<'a>,
    },
    /// Make stable what was written.
    Flush,
    /// Forget sectors.
    Discard {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// Make sectors read as zeroes.
    WriteZeroes {
        /// First sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Whether their space may be given back.
        unmap: bool,
    },
    /// The serial number.
    GetId,
    /// A request of a test's own: its header, and bytes that it reads.
    Raw {
        /// The request type.
        kind: u32,
        /// The header's sector.
        sector: u64,
        /// What follows the header.
        data: &'a [u8],
    },
}

impl Request<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::Discard { .. } => "discard",
            Self::WriteZeroes { .. } => "write-zeroes",
            Self::GetId => "get-id",
            Self::Raw { .. } => "request",
        }
    }
}

/// A request that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkDone {
    /// Which.
    pub ticket: Ticket,
    /// VIRTIO_BLK_S_OK, IOERR or UNSUPP: 0, 1 or 2.
    pub status: u8,
}

impl BlkDone {
    /// Whether it succeeded.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == STATUS_OK
    }
}

/// A disk behind a vhost-user socket.
///
/// Requests are submitted and waited for by queue; [`read`](Self::read) and the like do one and wait for it, on queue 0.
#[derive(Debug)]
pub struct Blk {
    session: VhostUser,
    config: ConfigSpace,
    /// Completed while something else was waited for.
    stashed: VecDeque<BlkDone>,
}

impl Blk {
    /// Connects to a virtio-blk server, reads its configuration and starts its queues.
    ///
    /// # Errors
    /// [`ClientError`] as of [`VhostUser::connect`].
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self, ClientError> {
        let session = VhostUser::connect(path, options)?;
        let mut disk = Self { session, config: ConfigSpace::default(), stashed: VecDeque::new() };
        if disk.session.has_protocol(vhost::vhost_user::VhostUserProtocolFeatures::CONFIG) {
            disk.read_config()?;
        }
        Ok(disk)
    }

    /// Reads the configuration anew.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses.
    pub fn read_config(&mut self) -> Result<ConfigSpace, ClientError> {
        let bytes = self.session.config(0, size_of::<ConfigSpace>() as u32)?;
        let config = ConfigSpace::read_from_bytes(&bytes);
        self.config = config.map_err(|_| misbehaves("the configuration is too short"))?;
        Ok(self.config)
    }

    /// The capacity in 512-byte sectors, as last read.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.config.capacity.get()
    }

    /// Whether a feature is in use.
    #[must_use]
    pub fn has(&self, feature: Features) -> bool {
        self.session.features() & feature.bits() != 0
    }

    /// Sets `writeback`.
    ///
    /// # Errors
    /// [`ClientError`] if the server refuses.
    pub fn set_writeback(&mut self, on: bool) -> Result<(), ClientError> {
        self.session.set_config(ConfigSpace::WRITEBACK as u32, &[u8::from(on)])
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &VhostUser {
        &self.session
    }

    /// The session: to reconnect, to stop rings, to send other messages.
    pub fn session_mut(&mut self) -> &mut VhostUser {
        &mut self.session
    }

    /// Makes a request available. The device is told by [`Self::wait`], or by [`VhostUser::kick`].
    ///
    /// # Errors
    /// [`ClientError::Full`] if the queue has no room, or the request is too large for a buffer.
    pub fn submit(&mut self, queue: u16, request: Request<'_>) -> Result<Ticket, ClientError> {
        let (kind, sector, data) = match request {
            Request::Read { sector, bytes } => (IN, sector, Data::In(bytes)),
            Request::Write { sector, data: Payload::Bytes(bytes) } => (OUT, sector, self.out(queue, bytes)?),
            Request::Write { sector, data: Payload::Whatever(bytes) } => (OUT, sector, Data::Out(bytes)),
            Request::Flush => (FLUSH, 0, Data::None),
            Request::Discard { sector, sectors } => {
                (DISCARD, 0, self.out(queue, segment(sector, sectors, false).as_bytes())?)
            }
            Request::WriteZeroes { sector, sectors, unmap } => {
                (WRITE_ZEROES, 0, self.out(queue, segment(sector, sectors, unmap).as_bytes())?)
            }
            Request::GetId => (GET_ID, 0, Data::In(ID_BYTES)),
            Request::Raw { kind, sector, data } => (kind, sector, self.out(queue, data)?),
        };
        let header = RequestHeader { kind: kind.into(), reserved: 0.into(), sector: sector.into() };
        let chain = Chain { request: header.as_bytes(), data, response: 1, response_first: false };
        self.session.submit(queue, &chain)
    }

    fn out(&mut self, queue: u16, bytes: &[u8]) -> Result<Data, ClientError> {
        if bytes.is_empty() {
            return Ok(Data::None);
        }
        self.session.fill_next(queue, bytes)?;
        Ok(Data::Out(bytes.len() as u32))
    }

    /// Takes a request that came back, if there is one.
    ///
    /// # Errors
    /// [`ClientError`] if the device misbehaves.
    pub fn poll(&mut self, queue: u16) -> Result<Option<BlkDone>, ClientError> {
        if let Some(at) = self.stashed.iter().position(|done| done.ticket.queue == queue) {
            return Ok(self.stashed.remove(at));
        }
        self.session.poll(queue)?.map(|completed| self.check(completed)).transpose()
    }

    /// Tells the device what is new, and sleeps until a request came back.
    ///
    /// # Errors
    /// [`ClientError::Timeout`], [`ClientError::Gone`], or that the device misbehaves.
    pub fn wait(&mut self, queue: u16) -> Result<BlkDone, ClientError> {
        if let Some(at) = self.stashed.iter().position(|done| done.ticket.queue == queue) {
            self.session.kick(queue)?;
            return Ok(self.stashed.remove(at).expect("it was found there"));
        }
        let completed = self.session.wait(queue)?;
        self.check(completed)
    }

    /// Waits for one request; what else comes back is kept for [`Self::poll`] and [`Self::wait`].
    ///
    /// # Errors
    /// As of [`Self::wait`].
    pub fn wait_for(&mut self, ticket: Ticket) -> Result<BlkDone, ClientError> {
        if let Some(at) = self.stashed.iter().position(|done| done.ticket == ticket) {
            return Ok(self.stashed.remove(at).expect("it was found there"));
        }
        loop {
            let completed = self.session.wait(ticket.queue)?;
            let done = self.check(completed)?;
            if done.ticket == ticket {
                return Ok(done);
            }
            self.stashed.push_back(done);
        }
    }

    /// The data that a read returned. Valid until the next request is submitted to the queue.
    pub fn data(&self, ticket: Ticket, into: &mut [u8]) {
        self.session.data(ticket, into);
    }

    fn check(&self, completed: Completed) -> Result<BlkDone, ClientError> {
        let Completed { ticket, written } = completed;
        let mut status = [0; 1];
        self.session.response(ticket, &mut status);
        let [status] = status;
        if status > STATUS_MAX {
            return Err(misbehaves(format!("a request came back with status {status:#x}")));
        }
        // A device may say less than it has written (5.2.6.2 has no word on it), but not that it wrote no status.
        if written == 0 {
            return Err(misbehaves("a request came back with nothing written"));
        }
        Ok(BlkDone { ticket, status })
    }

    fn perform(&mut self, request: Request<'_>) -> Result<Ticket, ClientError> {
        let ticket = self.submit(0, request)?;
        let done = self.wait_for(ticket)?;
        if done.is_ok() {
            return Ok(ticket);
        }
        Err(ClientError::Failed { request: request.name(), status: done.status })
    }

    /// Reads.
    ///
    /// # Errors
    /// [`ClientError::Failed`] with the device's status; otherwise as of [`Self::wait`].
    pub fn read(&mut self, sector: u64, into: &mut [u8]) -> Result<(), ClientError> {
        let ticket = self.perform(Request::Read { sector, bytes: into.len() as u32 })?;
        self.data(ticket, into);
        Ok(())
    }

    /// Writes.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<(), ClientError> {
        self.perform(Request::Write { sector, data: Payload::Bytes(data) }).map(drop)
    }

    /// Makes stable what was written.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.perform(Request::Flush).map(drop)
    }

    /// Forgets sectors.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn discard(&mut self, sector: u64, sectors: u32) -> Result<(), ClientError> {
        self.perform(Request::Discard { sector, sectors }).map(drop)
    }

    /// Makes sectors read as zeroes.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn write_zeroes(&mut self, sector: u64, sectors: u32, unmap: bool) -> Result<(), ClientError> {
        self.perform(Request::WriteZeroes { sector, sectors, unmap }).map(drop)
    }

    /// The serial number, without the zeroes behind it.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn id(&mut self) -> Result<String, ClientError> {
        let ticket = self.perform(Request::GetId)?;
        let mut id = [0; ID_BYTES as usize];
        self.data(ticket, &mut id);
        let id = id.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(id).into_owned())
    }
}

fn segment(sector: u64, sectors: u32, unmap: bool) -> RangeSegment {
    let flags = if unmap { RangeFlags::UNMAP.bits() } else { 0 };
    RangeSegment { sector: sector.into(), num_sectors: sectors.into(), flags: flags.into() }
}
