//! The thread of a queue, or of queues that share something: an event loop that sleeps when there is nothing to do.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use rustix::event::{Timespec, epoll};

use super::command::{Command, VringSetup};
use crate::memory::MappedMemory;
use crate::server::client_fd::ClientFd;
use crate::server::lifecycle::Lifecycle;
use crate::server::mailbox::Inbox;
use crate::server::mutant::{self, Mutant};
use crate::server::stats::QueueCounters;
use crate::server::virtio::{Negotiated, QueueGroup, Unit};
use crate::server::vring::{InflightRecorder, Run, VringIo};

/// How often a ring is looked at whose client gave no descriptor that would tell us to (SET_VRING_KICK without one).
const POLLING: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000 };

const NO_RING: &str = "there is no such ring";

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
    rings: Box<dyn QueueGroup>,
    vrings: Vec<VringIo>,
    memory: MappedMemory,
    negotiated: Negotiated,
    /// Reasons to take no requests.
    holds: u32,
    waiting: Vec<Waiting>,
    /// The images know that somebody waits.
    draining: bool,
    inbox: Inbox<Command>,
    lifecycle: Arc<Lifecycle>,
    epoll: OwnedFd,
}

// What woke the thread; a ring's kick is FIRST_KICK and the ring's place.
const CONTROL: u64 = 0;
const IMAGE: u64 = 1;
const FIRST_KICK: u64 = 2;

