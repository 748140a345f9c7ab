//! The thread of a queue, or of queues that share something: an event loop that sleeps when there is nothing to do.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use blk_core::virtq::{InFlight, Position, RingFeatures, Setup};
use rustix::event::{Timespec, epoll};

use super::log::Log;
use super::notify::{Kick, Notifier, Waker};
use crate::memory::MappedMemory;
use crate::server::device::{Agreed, Rings};
use crate::server::scsi::Unit;
use crate::server::stats::QueueCounters;

/// How often a ring is looked at whose client gave no descriptor that would tell us to (SET_VRING_KICK without one).
const POLLING: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

/// What a thread is told. Where there is a `Sender`, the answer comes once it is done.
pub(in crate::server) enum Command {
    /// The client's memory.
    Memory(MappedMemory, Sender<()>),
    /// What was agreed.
    Agreed(Agreed, Sender<()>),
    /// Starts a ring.
    Start { ring: usize, start: Box<Start>, started: Sender<Result<(), String>> },
    /// Stops a ring: what is in flight completes, then the next available index is the answer.
    Stop { ring: usize, stopped: Sender<u16> },
    /// Lets a ring take requests, or not; then the answer comes when nothing is in flight.
    Enable { ring: usize, enable: bool, done: Sender<()> },
    /// Where the client tells of requests, from now on.
    Kick { ring: usize, kick: Option<Kick>, done: Sender<Result<(), String>> },
    /// Where to say that there are used buffers.
    Call { ring: usize, call: Option<Arc<Notifier>> },
    /// Where to say that the ring is broken.
    Err { ring: usize, err: Option<Arc<Notifier>> },
    /// Takes no requests from now on, for one reason more, or one fewer.
    Hold { hold: bool, done: Sender<()> },
    /// Answers when nothing is in flight.
    Drain(Sender<()>),
    /// Flushes the images, while nothing is in flight, and tells whether that went well.
    Flush(Sender<bool>),
    /// Resets the device; its rings are stopped.
    Reset(Sender<()>),
    /// The driver writes into the configuration space.
    Config { offset: usize, bytes: Vec<u8> },
    /// What the guest had set in each unit with a server before this one.
    Resume(Vec<Option<u8>>),
    /// Adds a unit, and tells its place.
    Plug(Box<Unit>, Sender<Result<usize, &'static str>>),
    /// Takes a unit away, and tells the place that it had.
    Unplug { target: u8, lun: u16, done: Sender<Option<usize>> },
    /// Ends the thread, whatever is in flight.
    End,
}

/// A ring as the client set it up.
pub(in crate::server) struct Start {
    pub(in crate::server) setup: Setup,
    pub(in crate::server) features: RingFeatures,
    pub(in crate::server) position: Position,
    pub(in crate::server) log: Log,
    /// `None`: it is to be polled.
    pub(in crate::server) kick: Option<Kick>,
}

const NO_RING: &str = "there is no such ring";

enum Run {
    Off,
    /// Takes requests where `enabled`.
    On {
        enabled: bool,
    },
    /// Completes what is in flight, and answers with its position.
    Stopping(Sender<u16>),
}

/// A ring's connections to the client.
pub(in crate::server) struct Port {
    /// Its number in the device.
    index: u16,
    run: Run,
    /// The thread is held: no ring takes requests.
    held: bool,
    call: Option<Arc<Notifier>>,
    err: Option<Arc<Notifier>>,
    kick: Option<Kick>,
    log: Log,
    /// An interrupt is due.
    interrupt: bool,
    /// Where the ring stood last, also when it is broken now.
    position: Position,
    /// The client knows that the ring is broken.
    told_broken: bool,
    counters: Arc<QueueCounters>,
}

impl Port {
    fn new(index: u16, counters: Arc<QueueCounters>) -> Self {
        Self {
            index,
            run: Run::Off,
            held: false,
            call: None,
            err: None,
            kick: None,
            log: Log::none(Arc::clone(&counters)),
            interrupt: false,
            position: Position::default(),
            told_broken: false,
            counters,
        }
    }

