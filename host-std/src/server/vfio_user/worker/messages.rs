//! Messages of the client, handled in their order: answered at once, or blocked until the image is done.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blk_core::bus::WriteStatus;
use rustix::event::epoll;
use rustix::io::Errno;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::super::access::{Pieces, Regions};
use super::super::connection::{Broken, Message};
use super::super::irq::KINDS;
use super::super::protocol::{
    DeviceInfo, Header, IrqInfo, Kind, RegionAccess, RegionInfo, Request, SmallWrite, command,
};
use super::super::version;
use super::state::{BlockedCommand, Leaving, RegisterWrite, Stage, Worker};
use crate::server::mutant::{self, Mutant};

/// Most messages handled per turn, and most registers written for one message before the device is polled. Each may cause as
/// much work as one poll.
const MESSAGES_MAX: usize = 16;
const WRITES_MAX: usize = 16;
/// How long requests are taken before the thread looks at its other work, where the client is asked by message for each
/// descriptor: a ring of requests of the most segments is thousands of messages.
const TURN_TIME: Duration = Duration::from_millis(5);

impl Worker {
    /// Handles the client's messages, `MESSAGES_MAX` at most, until one blocks. Returns whether more may be waiting.
    pub(super) fn serve(&mut self) -> bool {
        let Some(session) = &mut self.session else { return false };
        let client = Arc::clone(&session.client);
        if std::mem::take(&mut session.readable) {
            client.lock().receive();
        }
        let mut left = MESSAGES_MAX;
        while left != 0 && self.session.as_ref().is_some_and(|session| session.busy.is_none()) {
            let mut message = std::mem::take(&mut self.message);
            let taken = client.lock().take(&mut message);
            if taken {
                self.handle(&mut message);
            }
            self.message = message;
            if !taken {
                break;
            }
            left -= 1;
        }
        self.check_patience();
        let broken = client.lock().broken().cloned();
        if let Some(broken) = broken {
            self.detach(&broken);
        }
        left == 0
    }

    /// Disconnects a client that has not sent its first message, or the rest of one, in time.
    fn check_patience(&mut self) {
        let Some(session) = &mut self.session else { return };
        let mut connection = session.client.lock();
        if session.negotiated && !connection.is_in_mid_message() {
            session.owes_since = None;
            return;
        }
        let since = *session.owes_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= connection.patience() {
            let why = format!("it has sent no whole message for {:?}", connection.patience());
            connection.fail(Broken::Fault(why));
        }
    }

    /// How long the thread may sleep before it has to look at a client that owes something.
    pub(super) fn patience_left(&self) -> Option<Duration> {
        let session = self.session.as_ref()?;
        let since = session.owes_since?;
        Some(session.client.lock().patience().saturating_sub(since.elapsed()))
    }

    /// Ends the session and starts the device's reset. [`Self::leave`] does the rest.
    fn detach(&mut self, why: &Broken) {
        let Some(session) = self.session.take() else { return };
        match why {
            Broken::Gone => tracing::info!("the client has gone"),
            Broken::Fault(why) => tracing::warn!("the client is let go: {why}"),
        }
        session.client.lock().fail(Broken::Gone);
        let _ = epoll::delete(&self.epoll, &*session.client.lock());
        self.irqs.release();
        self.memory_changing = false;
        self.leaving = Some(Leaving { stage: Stage::Reset, done: session.done });
        self.set_shut();
        if !mutant::active(Mutant::StopWithoutDrain) {
            let progress = self.device.reset(&self.memory, &mut self.ports);
            self.irqs.change(progress.irq);
            self.pending = progress.pending_write;
        }
        self.due = true;
    }

    fn handle(&mut self, message: &mut Message) {
        let header = message.header;
        if !matches!(header.command, command::DMA_MAP | command::DMA_UNMAP) {
            self.memory_changing = false;
        }
        let reply = (header.kind() == Some(Kind::Command { reply: true })).then_some(header);
        let fds = std::mem::take(&mut message.fds);
        if let Err(errno) = self.handle_request(header, reply, &message.body, fds) {
            tracing::debug!(command = header.command, %errno, "a command of the client is refused");
            if let (Some(header), Some(session)) = (reply, &self.session) {
                // If it cannot be sent, the connection says so.
                let _ = session.client.lock().send(&[header.failure(errno).as_bytes()]);
            }
        }
    }

