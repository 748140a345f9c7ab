//! The thread of a PCI device: an event loop over the client's socket, the images and the operator's commands.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use blk_core::bus::{Region, Width, WriteStatus};
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::io::Errno;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::access::{Pieces, Regions};
use super::connection::{Broken, Connection, Message};
use super::dma::{Client, Table};
use super::irq::{Irqs, KINDS};
use super::port::{Port, State};
use super::protocol::{
    DeviceInfo, DmaUnmap, Header, IrqInfo, Kind, RegionAccess, RegionInfo, Request, SmallWrite, command,
};
use super::{PciDevice, version};
use crate::memory::MappedMemory;
use crate::server::mutant::{self, Mutant};
use crate::server::stats::Counter;
use crate::server::vhost_user::Waker;

/// How long the client may take from one change of its memory to the next, on a busy machine too: a ring that is looked at
/// while its memory is away is broken until the guest resets the device.
const SETTLING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// How long the thread may look for more before it sleeps: waking up takes longer than answering, on both sides. About what a
/// guest's driver needs from one access to the next, and a quick disk for a request.
const LINGERING_MAX: Duration = Duration::from_micros(400);
const LINGERING_MIN: Duration = Duration::from_micros(25);
/// A message that waits for more requests waits no longer after the guest's last access: one that issues them is quicker, even
/// where its processor is emulated.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };
/// A processor that comes back so late has other work: whoever sleeps is then served sooner than whoever yields, and the thread
/// does not linger for a while.
const CROWDED: Duration = Duration::from_millis(1);
const CROWDED_FOR: Duration = Duration::from_millis(100);

/// What the thread is told. Where there is a `Sender`, the answer comes once it is done.
pub(super) enum Command {
    /// Serves a client, until it goes and the device is at rest.
    Client { connection: Box<Connection>, done: Sender<()> },
    /// Takes no requests from now on, for one reason more, or one fewer.
    Hold { hold: bool, done: Sender<()> },
    /// Answers when nothing is in flight.
    Drain(Sender<()>),
    /// Flushes the images, while nothing is in flight, and tells whether that went well.
    Flush(Sender<bool>),
    /// Looks after the device.
    Look,
    /// Ends the thread, whatever is in flight.
    End,
}

/// What the thread counts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) memory_tables: Counter,
    pub(super) interrupts: Arc<Counter>,
}

/// A client, and what it is waiting for.
struct Attached {
    client: Arc<Client>,
    /// VERSION has been exchanged.
    negotiated: bool,
    busy: Option<Busy>,
    /// There is something to receive.
    readable: bool,
    /// Whether the socket may wake the thread with something to receive.
    watched: bool,
    done: Sender<()>,
}

/// A command that has to wait for the image. Those after it wait too.
enum Busy {
    /// The device has not taken a register write; these are to follow.
    Write { reply: Option<Header>, body: Vec<u8>, rest: VecDeque<RegisterWrite> },
    /// What is in flight may use the memory.
    Unmap { reply: Option<Header>, unmap: DmaUnmap },
    /// The device is being reset.
    Reset { reply: Option<Header> },
}

#[derive(Clone, Copy)]
struct RegisterWrite {
    region: Region,
    offset: u64,
    width: Width,
    value: u64,
}

/// What is left to do when a client has gone.
struct Leaving {
    stage: Stage,
    done: Sender<()>,
}

enum Stage {
    Reset,
    Flush(Flushing),
}

/// A flush of all images.
#[derive(Default)]
struct Flushing {
    /// How each ended; nothing before it began.
    ports: Vec<Option<bool>>,
    begun: bool,
}

enum Waiting {
    Drained(Sender<()>),
    Flushed(Sender<bool>, Flushing),
}