    /// Whether requests may be taken.
    pub(in crate::server) const fn is_open(&self) -> bool {
        matches!(self.run, Run::On { enabled: true }) && !self.held
    }

    /// The driver wants to be interrupted.
    pub(in crate::server) const fn interrupt(&mut self) {
        self.interrupt = true;
    }

    pub(in crate::server) const fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    const fn is_polled(&self) -> bool {
        self.kick.is_none() && matches!(self.run, Run::On { enabled: true })
    }
}

/// A ring's log, where a device takes a slice of them.
impl InFlight for Port {
    fn owed(&self) -> Option<u16> {
        self.log.owed()
    }

    fn resumed(&mut self) {
        self.log.resumed();
    }

    fn taken(&mut self, head: u16) {
        self.log.taken(head);
    }

    fn stage(&self, head: u16) -> u8 {
        self.log.stage(head)
    }

    fn set_stage(&mut self, head: u16, stage: u8) {
        self.log.set_stage(head, stage);
    }

    fn returned(&mut self, head: u16) {
        self.log.returned(head);
    }

    fn publishing(&mut self) {
        self.log.publishing();
    }

    fn published(&mut self, used: u16) {
        self.log.published(used);
    }
}

/// Who waits for the thread to have nothing in flight.
enum Waiting {
    Drained(Sender<()>),
    RingDrained(usize, Sender<()>),
    /// `begun`: the flush was submitted.
    Flushed {
        done: Sender<bool>,
        begun: bool,
    },
}

pub(in crate::server) struct Worker {
    rings: Box<dyn Rings>,
    ports: Vec<Port>,
    memory: MappedMemory,
    agreed: Agreed,
    /// Reasons to take no requests.
    holds: u32,
    waiting: Vec<Waiting>,
    /// The images know that somebody waits.
    draining: bool,
    commands: Receiver<Command>,
    control: Arc<Waker>,
    epoll: OwnedFd,
}

// What woke the thread; a ring's kick is FIRST_KICK and the ring's place.
const CONTROL: u64 = 0;
const IMAGE: u64 = 1;
const FIRST_KICK: u64 = 2;

impl Worker {
    /// The worker of `rings`, which are number `first` and following in the device.
    pub(in crate::server) fn new(
        mut rings: Box<dyn Rings>,
        first: u16,
        counters: &[Arc<QueueCounters>],
        commands: Receiver<Command>,
        control: Arc<Waker>,
    ) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*control, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
        rings.count_in(counters);
        let ports = (first..).zip(counters).map(|(index, counters)| Port::new(index, Arc::clone(counters)));
        let worker = Self {
            rings,
            ports: ports.collect(),
            memory: MappedMemory::default(),
            agreed: Agreed::default(),
            holds: 0,
            waiting: Vec::new(),
            draining: false,
            commands,
            control,
            epoll,
        };
        worker.watch_images();
        Ok(worker)
    }