    /// Handles a request: answers it or leaves it blocked. An error is for the caller to send.
    fn handle_request(
        &mut self,
        header: Header,
        reply: Option<Header>,
        body: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), Errno> {
        let Some(session) = &mut self.session else { return Err(Errno::INVAL) };
        if !session.negotiated && header.command != command::VERSION {
            let mut connection = session.client.lock();
            let _ = connection.send(&[header.failure(Errno::INVAL).as_bytes()]);
            connection.fail(Broken::Fault("its first message is not VERSION".into()));
            return Ok(());
        }
        let request = Request::parse(header.command, body)?;
        if !fds.is_empty() && !matches!(request, Request::DmaMap(_) | Request::SetIrqs { .. }) {
            return Err(Errno::INVAL);
        }
        match request {
            Request::RegionRead(access) => return self.read(reply, access),
            Request::RegionWrite { access, data } => {
                let writes = self.writes(access, data)?;
                self.write(reply, access.as_bytes(), writes);
                return Ok(());
            }
            Request::WriteMulti { writes } => return self.write_multi(reply, writes),
            Request::Version { version, data } => {
                if session.negotiated {
                    return Err(Errno::INVAL);
                }
                let (agreed, body) = version::negotiate(version, data)?;
                session.negotiated = true;
                session.client.lock().set_data_max(agreed.data_max);
                self.answer(reply, &body);
            }
            Request::DmaMap(map) => {
                self.table.map(&map, fds, self.lifecycle.bus_errors())?;
                self.take_memory();
                self.answer(reply, &[]);
            }
            Request::DmaUnmap(unmap) => {
                session.busy = Some(BlockedCommand::Unmap { reply, unmap });
                self.resume_blocked_command();
            }
            Request::DeviceInfo => {
                let argsz = size_of::<DeviceInfo>() as u32;
                // VFIO_DEVICE_FLAGS_RESET, VFIO_DEVICE_FLAGS_PCI.
                let info = DeviceInfo { argsz, flags: 1 | 2, regions: Regions::COUNT, irqs: KINDS };
                self.answer(reply, info.as_bytes());
            }
            Request::RegionInfo { index } => {
                let size = self.regions.bytes(index)?;
                let argsz = size_of::<RegionInfo>() as u32;
                // VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE.
                let flags = if size == 0 { 0 } else { 1 | 2 };
                let info = RegionInfo { argsz, flags, index, cap_offset: 0, size, offset: 0 };
                self.answer(reply, info.as_bytes());
            }
            Request::IrqInfo { index } => {
                let (flags, count) = self.irqs.info(index)?;
                let info = IrqInfo { argsz: size_of::<IrqInfo>() as u32, flags, index, count };
                self.answer(reply, info.as_bytes());
            }
            Request::SetIrqs { set, flags, data } => {
                self.irqs.set(&set, flags, data, fds)?;
                self.answer(reply, &[]);
            }
            Request::Reset => {
                session.busy = Some(BlockedCommand::Reset { reply });
                let progress = self.device.reset(&self.memory, &mut self.ports);
                self.irqs.change(progress.irq);
                (self.pending, self.due) = (progress.pending_write, true);
                self.resume_blocked_command();
            }
        }
        Ok(())
    }

    fn answer(&self, reply: Option<Header>, body: &[u8]) {
        if let (Some(header), Some(session)) = (reply, &self.session) {
            // If it cannot be sent, the connection says so.
            let _ = session.client.lock().send(&[header.reply(body.len()).as_bytes(), body]);
        }
    }

    fn read(&mut self, reply: Option<Header>, access: RegionAccess) -> Result<(), Errno> {
        let region = self.regions.find(access)?;
        let (mut small, mut large) = ([0; 8], Vec::new());
        let count = access.count as usize;
        let data = match small.get_mut(..count) {
            Some(small) => small,
            None => {
                large.resize(count, 0);
                &mut large[..]
            }
        };
        let mut rest = &mut *data;
        for (offset, width) in Pieces::new(access) {
            let read = self.device.read(region, offset, width, &self.memory, &mut self.ports);
            self.irqs.change(read.irq);
            let (piece, others) = rest.split_at_mut(width.bytes().into());
            piece.copy_from_slice(&read.value.to_le_bytes()[..piece.len()]);
            rest = others;
        }
        if let (Some(header), Some(session)) = (reply, &self.session) {
            let header = header.reply(size_of::<RegionAccess>() + count);
            let _ = session.client.lock().send(&[header.as_bytes(), access.as_bytes(), data]);
        }
        self.irqs.register_read(self.state.requests());
        // A register read can have side effects that let the device go on.
        self.due = true;
        Ok(())
    }