impl Worker {
    /// The worker of `rings`, which are number `first` and following in the device.
    pub(in crate::server) fn new(
        mut rings: Box<dyn QueueGroup>,
        first: u16,
        counters: &[Arc<QueueCounters>],
        inbox: Inbox<Command>,
        lifecycle: Arc<Lifecycle>,
    ) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &inbox, epoll::EventData::new_u64(CONTROL), epoll::EventFlags::IN)?;
        rings.count_in(counters);
        let vrings =
            (first..).zip(counters).map(|(index, counters)| VringIo::new(index, Arc::clone(counters)));
        let worker = Self {
            rings,
            vrings: vrings.collect(),
            memory: MappedMemory::default(),
            negotiated: Negotiated::default(),
            holds: 0,
            waiting: Vec::new(),
            draining: false,
            inbox,
            lifecycle,
            epoll,
        };
        for fd in worker.rings.wake_fds() {
            worker.watch_image(fd)?;
        }
        Ok(worker)
    }

    /// Lets an image wake the thread, which would wait for ever otherwise.
    fn watch_image(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        // By edges: it stays readable from one `arm` to the next, and is not armed when nothing is in flight.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(IMAGE), flags)
    }

    /// Adds a unit. One that is refused takes its descriptor along.
    fn plug(&mut self, unit: Unit) -> Result<usize, &'static str> {
        self.watch_image(unit.wake_fd()).map_err(|errno| {
            tracing::error!("a unit cannot be added: its image cannot wake the thread: {errno}");
            "raise the limits on memory and on what epoll may watch (fs.epoll.max_user_watches)"
        })?;
        self.rings.plug(unit)
    }

    /// Works until it is told to end.
    pub(in crate::server) fn run(mut self) {
        self.inbox.begin();
        let mut events = Vec::with_capacity(8);
        loop {
            while let Some(command) = self.inbox.take() {
                if matches!(command, Command::End) {
                    return;
                }
                self.handle_command(command);
            }
            let again = self.poll_queues();
            self.lifecycle.check_memory();
            let moved = self.complete_waiters();
            if !again && !moved {
                self.sleep(&mut events);
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        // Whoever asked may have gone: nobody misses the answer then.
        match command {
            Command::Memory(memory, done) => {
                self.memory = memory;
                let _ = done.send(());
            }
            Command::Negotiated(negotiated, done) => {
                self.negotiated = negotiated;
                let _ = done.send(());
            }
            Command::Start { ring, start, started } => {
                let _ = started.send(self.start(ring, *start));
            }
            Command::Stop { ring, stopped } => {
                if let Some(vring) = self.vrings.get_mut(ring) {
                    vring.run = Run::Stopping(stopped);
                }
            }
            Command::Enable { ring, enable, done } => {
                if let Some(vring) = self.vrings.get_mut(ring)
                    && let Run::On { enabled } = &mut vring.run
                {
                    *enabled = enable;
                }
                self.waiting.push(Waiting::RingDrained(if enable { usize::MAX } else { ring }, done));
            }
            Command::Kick { ring, kick, done } => {
                let _ = done.send(self.set_kick(ring, kick));
            }
            Command::Call { ring, call } => {
                if let Some(vring) = self.vrings.get_mut(ring) {
                    // The client may have missed an interrupt that went to the one before.
                    vring.interrupt |= call.is_some() && !matches!(vring.run, Run::Off);
                    vring.call = call;
                }
            }
            Command::Err { ring, err } => {
                if let Some(vring) = self.vrings.get_mut(ring) {
                    vring.err = err;
                }
            }
            Command::Hold { hold, done } => {
                self.holds = if hold { self.holds + 1 } else { self.holds.saturating_sub(1) };
                for vring in &mut self.vrings {
                    vring.held = self.holds != 0;
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
                let _ = done.send(self.plug(*unit));
            }
            Command::Unplug { target, lun, done } => {
                let _ = done.send(self.rings.unplug(target, lun));
            }
            Command::End => {}
        }
    }

    fn start(&mut self, ring: usize, start: VringSetup) -> Result<(), String> {
        let VringSetup { setup, features, position, log, kick } = start;
        self.set_kick(ring, kick)?;
        let vring = self.vrings.get_mut(ring).ok_or(NO_RING)?;
        (vring.log, vring.position, vring.told_broken) = (log, position, false);
        // The device before this one may have ended between its used index and its interrupt.
        vring.interrupt = true;
        vring.run = Run::On { enabled: true };
        self.rings.set_persistent_state(vring.log.persistent());
        // An error has broken the ring, of which the next poll tells the client.
        let _ = self.rings.start(ring, &setup, features, position);
        Ok(())
    }

    fn set_kick(&mut self, ring: usize, kick: Option<ClientFd>) -> Result<(), String> {
        let vring = self.vrings.get_mut(ring).ok_or(NO_RING)?;
        if let Some(kick) = &kick {
            let mut flags = epoll::EventFlags::IN;
            flags.set(epoll::EventFlags::ET, kick.by_edges());
            let data = epoll::EventData::new_u64(FIRST_KICK + ring as u64);
            epoll::add(&self.epoll, kick, data, flags)
                .map_err(|errno| format!("its kick descriptor cannot be waited for: {errno}"))?;
        }
        if let Some(old) = std::mem::replace(&mut vring.kick, kick) {
            let _ = epoll::delete(&self.epoll, &old);
        }
        Ok(())
    }

    /// Works on the rings once, and interrupts the guest.
    #[inline]
    fn poll_queues(&mut self) -> bool {
        let draining = self.is_draining();
        if draining != self.draining {
            // What an error policy or a limit of rate holds must not be waited for.
            self.draining = draining;
            self.rings.drain(draining);
        }
        let again = self.rings.poll(&self.memory, &self.negotiated, &mut self.vrings);
        for (ring, vring) in self.vrings.iter_mut().enumerate() {
            vring.counters.polls.add(1);
            vring.counters.in_flight.set(self.rings.in_flight(ring).into());
            match self.rings.position(ring) {
                Some(position) => vring.position = position,
                None => tell_broken(&*self.rings, ring, vring),
            }
            // Without a descriptor it stays due: the client gives one later.
            if vring.interrupt
                && let Some(call) = &vring.call
            {
                vring.interrupt = false;
                vring.counters.notifications.add(1);
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
            Waiting::RingDrained(ring, _) => *ring < self.vrings.len(),
            // Nothing is in flight then but the flush, which no limit of rate may hold.
            Waiting::Flushed { .. } => true,
        };
        self.waiting.iter().any(waits)
            || self.vrings.iter().any(|vring| matches!(vring.run, Run::Stopping(_)))
    }

    /// Ends what waited for requests in flight, and returns whether there is more to do at once.
    fn complete_waiters(&mut self) -> bool {
        let at_once = mutant::active(Mutant::StopWithoutDrain);
        let mut moved = false;
        for (ring, vring) in self.vrings.iter_mut().enumerate() {
            let drained = at_once || self.rings.in_flight(ring) == 0;
            if drained && let Run::Stopping(stopped) = &vring.run {
                let _ = stopped.send(vring.position.next_avail);
                vring.run = Run::Off;
                vring.interrupt = false;
                self.rings.stop(ring);
                vring.log = InflightRecorder::none(Arc::clone(&vring.counters));
                if let Some(kick) = vring.kick.take() {
                    let _ = epoll::delete(&self.epoll, &kick);
                }
                moved = true;
            }
        }
        if self.waiting.is_empty() {
            return moved;
        }
        let in_flight: u32 = (0..self.vrings.len()).map(|ring| self.rings.in_flight(ring)).sum();
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
                let idle = at_once || *ring >= self.vrings.len() || self.rings.in_flight(*ring) == 0;
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
        let busy = (0..self.vrings.len()).any(|ring| self.rings.in_flight(ring) != 0);
        if busy && !self.rings.arm() {
            return;
        }
        let polled = self.vrings.iter().any(VringIo::is_polled);
        let timeout = polled.then_some(&POLLING);
        events.clear();
        // Interrupted, it looks again.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout);
        for event in events {
            match event.data.u64() {
                CONTROL => self.inbox.woken(),
                IMAGE => {}
                kick => {
                    let ring = (kick - FIRST_KICK) as usize;
                    if let Some(vring) = self.vrings.get(ring)
                        && let Some(kick) = &vring.kick
                    {
                        vring.counters.kicks.add(1);
                        kick.take();
                    }
                }
            }
        }
    }
}

/// Tells the client, once, that a ring is broken.
#[cold]
fn tell_broken(rings: &dyn QueueGroup, ring: usize, vring: &mut VringIo) {
    let Some(error) = rings.error(ring).filter(|_| !vring.told_broken) else { return };
    vring.told_broken = true;
    tracing::error!(
        queue = vring.index,
        "the driver broke its ring: {error}; the queue does nothing more until the client stops it"
    );
    if let Some(err) = &vring.err {
        err.signal();
    }
}