pub(super) struct Worker {
    device: Box<dyn PciDevice>,
    regions: Regions,
    ports: Vec<Port>,
    state: Arc<State>,
    memory: MappedMemory,
    table: Table,
    irqs: Irqs,
    attached: Option<Attached>,
    leaving: Option<Leaving>,
    /// Reasons to take no requests.
    holds: u32,
    waiting: Vec<Waiting>,
    /// The images know that somebody waits.
    draining: bool,
    /// The device has something to do.
    due: bool,
    /// A register write or a reset is still waiting.
    pending: bool,
    /// Memory has been taken away, and may come back in another form: QEMU unmaps and maps again what changes, while no
    /// processor runs. Until the next access to a register, or for [`SETTLING`], the device does not look at it.
    unsettled: bool,
    message: Message,
    /// How long the thread looks for more before it sleeps.
    lingering: Duration,
    /// Until when it does not, because others need the processor.
    crowded_until: Instant,
    counts: Arc<Counts>,
    commands: Receiver<Command>,
    control: Arc<Waker>,
    epoll: OwnedFd,
}

// What woke the thread.
const CONTROL: u64 = 0;
const IMAGE: u64 = 1;
const CLIENT: u64 = 2;

impl Worker {
    pub(super) fn new(
        device: Box<dyn PciDevice>,
        ports: Vec<Port>,
        state: Arc<State>,
        commands: Receiver<Command>,
        control: Arc<Waker>,
        counts: Arc<Counts>,
    ) -> rustix::io::Result<Self> {
        use crate::backend::Handle as _;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*control, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
        for port in &ports {
            // By edges: it stays readable from one `arm` to the next, and is not armed when nothing is in flight.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, port.wake_fd(), epoll::EventData::new_u64(IMAGE), flags)?;
        }
        Ok(Self {
            regions: Regions::new(device.function()),
            irqs: Irqs::new(device.function(), Arc::clone(&counts.interrupts)),
            device,
            ports,
            state,
            memory: MappedMemory::default(),
            table: Table::default(),
            attached: None,
            leaving: None,
            holds: 0,
            waiting: Vec::new(),
            draining: false,
            due: false,
            pending: false,
            unsettled: false,
            message: Message::default(),
            lingering: LINGERING_MIN,
            crowded_until: Instant::now(),
            counts,
            commands,
            control,
            epoll,
        })
    }

