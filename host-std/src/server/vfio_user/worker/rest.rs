//! When there is nothing to do: the thread looks for more for a while, and then sleeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use super::super::connection::Broken;
use super::{CLIENT, CONTROL, IMAGE, Worker};

/// How long the client may take from one change of its memory to the next, on a busy machine too: a ring that is looked at
/// while its memory is away is broken until the guest resets the device.
pub(super) const SETTLING: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
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

/// How the thread has rested lately.
pub(super) struct Rest {
    /// How long the thread looks for more before it sleeps.
    lingering: Duration,
    /// Until when it does not, because others need the processor.
    crowded_until: Instant,
}

impl Rest {
    pub(super) fn new() -> Self {
        Self { lingering: LINGERING_MIN, crowded_until: Instant::now() }
    }

    /// Lingers for longer if that had spared this sleep, and for less if the sleep was long.
    fn adapt(&mut self, slept: Duration) {
        self.lingering =
            if slept < LINGERING_MAX { LINGERING_MAX } else { (self.lingering / 2).max(LINGERING_MIN) };
    }
}

impl Worker {
    /// Looks for the client's next message, and for what the images have done, for a while. Returns whether there is something to do.
    pub(super) fn linger(&mut self) -> bool {
        let Some(attached) = self.attached.as_ref().filter(|attached| attached.busy.is_none()) else {
            return false;
        };
        let client = Arc::clone(&attached.client);
        let mut now = Instant::now();
        let until = now + self.rest.lingering;
        let quiet = now + Duration::from_nanos(QUIET.tv_nsec as u64);
        while now < until && now >= self.rest.crowded_until {
            // Whom the last message woke may be waiting for this processor.
            rustix::thread::sched_yield();
            let back = Instant::now();
            if back.duration_since(now) > CROWDED {
                self.rest.crowded_until = back + CROWDED_FOR;
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

    /// Sleeps for as long as a message may wait for more, or until there is something.
    fn is_quiet(&self) -> bool {
        let mut something = [PollFd::new(&self.epoll, PollFlags::IN)];
        !matches!(rustix::event::poll(&mut something, Some(&QUIET)), Ok(1..))
    }

    /// Sleeps until the client, an image or a command wakes it.
    pub(super) fn sleep(&mut self, events: &mut Vec<epoll::Event>) {
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
        self.rest.adapt(before.elapsed());
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
