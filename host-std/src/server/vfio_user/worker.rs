//! The thread of a PCI device: an event loop over the client's socket, the images and the operator's commands.

mod messages;
mod rest;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use rustix::event::epoll;

use super::PciDevice;
use super::access::Regions;
use super::connection::{Connection, Message};
use super::dma::{Client, Table};
use super::irq::Irqs;
use super::port::{Port, State};
use crate::memory::MappedMemory;
use crate::server::mutant::{self, Mutant};
use crate::server::stats::Counter;
use crate::server::vhost_user::Waker;
use messages::{Attached, Busy};
use rest::Rest;

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
    /// processor runs. Until the next access to a register, or for [`rest::SETTLING`], the device does not look at it.
    unsettled: bool,
    message: Message,
    rest: Rest,
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
            rest: Rest::new(),
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
            // What an error policy or a limit of rate holds must not be waited for.
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
        let busy = self.attached.as_ref().is_some_and(|attached| attached.busy.is_some());
        busy || self.pending || self.leaving.is_some() || !self.waiting.is_empty()
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
}