    /// Works until it is told to end.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(8);
        loop {
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, Command::End) {
                    return;
                }
                self.obey(command);
            }
            self.serve();
            let again = self.look_after();
            if again && let Some(attached) = &mut self.attached {
                // A device that never rests must not keep the client waiting.
                attached.readable |= attached.busy.is_none();
            }
            let moved = self.settle();
            self.irqs.signal(self.state.requests(), false);
            if !moved && !again && !self.linger() {
                self.sleep(&mut events);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        self.due = true;
        match command {
            Command::Client { connection, done } => self.attach(*connection, done),
            Command::Hold { hold, done } => {
                self.holds = if hold { self.holds + 1 } else { self.holds.saturating_sub(1) };
                // Whoever asked may have gone: nobody misses the answer then.
                let _ = done.send(());
            }
            Command::Drain(done) => self.waiting.push(Waiting::Drained(done)),
            Command::Flush(done) => self.waiting.push(Waiting::Flushed(done, Flushing::default())),
            Command::Look => self.ports.iter_mut().for_each(|port| port.refresh(&self.memory)),
            Command::End => {}
        }
    }

    fn attach(&mut self, connection: Connection, done: Sender<()>) {
        let data = epoll::EventData::new_u64(CLIENT);
        if let Err(errno) = epoll::add(&self.epoll, &connection, data, epoll::EventFlags::IN) {
            tracing::error!("a client cannot be waited for: {errno}");
            return;
        }
        let client = Client::new(connection);
        self.attached =
            Some(Attached { client, negotiated: false, busy: None, readable: true, watched: true, done });
    }

    /// Takes what the client has sent.
    fn serve(&mut self) {
        let Some(attached) = &mut self.attached else { return };
        let client = Arc::clone(&attached.client);
        if std::mem::take(&mut attached.readable) {
            client.lock().receive();
        }
        while self.attached.as_ref().is_some_and(|attached| attached.busy.is_none()) {
            let mut message = std::mem::take(&mut self.message);
            let taken = client.lock().take(&mut message);
            if taken {
                self.handle(&mut message);
            }
            self.message = message;
            if !taken {
                break;
            }
        }
        let broken = client.lock().broken().cloned();
        if let Some(broken) = broken {
            self.detach(&broken);
        }
    }

    /// The client has gone, or is let go.
    fn detach(&mut self, why: &Broken) {
        let Some(attached) = self.attached.take() else { return };
        match why {
            Broken::Gone => tracing::info!("the client has gone"),
            Broken::Fault(why) => tracing::warn!("the client is let go: {why}"),
        }
        attached.client.lock().fail(Broken::Gone);
        let _ = epoll::delete(&self.epoll, &*attached.client.lock());
        self.irqs.release();
        self.unsettled = false;
        self.leaving = Some(Leaving { stage: Stage::Reset, done: attached.done });
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
            self.unsettled = false;
        }
        let reply = (header.kind() == Some(Kind::Command { reply: true })).then_some(header);
        let fds = std::mem::take(&mut message.fds);
        if let Err(errno) = self.obey_client(header, reply, &message.body, fds) {
            tracing::debug!(command = header.command, %errno, "a command of the client is refused");
            if let (Some(header), Some(attached)) = (reply, &self.attached) {
                // If it cannot be sent, the connection says so.
                let _ = attached.client.lock().send(&[header.failure(errno).as_bytes()]);
            }
        }
    }

    /// Does what the client says, and answers; or returns what it is to be told has failed.
    fn obey_client(
        &mut self,
        header: Header,
        reply: Option<Header>,
        body: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<(), Errno> {
        let Some(attached) = &mut self.attached else { return Err(Errno::INVAL) };
        if !attached.negotiated && header.command != command::VERSION {
            let mut connection = attached.client.lock();
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
                if attached.negotiated {
                    return Err(Errno::INVAL);
                }
                let (agreed, body) = version::negotiate(version, data)?;
                attached.negotiated = true;
                attached.client.lock().set_data_max(agreed.data_max);
                self.answer(reply, &body);
            }
            Request::DmaMap(map) => {
                self.table.map(&map, fds)?;
                self.take_memory();
                self.answer(reply, &[]);
            }
            Request::DmaUnmap(unmap) => {
                attached.busy = Some(Busy::Unmap { reply, unmap });
                self.go_on();
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
                attached.busy = Some(Busy::Reset { reply });
                let progress = self.device.reset(&self.memory, &mut self.ports);
                self.irqs.change(progress.irq);
                (self.pending, self.due) = (progress.pending_write, true);
                self.go_on();
            }
        }
        Ok(())
    }

    fn answer(&self, reply: Option<Header>, body: &[u8]) {
        if let (Some(header), Some(attached)) = (reply, &self.attached) {
            // If it cannot be sent, the connection says so.
            let _ = attached.client.lock().send(&[header.reply(body.len()).as_bytes(), body]);
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
        if let (Some(header), Some(attached)) = (reply, &self.attached) {
            let header = header.reply(size_of::<RegionAccess>() + count);
            let _ = attached.client.lock().send(&[header.as_bytes(), access.as_bytes(), data]);
        }
        self.irqs.heard(self.state.requests());
        // A read may free what the device waited for.
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
        while let Some(write) = writes.next() {
            if self.write_register(write) == WriteStatus::Pending {
                if let Some(attached) = &mut self.attached {
                    attached.busy = Some(Busy::Write { reply, body: body.to_vec(), rest: writes.collect() });
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

    /// Goes on with what the client waits for, if it can.
    fn go_on(&mut self) -> bool {
        let Some(attached) = &mut self.attached else { return false };
        match attached.busy.take() {
            None => return false,
            Some(Busy::Unmap { reply, unmap }) => {
                let drained = self.state.in_flight() == 0 || mutant::active(Mutant::StopWithoutDrain);
                if !drained {
                    attached.busy = Some(Busy::Unmap { reply, unmap });
                    self.set_shut();
                    return false;
                }
                let result = self.table.unmap(&unmap);
                self.unsettled = true;
                self.take_memory();
                match (result, reply) {
                    (Ok(()), _) => self.answer(reply, unmap.as_bytes()),
                    (Err(errno), Some(header)) => self.refuse(header, errno),
                    (Err(_), None) => {}
                }
            }
            Some(Busy::Write { reply, body, mut rest }) => {
                if !self.pending {
                    self.due = true;
                    while let Some(write) = rest.pop_front() {
                        if self.write_register(write) == WriteStatus::Pending {
                            break;
                        }
                    }
                }
                if self.pending {
                    if let Some(attached) = &mut self.attached {
                        attached.busy = Some(Busy::Write { reply, body, rest });
                    }
                    return false;
                }
                self.answer(reply, &body);
            }
            Some(Busy::Reset { reply }) if self.pending && !mutant::active(Mutant::StopWithoutDrain) => {
                attached.busy = Some(Busy::Reset { reply });
                return false;
            }
            Some(Busy::Reset { reply }) => self.answer(reply, &[]),
        }
        self.set_shut();
        // What the device was not allowed to begin meanwhile it may now.
        self.due = true;
        true
    }

    fn refuse(&self, header: Header, errno: Errno) {
        if let Some(attached) = &self.attached {
            let _ = attached.client.lock().send(&[header.failure(errno).as_bytes()]);
        }
    }

    /// The table of mappings has changed.
    fn take_memory(&mut self) {
        if let Some(attached) = &self.attached {
            self.memory = self.table.memory(&attached.client);
            self.counts.memory_tables.add(1);
        }
    }

    /// Nothing new is begun while the operator says so, or memory is being taken away. A client that has gone is no longer held up.
    fn set_shut(&self) {
        let unmapping = |attached: &Attached| matches!(attached.busy, Some(Busy::Unmap { .. }));
        let unmapping = self.attached.as_ref().is_some_and(unmapping);
        self.state.set_shut((self.holds != 0 && self.leaving.is_none()) || unmapping);
    }

    /// Polls the device, if it has something to do. Returns whether to come back at once.
    fn look_after(&mut self) -> bool {
        use crate::backend::Handle as _;
        self.set_shut();
        let draining = self.is_draining();
        if draining != self.draining {
            // What an error policy holds must not be waited for.
            self.draining = draining;
            self.ports.iter_mut().for_each(|port| port.drain(draining));
            self.due = true;
        }
        if !self.is_due() {
            return false;
        }
        let progress = self.device.poll(&self.memory, &mut self.ports);
        self.irqs.change(progress.irq);
        self.pending = progress.pending_write;
        // With its storage shut and nothing in flight it can only ask again for what it does not get.
        self.due = progress.again && !(self.state.is_shut() && self.state.in_flight() == 0);
        self.due
    }

    /// Whether the device has something to do, and the memory for it.
    fn is_due(&self) -> bool {
        self.due && !(self.unsettled && self.state.in_flight() == 0)
    }

    /// Whether somebody waits for requests in flight to end.
    fn is_draining(&self) -> bool {
        let drained = |waiting: &Waiting| matches!(waiting, Waiting::Drained(_));
        let busy = self.attached.as_ref().is_some_and(|attached| attached.busy.is_some());
        busy || self.pending || self.leaving.is_some() || self.waiting.iter().any(drained)
    }

    /// Ends what waited for requests in flight, and returns whether there is more to do at once.
    fn settle(&mut self) -> bool {
        let mut moved = self.go_on();
        if let Some(mut leaving) = self.leaving.take() {
            if self.leave(&mut leaving) {
                let _ = leaving.done.send(());
                moved = true;
            } else {
                self.leaving = Some(leaving);
            }
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|waiting| match waiting {
            Waiting::Drained(done) => {
                let idle = self.state.in_flight() == 0;
                if idle {
                    let _ = done.send(());
                }
                !idle
            }
            Waiting::Flushed(done, flushing) => match self.flush(flushing) {
                Some(well) => {
                    let _ = done.send(well);
                    false
                }
                None => true,
            },
        });
        waiting.append(&mut self.waiting);
        self.waiting = waiting;
        moved
    }

    /// Goes on with what is left to do after a client; true when it is done.
    fn leave(&mut self, leaving: &mut Leaving) -> bool {
        if matches!(leaving.stage, Stage::Reset) {
            let drained = self.state.in_flight() == 0 || mutant::active(Mutant::StopWithoutDrain);
            if self.pending || !drained {
                return false;
            }
            self.table = Table::default();
            self.memory = MappedMemory::default();
            leaving.stage = Stage::Flush(Flushing::default());
        }
        let Stage::Flush(flushing) = &mut leaving.stage else { return false };
        match self.flush(flushing) {
            Some(well) => {
                if !well {
                    tracing::error!(
                        "the flush after the client has gone failed: what it wrote last may not be on the disk"
                    );
                }
                true
            }
            None => false,
        }
    }

    /// Flushes all images; how that ended, once it has.
    fn flush(&mut self, flushing: &mut Flushing) -> Option<bool> {
        if !flushing.begun {
            if self.state.in_flight() != 0 {
                return None;
            }
            flushing.begun = true;
            flushing.ports = self
                .ports
                .iter_mut()
                .map(|port| if port.begin_flush(&self.memory) { None } else { Some(false) })
                .collect();
        }
        for (port, ended) in self.ports.iter_mut().zip(&mut flushing.ports) {
            *ended = ended.or_else(|| port.take_flushed(&self.memory));
        }
        let ended: Option<Vec<bool>> = flushing.ports.iter().copied().collect();
        ended.map(|ports| ports.into_iter().all(|well| well))
    }

    /// Looks for the client's next message, and for what the images have done, for a while. Returns whether there is something to do.
    fn linger(&mut self) -> bool {
        let Some(attached) = self.attached.as_ref().filter(|attached| attached.busy.is_none()) else {
            return false;
        };
        let client = Arc::clone(&attached.client);
        let mut now = Instant::now();
        let until = now + self.lingering;
        let quiet = now + Duration::from_nanos(QUIET.tv_nsec as u64);
        while now < until && now >= self.crowded_until {
            // Whom the last message woke may be waiting for this processor.
            rustix::thread::sched_yield();
            let back = Instant::now();
            if back.duration_since(now) > CROWDED {
                self.crowded_until = back + CROWDED_FOR;
            }
            now = back;
            let mut connection = client.lock();
            connection.receive();
            if connection.is_ready() {
                return true;
            }
            drop(connection);
            if self.state.in_flight() != 0 {
                self.due = true;
                self.look_after();
            }
            self.irqs.signal(self.state.requests(), now >= quiet);
        }
        self.is_due()
    }

    /// Lingers for longer if that had spared this sleep, and for less if the sleep was long.
    fn adapt(&mut self, slept: Duration) {
        self.lingering =
            if slept < LINGERING_MAX { LINGERING_MAX } else { (self.lingering / 2).max(LINGERING_MIN) };
    }

    /// Sleeps for as long as a message may wait for more, or until there is something.
    fn is_quiet(&self) -> bool {
        let mut something = [PollFd::new(&self.epoll, PollFlags::IN)];
        !matches!(rustix::event::poll(&mut something, Some(&QUIET)), Ok(1..))
    }

    /// Sleeps until the client, an image or a command wakes it.
    fn sleep(&mut self, events: &mut Vec<epoll::Event>) {
        use crate::backend::Handle as _;
        for port in &mut self.ports {
            if !port.arm() {
                self.due = true;
                return;
            }
        }
        if let Some(attached) = &mut self.attached {
            let watch = attached.busy.is_none();
            if watch && attached.client.lock().is_ready() {
                return;
            }
            if watch != attached.watched {
                attached.watched = watch;
                // Not readable is not gone: that is told always.
                let flags = if watch { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
                let data = epoll::EventData::new_u64(CLIENT);
                let _ = epoll::modify(&self.epoll, &*attached.client.lock(), data, flags);
            }
        }
        events.clear();
        let before = Instant::now();
        let mut waits = self.irqs.signal(self.state.requests(), false);
        if waits && self.is_quiet() {
            waits = self.irqs.signal(self.state.requests(), true);
        }
        let timeout = if waits { Some(&NOW) } else { self.unsettled.then_some(&SETTLING) };
        // Interrupted, it looks again.
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout) == Ok(0) && !waits {
            self.unsettled = false;
        }
        self.adapt(before.elapsed());
        for event in events {
            match (event.data.u64(), &mut self.attached) {
                (CONTROL, _) => self.control.woken(),
                (IMAGE, _) => self.due = true,
                (CLIENT, Some(attached)) if attached.busy.is_some() => {
                    attached.client.lock().fail(Broken::Gone);
                }
                (_, Some(attached)) => attached.readable = true,
                (_, None) => {}
            }
        }
    }
}