    /// Lets every image wake the thread: those that did so before stay as they are.
    fn watch_images(&self) {
        // By edges: it stays readable from one `arm` to the next, and is not armed when nothing is in flight.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for fd in self.rings.wake_fds() {
            match epoll::add(&self.epoll, fd, epoll::EventData::new_u64(IMAGE), flags) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => tracing::error!("an image cannot wake its thread: {errno}"),
            }
        }
    }

    /// Works until it is told to end.
    pub(in crate::server) fn run(mut self) {
        let mut events = Vec::with_capacity(8);
        loop {
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, Command::End) {
                    return;
                }
                self.obey(command);
            }
            let again = self.turn();
            let moved = self.settle();
            if !again && !moved {
                self.sleep(&mut events);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        // Whoever asked may have gone: nobody misses the answer then.
        match command {
            Command::Memory(memory, done) => {
                self.memory = memory;
                let _ = done.send(());
            }
            Command::Agreed(agreed, done) => {
                self.agreed = agreed;
                let _ = done.send(());
            }
            Command::Start { ring, start, started } => {
                let _ = started.send(self.start(ring, *start));
            }
            Command::Stop { ring, stopped } => {
                if let Some(port) = self.ports.get_mut(ring) {
                    port.run = Run::Stopping(stopped);
                }
            }
            Command::Enable { ring, enable, done } => {
                if let Some(port) = self.ports.get_mut(ring)
                    && let Run::On { enabled } = &mut port.run
                {
                    *enabled = enable;
                }
                self.waiting.push(Waiting::RingDrained(if enable { usize::MAX } else { ring }, done));
            }
            Command::Kick { ring, kick, done } => {
                let _ = done.send(self.set_kick(ring, kick));
            }
            Command::Call { ring, call } => {
                if let Some(port) = self.ports.get_mut(ring) {
                    port.call = call;
                }
            }
            Command::Err { ring, err } => {
                if let Some(port) = self.ports.get_mut(ring) {
                    port.err = err;
                }
            }
            Command::Hold { hold, done } => {
                self.holds = if hold { self.holds + 1 } else { self.holds.saturating_sub(1) };
                for port in &mut self.ports {
                    port.held = self.holds != 0;
                }
                let _ = done.send(());
            }
            Command::Drain(done) => self.waiting.push(Waiting::Drained(done)),
            Command::Flush(done) => self.waiting.push(Waiting::Flushed { done, begun: false }),
            Command::Reset(done) => {
                self.rings.reset_device(&self.memory);
                let _ = done.send(());
            }
            Command::Config { offset, bytes } => self.rings.write_config(offset, &bytes),
            Command::Resume(settings) => self.rings.resume(&settings),
            Command::Plug(unit, done) => {
                let plugged = self.rings.plug(*unit);
                self.watch_images();
                let _ = done.send(plugged);
            }
            Command::Unplug { target, lun, done } => {
                let _ = done.send(self.rings.unplug(target, lun));
            }
            Command::End => {}
        }
    }

    fn start(&mut self, ring: usize, start: Start) -> Result<(), String> {
        let Start { setup, features, position, log, kick } = start;
        self.set_kick(ring, kick)?;
        let port = self.ports.get_mut(ring).ok_or(NO_RING)?;
        (port.log, port.position, port.told_broken) = (log, position, false);
        port.run = Run::On { enabled: true };
        self.rings.keep_in(port.log.trailer());
        // An error has broken the ring, of which the next turn tells the client.
        let _ = self.rings.start(ring, &setup, features, position);
        Ok(())
    }

    fn set_kick(&mut self, ring: usize, kick: Option<Kick>) -> Result<(), String> {
        let port = self.ports.get_mut(ring).ok_or(NO_RING)?;
        if let Some(kick) = &kick {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::ET, kick.by_edges());
            let data = epoll::EventData::new_u64(FIRST_KICK + ring as u64);
            epoll::add(&self.epoll, kick, data, flags)
                .map_err(|errno| format!("its kick descriptor cannot be waited for: {errno}"))?;
        }
        if let Some(old) = std::mem::replace(&mut port.kick, kick) {
            let _ = epoll::delete(&self.epoll, &old);
        }
        Ok(())
    }

    /// Works on the rings once, and interrupts the guest.
    #[inline]
    fn turn(&mut self) -> bool {
        let draining = self.is_draining();
        if draining != self.draining {
            // What an error policy or a limit of rate holds must not be waited for.
            self.draining = draining;
            self.rings.drain(draining);
        }
        let again = self.rings.poll(&self.memory, &self.agreed, &mut self.ports);
        for (ring, port) in self.ports.iter_mut().enumerate() {
            port.counters.polls.add(1);
            port.counters.in_flight.set(self.rings.in_flight(ring).into());
            match self.rings.position(ring) {
                Some(position) => port.position = position,
                None => tell_broken(&*self.rings, ring, port),
            }
            // Without a descriptor it stays due: the client gives one later.
            if port.interrupt
                && let Some(call) = &port.call
            {
                port.interrupt = false;
                port.counters.notifications.add(1);
                call.signal();
            }
        }
        again
    }

    /// Whether somebody waits for requests in flight to end.
    #[inline]
    fn is_draining(&self) -> bool {
        let waits = |waiting: &Waiting| match waiting {
            Waiting::Drained(_) => true,
            // One that starts waits for nothing: it names no ring.
            Waiting::RingDrained(ring, _) => *ring < self.ports.len(),
            // Nothing is in flight then but the flush, which no limit of rate may hold.
            Waiting::Flushed { .. } => true,
        };
        self.waiting.iter().any(waits) || self.ports.iter().any(|port| matches!(port.run, Run::Stopping(_)))
    }

    /// Ends what waited for requests in flight, and returns whether there is more to do at once.
    fn settle(&mut self) -> bool {
        let at_once = super::mutant::active(super::Mutant::StopWithoutDrain);
        let mut moved = false;
        for (ring, port) in self.ports.iter_mut().enumerate() {
            let drained = at_once || self.rings.in_flight(ring) == 0;
            if drained && let Run::Stopping(stopped) = &port.run {
                let _ = stopped.send(port.position.available);
                port.run = Run::Off;
                port.interrupt = false;
                self.rings.stop(ring);
                port.log = Log::none(Arc::clone(&port.counters));
                if let Some(kick) = port.kick.take() {
                    let _ = epoll::delete(&self.epoll, &kick);
                }
                moved = true;
            }
        }
        if self.waiting.is_empty() {
            return moved;
        }
        let in_flight: u32 = (0..self.ports.len()).map(|ring| self.rings.in_flight(ring)).sum();
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|waiting| match waiting {
            Waiting::Drained(done) => {
                let idle = in_flight == 0;
                if idle {
                    let _ = done.send(());
                }
                !idle
            }
            Waiting::RingDrained(ring, done) => {
                let idle = at_once || *ring >= self.ports.len() || self.rings.in_flight(*ring) == 0;
                if idle {
                    let _ = done.send(());
                }
                !idle
            }
            Waiting::Flushed { done, begun } => {
                if !*begun && in_flight == 0 {
                    *begun = self.rings.flush(&self.memory).is_ok();
                    moved |= *begun;
                }
                match self.rings.take_flushed().filter(|_| *begun) {
                    Some(flushed) => {
                        let _ = done.send(flushed);
                        false
                    }
                    None => true,
                }
            }
        });
        self.waiting = waiting;
        moved
    }

    /// Sleeps until the client, an image or a command wakes it.
    fn sleep(&mut self, events: &mut Vec<epoll::Event>) {
        let busy = (0..self.ports.len()).any(|ring| self.rings.in_flight(ring) != 0);
        if busy && !self.rings.arm() {
            return;
        }
        let polled = self.ports.iter().any(Port::is_polled);
        let timeout = polled.then_some(&POLLING);
        events.clear();
        // Interrupted, it looks again.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout);
        for event in events {
            match event.data.u64() {
                CONTROL => self.control.woken(),
                IMAGE => {}
                kick => {
                    let ring = (kick - FIRST_KICK) as usize;
                    if let Some(port) = self.ports.get(ring)
                        && let Some(kick) = &port.kick
                    {
                        port.counters.kicks.add(1);
                        kick.woken();
                    }
                }
            }
        }
    }
}

/// Tells the client, once, that a ring is broken.
#[cold]
fn tell_broken(rings: &dyn Rings, ring: usize, port: &mut Port) {
    let Some(error) = rings.error(ring).filter(|_| !port.told_broken) else { return };
    port.told_broken = true;
    tracing::error!(
        queue = port.index,
        ?error,
        "the driver broke its ring: the queue does nothing more until the client stops it"
    );
    if let Some(err) = &port.err {
        err.signal();
    }
}
