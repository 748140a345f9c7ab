//! State of a PCI device's thread, and the steps that its parts share.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use blk_core::bus::{Region, Width};
use rustix::event::epoll;

use super::super::access::Regions;
use super::super::connection::{Connection, Message};
use super::super::counted_handle::{CountedHandle, OperationCounts};
use super::super::dma::{Client, Table};
use super::super::irq::Irqs;
use super::super::pci_device::PciDevice;
use super::super::protocol::{DmaUnmap, Header};
use super::idle_state::IdleState;
use crate::backend::Handle;
use crate::memory::MappedMemory;
use crate::server::lifecycle::Lifecycle;
use crate::server::mailbox::Inbox;
use crate::server::stats::Counter;

/// Command to the device's thread. One with a `Sender` is answered when it is done.
pub(in crate::server::vfio_user) enum Command {
    /// Serves a client. Answered once it has disconnected, the device is reset and the images are flushed.
    Client { connection: Box<Connection>, done: Sender<()> },
    /// Raises (`hold: true`) or lowers the pause count. The device takes requests only while it is 0.
    Hold { hold: bool, done: Sender<()> },
    /// Answers when nothing is in flight.
    Drain(Sender<()>),
    /// Waits until nothing is in flight, flushes the images, and answers whether every flush succeeded.
    Flush(Sender<bool>),
    /// Polls idle images, so that a resized one reports its capacity.
    Look,
    /// Disconnects the client, if there is one.
    HangUp,
    /// Ends the thread without waiting for requests in flight.
    End,
}

/// What the thread counts.
#[derive(Debug, Default)]
pub(in crate::server::vfio_user) struct Counts {
    pub(in crate::server::vfio_user) memory_tables: Counter,
    pub(in crate::server::vfio_user) interrupts: Arc<Counter>,
}

/// What is left to do when a client has gone.
pub(super) struct Leaving {
    pub(super) stage: Stage,
    pub(super) done: Sender<()>,
}

pub(super) enum Stage {
    Reset,
    Flush(Flushing),
}

/// A flush of all images.
#[derive(Default)]
pub(super) struct Flushing {
    /// For each port whether its flush succeeded; `None` while it runs. Empty until `begun`.
    pub(super) ports: Vec<Option<bool>>,
    pub(super) begun: bool,
}

pub(super) enum Waiting {
    Drained(Sender<()>),
    Flushed(Sender<bool>, Flushing),
}

pub(in crate::server::vfio_user) struct Worker {
    pub(super) device: Box<dyn PciDevice>,
    pub(super) regions: Regions,
    pub(super) ports: Vec<CountedHandle>,
    pub(super) state: Arc<OperationCounts>,
    pub(super) memory: MappedMemory,
    pub(super) table: Table,
    /// Longest time per turn in which requests are accepted. `None`: no limit.
    pub(super) turn_time: Option<Duration>,
    pub(super) irqs: Irqs,
    pub(super) session: Option<ClientSession>,
    pub(super) leaving: Option<Leaving>,
    /// Pause count. Requests are accepted only while it is 0.
    pub(super) holds: u32,
    pub(super) waiting: Vec<Waiting>,
    /// What the images were last told by `Handle::drain`.
    pub(super) draining: bool,
    /// The device is to be polled.
    pub(super) due: bool,
    /// The device has not completed a register write or a reset.
    pub(super) pending: bool,
    /// A DMA_UNMAP was handled and a DMA_MAP may follow: QEMU unmaps and maps again what changes, while no vCPU runs. With
    /// nothing in flight, the device is not polled until a message other than these two comes, or a sleep of
    /// [`super::idle::MEMORY_CHANGE_TIMEOUT`] passes without an event: a ring read while its memory is missing breaks the queue.
    pub(super) memory_changing: bool,
    /// The device's fault that was logged last.
    fault: Option<&'static str>,
    pub(super) message: Message,
    pub(super) idle: IdleState,
    pub(super) counts: Arc<Counts>,
    pub(super) inbox: Inbox<Command>,
    pub(super) lifecycle: Arc<Lifecycle>,
    pub(super) epoll: OwnedFd,
}

