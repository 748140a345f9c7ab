//! A virtio-scsi driver (VIRTIO 1.3, 5.6): commands and task management, with the bytes that they are made of.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Instant;

use scsi_model::front::virtio_scsi::wire::{EventData, Management, RequestHead, ResponseHead, control};
use scsi_model::front::virtio_scsi::{Address, CONTROL, EVENT, REQUEST};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::cdb;
use super::error::ClientError;
use super::options::Options;
use super::queue::misbehaves;
use super::scsi_done::{ScsiDone, Sense};
use super::session::{Chain, Completed, Data, VhostUser};
use super::ticket::Ticket;

/// Bytes of a request before its data: the header and a CDB of the default size (5.6.4).
const CDB_BYTES: usize = 32;
const REQUEST_BYTES: usize = size_of::<RequestHead>() + CDB_BYTES;
/// Bytes of an answer before its data, with sense data of the default size.
const SENSE_BYTES: usize = 96;
const HEAD_BYTES: usize = size_of::<ResponseHead>();
const RESPONSE_BYTES: usize = HEAD_BYTES + SENSE_BYTES;
/// Buffers that are there for events.
const EVENT_BUFFERS: u16 = 4;

/// The data of a command.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// There is none.
    None,
    /// The unit takes these bytes.
    Out(&'a [u8]),
    /// The unit gives so many bytes at most.
    In(u32),
}

/// A command for a unit.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Which unit.
    pub to: Address,
    /// The command descriptor block: 32 bytes at most.
    pub cdb: &'a [u8],
    /// What goes with it.
    pub data: Payload<'a>,
    /// SIMPLE, ORDERED or HEAD: `wire::attribute`.
    pub attribute: u8,
}

impl<'a> Command<'a> {
    /// A command with the attribute SIMPLE.
    #[must_use]
    pub const fn new(to: Address, cdb: &'a [u8], data: Payload<'a>) -> Self {
        Self { to, cdb, data, attribute: 0 }
    }
}

/// A SCSI host behind a vhost-user socket.
///
/// Commands are submitted and waited for by queue: those from [`Self::QUEUE`] on take any. A command that waits for its
/// answer is on that one.
#[derive(Debug)]
pub struct Scsi {
    session: VhostUser,
    /// Completed while something else was waited for.
    stashed: VecDeque<ScsiDone>,
}

impl Scsi {
    /// The first queue for commands.
    pub const QUEUE: u16 = REQUEST as u16;