    /// The register writes that a message asks for.
    fn writes<'a>(
        &self,
        access: RegionAccess,
        data: &'a [u8],
    ) -> Result<impl Iterator<Item = RegisterWrite> + use<'a>, Errno> {
        let region = self.regions.find(access)?;
        let mut rest = data;
        Ok(Pieces::new(access).map(move |(offset, width)| {
            let (piece, others) = rest.split_at(usize::from(width.bytes()).min(rest.len()));
            rest = others;
            let mut value = [0; 8];
            value[..piece.len()].copy_from_slice(piece);
            RegisterWrite { region, offset, width, value: u64::from_le_bytes(value) }
        }))
    }

    fn write_multi(&mut self, reply: Option<Header>, writes: &[u8]) -> Result<(), Errno> {
        let mut all = Vec::new();
        let mut rest = writes;
        while let Ok((SmallWrite { access, data }, others)) = SmallWrite::read_from_prefix(rest) {
            rest = others;
            let data = data.get(..access.count as usize).ok_or(Errno::INVAL)?;
            all.extend(self.writes(access, data)?);
        }
        let count = (writes.len() / size_of::<SmallWrite>()) as u64;
        self.write(reply, count.as_bytes(), all.into_iter());
        Ok(())
    }

    /// Writes registers, and answers with `body` when the device has taken them all.
    fn write(&mut self, reply: Option<Header>, body: &[u8], mut writes: impl Iterator<Item = RegisterWrite>) {
        self.due = true;
        let mut left = WRITES_MAX;
        while let Some(write) = writes.next() {
            left -= 1;
            if self.write_register(write) == WriteStatus::Pending || left == 0 {
                if let Some(session) = &mut self.session {
                    session.busy =
                        Some(BlockedCommand::Write { reply, body: body.to_vec(), rest: writes.collect() });
                }
                return;
            }
        }
        self.answer(reply, body);
    }

    fn write_register(&mut self, write: RegisterWrite) -> WriteStatus {
        let RegisterWrite { region, offset, width, value } = write;
        let written = self.device.write(region, offset, width, value, &self.memory, &mut self.ports);
        self.irqs.change(written.irq);
        self.pending |= written.value == WriteStatus::Pending;
        written.value
    }

    /// Resumes the blocked command, if what it waited for is done. Returns whether to run another turn at once.
    pub(super) fn resume_blocked_command(&mut self) -> bool {
        let Some(session) = &mut self.session else { return false };
        match session.busy.take() {
            None => return false,
            Some(BlockedCommand::Unmap { reply, unmap }) => {
                let drained = self.state.in_flight() == 0 || mutant::active(Mutant::StopWithoutDrain);
                if !drained {
                    session.busy = Some(BlockedCommand::Unmap { reply, unmap });
                    self.set_shut();
                    return false;
                }
                let result = self.table.unmap(&unmap);
                self.memory_changing = true;
                self.take_memory();
                match (result, reply) {
                    (Ok(()), _) => self.answer(reply, unmap.as_bytes()),
                    (Err(errno), Some(header)) => self.refuse(header, errno),
                    (Err(_), None) => {}
                }
            }
            Some(BlockedCommand::Write { reply, body, mut rest }) => {
                if !self.pending {
                    self.due = true;
                    let mut left = WRITES_MAX;
                    while left != 0
                        && let Some(write) = rest.pop_front()
                    {
                        left -= 1;
                        if self.write_register(write) == WriteStatus::Pending {
                            break;
                        }
                    }
                }
                if self.pending || !rest.is_empty() {
                    if let Some(session) = &mut self.session {
                        session.busy = Some(BlockedCommand::Write { reply, body, rest });
                    }
                    return !self.pending;
                }
                self.answer(reply, &body);
            }
            Some(BlockedCommand::Reset { reply })
                if self.pending && !mutant::active(Mutant::StopWithoutDrain) =>
            {
                session.busy = Some(BlockedCommand::Reset { reply });
                return false;
            }
            Some(BlockedCommand::Reset { reply }) => self.answer(reply, &[]),
        }
        self.set_shut();
        // The storage may have been shut meanwhile: the device can submit again.
        self.due = true;
        true
    }

    fn refuse(&self, header: Header, errno: Errno) {
        if let Some(session) = &self.session {
            let _ = session.client.lock().send(&[header.failure(errno).as_bytes()]);
        }
    }

    /// Gives the device the memory of the changed table.
    fn take_memory(&mut self) {
        if let Some(session) = &self.session {
            self.memory = self.table.memory(&session.client);
            self.turn_time = self.table.has_private().then_some(TURN_TIME);
            self.counts.memory_tables.add(1);
        }
    }
}