/// A client, and what it is waiting for.
pub(super) struct ClientSession {
    pub(super) client: Arc<Client>,
    /// VERSION has been exchanged.
    pub(super) negotiated: bool,
    pub(super) busy: Option<BlockedCommand>,
    /// There is something to receive.
    pub(super) readable: bool,
    /// Whether epoll reports that the socket is readable. False while a command is blocked.
    pub(super) watched: bool,
    /// When the wait for the client's first message, or for the rest of one, began.
    pub(super) owes_since: Option<Instant>,
    pub(super) done: Sender<()>,
}

/// A command that has to wait for the image. Those after it wait too.
pub(super) enum BlockedCommand {
    /// The device has not completed a register write, or `WRITES_MAX` were done since the last poll. `rest` is still to be written.
    Write { reply: Option<Header>, body: Vec<u8>, rest: VecDeque<RegisterWrite> },
    /// What is in flight may use the memory.
    Unmap { reply: Option<Header>, unmap: DmaUnmap },
    /// The device is being reset.
    Reset { reply: Option<Header> },
}

#[derive(Clone, Copy)]
pub(super) struct RegisterWrite {
    pub(super) region: Region,
    pub(super) offset: u64,
    pub(super) width: Width,
    pub(super) value: u64,
}

// What woke the thread.
pub(super) const CONTROL: u64 = 0;
pub(super) const IMAGE: u64 = 1;
pub(super) const CLIENT: u64 = 2;

impl Worker {
    pub(in crate::server::vfio_user) fn new(
        device: Box<dyn PciDevice>,
        ports: Vec<CountedHandle>,
        state: Arc<OperationCounts>,
        inbox: Inbox<Command>,
        lifecycle: Arc<Lifecycle>,
        counts: Arc<Counts>,
    ) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &inbox, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
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
            turn_time: None,
            session: None,
            leaving: None,
            holds: 0,
            waiting: Vec::new(),
            draining: false,
            due: false,
            pending: false,
            memory_changing: false,
            fault: None,
            message: Message::default(),
            idle: IdleState::new(),
            counts,
            inbox,
            lifecycle,
            epoll,
        })
    }

    /// Updates the gate of the storage handles: shut while the device is paused or a DMA_UNMAP waits. After a disconnect a pause
    /// does not count, so that the reset can finish.
    pub(super) fn set_shut(&self) {
        let unmapping = |session: &ClientSession| matches!(session.busy, Some(BlockedCommand::Unmap { .. }));
        let unmapping = self.session.as_ref().is_some_and(unmapping);
        self.state.set_shut((self.holds != 0 && self.leaving.is_none()) || unmapping);
    }

    /// Starts a turn: the limits on what one turn accepts begin anew.
    pub(super) fn begin_turn(&mut self) {
        self.state.begin_turn(self.turn_time);
        self.ports.iter_mut().for_each(Handle::begin_turn);
    }

    /// Polls the device, if it has something to do. Returns whether to come back at once.
    pub(super) fn poll_device(&mut self) -> bool {
        self.set_shut();
        let draining = self.is_draining();
        if draining != self.draining {
            // A drain must not wait for requests that an error policy or a rate limit holds.
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
        let fault = self.device.fault();
        if fault != self.fault {
            self.set_fault(fault);
        }
        // With the storage shut and nothing in flight, another poll would only be refused again.
        let again = progress.again || self.state.has_put_off();
        self.due = again && !(self.state.is_shut() && self.state.in_flight() == 0);
        self.due
    }

    #[cold]
    fn set_fault(&mut self, fault: Option<&'static str>) {
        self.fault = fault;
        if let Some(fault) = fault {
            tracing::error!(
                "the driver broke a ring: {fault}; the device does nothing more until the guest resets it"
            );
        }
    }

    /// Whether the device has something to do, and the memory for it.
    pub(super) fn is_due(&self) -> bool {
        self.due && !(self.memory_changing && self.state.in_flight() == 0)
    }

    /// Whether somebody waits for requests in flight to end.
    pub(super) fn is_draining(&self) -> bool {
        let waits = |busy: &BlockedCommand| {
            matches!(busy, BlockedCommand::Unmap { .. } | BlockedCommand::Reset { .. })
        };
        let busy = self.session.as_ref().and_then(|session| session.busy.as_ref()).is_some_and(waits);
        busy || self.pending || self.leaving.is_some() || !self.waiting.is_empty()
    }

    /// Advances a flush of all images, which begins once nothing is in flight. Returns, at its end, whether all succeeded. There is
    /// one at a time: the last of a server comes after that of its last client.
    pub(super) fn flush(&mut self, flushing: &mut Flushing) -> Option<bool> {
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