    /// Connects to a virtio-scsi server, starts its queues, and makes buffers available for events. `options.queues` counts the
    /// control and the event queue, too.
    ///
    /// # Errors
    /// [`ClientError`] as of [`VhostUser::connect`].
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Self, ClientError> {
        let config_bytes = size_of::<scsi_model::front::virtio_scsi::wire::ConfigSpace>() as u32;
        let config_bytes = options.config_bytes.min(config_bytes);
        let session = VhostUser::connect(path, Options { config_bytes, ..options })?;
        let mut host = Self { session, stashed: VecDeque::new() };
        for _ in 0..EVENT_BUFFERS.min(host.session.options().size) {
            host.await_event()?;
        }
        Ok(host)
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

    /// Makes a command available. The device is told by [`Self::wait`], or by [`VhostUser::kick`].
    ///
    /// # Errors
    /// [`ClientError::Full`] if the queue has no room, or the command too long a CDB or too much data.
    pub fn submit(&mut self, queue: u16, command: &Command<'_>) -> Result<Ticket, ClientError> {
        let head = RequestHead {
            lun: command.to.encode(),
            id: self.session.next_sequence().into(),
            task_attr: command.attribute,
            prio: 0,
            crn: 0,
        };
        let mut request = [0; REQUEST_BYTES];
        let (start, block) = request.split_at_mut(size_of::<RequestHead>());
        start.copy_from_slice(head.as_bytes());
        block.get_mut(..command.cdb.len()).ok_or(ClientError::Full)?.copy_from_slice(command.cdb);
        let data = match command.data {
            Payload::None => Data::None,
            Payload::In(bytes) => Data::In(bytes),
            Payload::Out(bytes) => {
                self.session.fill_next(queue, bytes)?;
                Data::Out(bytes.len() as u32)
            }
        };
        let chain = Chain { request: &request, data, response: RESPONSE_BYTES as u32, response_first: true };
        self.session.submit(queue, &chain)
    }

    /// Takes a command that came back, if there is one.
    ///
    /// # Errors
    /// [`ClientError`] if the device misbehaves.
    pub fn poll(&mut self, queue: u16) -> Result<Option<ScsiDone>, ClientError> {
        if let Some(at) = self.stashed.iter().position(|done| done.ticket.queue == queue) {
            return Ok(self.stashed.remove(at));
        }
        self.session.poll(queue)?.map(|completed| self.check(completed)).transpose()
    }

    /// Tells the device what is new, and sleeps until a command came back.
    ///
    /// # Errors
    /// [`ClientError::Timeout`], [`ClientError::Gone`], or that the device misbehaves.
    pub fn wait(&mut self, queue: u16) -> Result<ScsiDone, ClientError> {
        self.session.kick(queue)?;
        match self.poll(queue)? {
            Some(done) => Ok(done),
            None => {
                let completed = self.session.wait(queue)?;
                self.check(completed)
            }
        }
    }

    /// Waits for one command; what else comes back is kept for [`Self::poll`] and [`Self::wait`].
    ///
    /// # Errors
    /// As of [`Self::wait`].
    pub fn wait_for(&mut self, ticket: Ticket) -> Result<ScsiDone, ClientError> {
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

    /// The data that a command returned. Valid until the next command is submitted to the queue.
    pub fn data(&self, ticket: Ticket, into: &mut [u8]) {
        self.session.data(ticket, into);
    }

    fn check(&self, completed: Completed) -> Result<ScsiDone, ClientError> {
        let Completed { ticket, written } = completed;
        let mut response = [0; RESPONSE_BYTES];
        self.session.response(ticket, &mut response);
        let (head, sense) = response.split_at(HEAD_BYTES);
        let head = ResponseHead::read_from_bytes(head).map_err(|_| misbehaves("an answer without a head"))?;
        let ResponseHead { sense_len, residual, status, response, .. } = head;
        let (sense_len, residual) = (sense_len.get() as usize, residual.get());
        if (written as usize) < HEAD_BYTES + sense_len || sense_len > SENSE_BYTES {
            return Err(misbehaves(format!("{written} bytes written, with {sense_len} of sense data")));
        }
        let room = self.session.data_bytes(ticket);
        if residual > room {
            return Err(misbehaves(format!("{residual} bytes of a buffer of {room} were not used")));
        }
        Ok(ScsiDone { ticket, response, status, sense: Sense::parse(&sense[..sense_len]), residual })
    }

    /// Does a command that has to end with GOOD.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with what the unit said; otherwise as of [`Self::wait`].
    pub fn perform(&mut self, command: &Command<'_>) -> Result<Ticket, ClientError> {
        let ticket = self.submit(Self::QUEUE, command)?;
        let done = self.wait_for(ticket)?;
        if done.is_good() {
            return Ok(ticket);
        }
        Err(ClientError::Refused { opcode: command.cdb.first().copied().unwrap_or(0), done })
    }

    /// Waits until a unit is ready: what it has to say of a power-on or a reset is taken.
    ///
    /// # Errors
    /// As of [`Self::perform`], if it is not ready in time.
    pub fn ready(&mut self, to: Address) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.session.options().timeout;
        let command = Command::new(to, &cdb::TEST_UNIT_READY, Payload::None);
        loop {
            match self.perform(&command) {
                Err(ClientError::Refused { .. }) if Instant::now() < deadline => {}
                result => return result.map(drop),
            }
        }
    }

    /// Reads blocks of `block_bytes` bytes from `lba` on.
    ///
    /// # Errors
    /// As of [`Self::perform`].
    pub fn read(
        &mut self,
        to: Address,
        lba: u64,
        block_bytes: u32,
        into: &mut [u8],
    ) -> Result<(), ClientError> {
        let bytes = into.len() as u32;
        let block = cdb::read_16(lba, bytes / block_bytes, false);
        let ticket = self.perform(&Command::new(to, &block, Payload::In(bytes)))?;
        self.data(ticket, into);
        Ok(())
    }

    /// Makes stable what was written.
    ///
    /// # Errors
    /// As of [`Self::perform`].
    pub fn flush(&mut self, to: Address) -> Result<(), ClientError> {
        self.perform(&Command::new(to, &cdb::synchronize_cache_16(), Payload::None)).map(drop)
    }

    /// Turns the write cache of a unit on or off, by its caching page.
    ///
    /// # Errors
    /// As of [`Self::perform`].
    pub fn set_write_cache(&mut self, to: Address, on: bool) -> Result<(), ClientError> {
        let page = cdb::caching_page(on);
        self.perform(&Command::new(to, &cdb::MODE_SELECT_6, Payload::Out(&page))).map(drop)
    }

    /// Has a task management function done (`wire::function`), about `task` where it is about one, and returns the response.
    ///
    /// # Errors
    /// [`ClientError::Timeout`], [`ClientError::Gone`], or that the device misbehaves.
    pub fn manage(&mut self, function: u32, to: Address, task: Option<Ticket>) -> Result<u8, ClientError> {
        let request = Management {
            kind: control::TASK_MANAGEMENT.into(),
            subtype: function.into(),
            lun: to.encode(),
            id: task.map_or(0, |task| task.sequence).into(),
        };
        let chain =
            Chain { request: request.as_bytes(), data: Data::None, response: 1, response_first: true };
        let ticket = self.session.submit(CONTROL as u16, &chain)?;
        let Completed { ticket: done, written } = self.session.wait(CONTROL as u16)?;
        if done != ticket || written != 1 {
            return Err(misbehaves("the control queue answers something else"));
        }
        let mut response = [0];
        self.session.response(ticket, &mut response);
        Ok(response[0])
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// As of [`Self::wait`].
    pub fn event(&mut self) -> Result<EventData, ClientError> {
        let Completed { ticket, written } = self.session.wait(EVENT as u16)?;
        let mut event = EventData::default();
        if written as usize != size_of::<EventData>() {
            return Err(misbehaves(format!("an event of {written} bytes")));
        }
        self.session.response(ticket, event.as_mut_bytes());
        self.await_event()?;
        Ok(event)
    }

    /// Makes a buffer available for an event.
    fn await_event(&mut self) -> Result<(), ClientError> {
        let response = size_of::<EventData>() as u32;
        let chain = Chain { request: &[], data: Data::None, response, response_first: true };
        self.session.submit(EVENT as u16, &chain)?;
        self.session.kick(EVENT as u16).map(drop)
    }
}
