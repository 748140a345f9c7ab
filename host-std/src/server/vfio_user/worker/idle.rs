//! Idle strategy: busy-poll the socket and the images for a while, then sleep in epoll.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use super::super::connection::Broken;
use super::state::{CLIENT, CONTROL, IMAGE, Worker};
use crate::backend::Handle as _;

/// After a DMA_UNMAP, a sleep this long without any event ends the wait for further changes. It leaves room for a busy machine. A
/// ring that is read while its memory is unmapped breaks until the guest resets the device.
pub(super) const MEMORY_CHANGE_TIMEOUT: Duration = Duration::from_secs(1);
/// A delayed interrupt is sent once nothing has come from the guest for this long: a guest that is about to submit more does so
/// sooner, even on an emulated processor.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000 };

impl Worker {
    /// Looks for the client's next message, and for what the images have done, for a while. Returns whether there is something to do.
    pub(super) fn busy_poll(&mut self) -> bool {
        let Some(session) = self.session.as_ref().filter(|session| session.busy.is_none()) else {
            return false;
        };
        let client = Arc::clone(&session.client);
        let mut now = Instant::now();
        let until = now + self.idle.busy_poll();
        let quiet = now + Duration::from_nanos(QUIET.tv_nsec as u64);
        while now < until && !self.idle.is_contended(now) {
            now = self.idle.yield_from(now);
            let mut connection = client.lock();
            connection.receive();
            if connection.is_ready() {
                return true;
            }
            drop(connection);
            if self.state.in_flight() != 0 {
                self.due = true;
                self.begin_turn();
                self.poll_device();
            }
            self.irqs.signal(self.state.requests(), now >= quiet);
        }
        self.is_due()
    }

    /// Waits for any event, `QUIET` at most. Returns true if none came.
    fn is_quiet(&self) -> bool {
        let mut something = [PollFd::new(&self.epoll, PollFlags::IN)];
        !matches!(rustix::event::poll(&mut something, Some(&QUIET)), Ok(1..))
    }

    /// Sleeps until the client, an image or a command wakes it.
    pub(super) fn sleep(&mut self, events: &mut Vec<epoll::Event>) {
        for port in &mut self.ports {
            if !port.arm() {
                self.due = true;
                return;
            }
        }
        if let Some(session) = &mut self.session {
            let watch = session.busy.is_none();
            if watch && session.client.lock().is_ready() {
                return;
            }
            if watch != session.watched {
                // epoll reports a hang-up even without EPOLLIN.
                let flags = if watch { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
                let data = epoll::EventData::new_u64(CLIENT);
                if epoll::modify(&self.epoll, &*session.client.lock(), data, flags).is_err() {
                    // Do not sleep: epoll would not report the next message.
                    return;
                }
                session.watched = watch;
            }
        }
        events.clear();
        let before = Instant::now();
        let mut waits = self.irqs.signal(self.state.requests(), false);
        if waits && self.is_quiet() {
            waits = self.irqs.signal(self.state.requests(), true);
        }
        let memory = self.memory_changing.then_some(MEMORY_CHANGE_TIMEOUT);
        let timeout =
            if waits { Some(Duration::ZERO) } else { memory.into_iter().chain(self.patience_left()).min() };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // An error (EINTR) counts as a wake-up.
        let woken = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref());
        if woken == Ok(0) && before.elapsed() >= MEMORY_CHANGE_TIMEOUT {
            self.memory_changing = false;
        }
        self.idle.adapt(before.elapsed());
        for event in events {
            match (event.data.u64(), &mut self.session) {
                (CONTROL, _) => self.inbox.woken(),
                (IMAGE, _) => self.due = true,
                (CLIENT, Some(session)) if session.busy.is_some() => {
                    session.client.lock().fail(Broken::Gone);
                }
                (_, Some(session)) => session.readable = true,
                (_, None) => {}
            }
        }
    }
}
