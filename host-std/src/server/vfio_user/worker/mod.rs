//! The thread of a PCI device: an event loop over the client's socket, the images and the operator's commands.

mod idle;
mod idle_state;
mod messages;
mod state;

use std::sync::mpsc::Sender;

use rustix::event::epoll;

use super::connection::{Broken, Connection};
use super::dma::{Client, Table};
use crate::memory::MappedMemory;
use crate::server::mutant::{self, Mutant};
use state::{CLIENT, ClientSession, Flushing, Leaving, Stage, Waiting};

pub(super) use state::{Command, Counts, Worker};

impl Worker {
    /// Runs the event loop until [`Command::End`]. A turn: commands, client messages, device, waiters, interrupts; then idle.
    pub(super) fn run(mut self) {
        self.inbox.begin();
        let mut events = Vec::with_capacity(8);
        loop {
            while let Some(command) = self.inbox.take() {
                if matches!(command, Command::End) {
                    return;
                }
                self.handle_command(command);
            }
            self.begin_turn();
            let more = self.serve();
            let again = self.poll_device();
            self.lifecycle.check_memory();
            if again && let Some(session) = &mut self.session {
                // The loop does not sleep in this case, so epoll does not report the socket: read it in the next turn.
                session.readable |= session.busy.is_none();
            }
            let moved = self.complete_waiters();
            self.irqs.signal(self.state.requests(), false);
            if !moved && !again && !more && !self.busy_poll() {
                self.sleep(&mut events);
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        self.due = true;
        match command {
            Command::Client { connection, done } => self.attach(*connection, done),
            Command::Hold { hold, done } => {
                self.holds = if hold { self.holds + 1 } else { self.holds.saturating_sub(1) };
                // An error means that the caller no longer waits.
                let _ = done.send(());
            }
            Command::Drain(done) => self.waiting.push(Waiting::Drained(done)),
            Command::Flush(done) => self.waiting.push(Waiting::Flushed(done, Flushing::default())),
            Command::Look => self.ports.iter_mut().for_each(|port| port.refresh(&self.memory)),
            Command::HangUp => {
                if let Some(session) = &self.session {
                    session.client.lock().fail(Broken::Gone);
                }
            }
            Command::End => {}
        }
    }

    fn attach(&mut self, connection: Connection, done: Sender<()>) {
        let data = epoll::EventData::new_u64(CLIENT);
        if let Err(errno) = epoll::add(&self.epoll, &connection, data, epoll::EventFlags::IN) {
            tracing::error!("vfio-user client dropped: cannot watch its socket: {errno}");
            return;
        }
        let client = Client::new(connection);
        self.session = Some(ClientSession {
            client,
            negotiated: false,
            busy: None,
            readable: true,
            watched: true,
            owes_since: None,
            done,
        });
    }

    /// Advances all that waits for requests in flight: a blocked command, the end of a session, drains and flushes. Returns
    /// whether to run another turn at once.
    fn complete_waiters(&mut self) -> bool {
        let mut moved = self.resume_blocked_command();
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

    /// Advances the end of a session: wait for the reset, unmap the memory, flush the images. Returns whether all is done.
    fn leave(&mut self, leaving: &mut Leaving) -> bool {
        if matches!(leaving.stage, Stage::Reset) {
            let drained = self.state.in_flight() == 0 || mutant::active(Mutant::StopWithoutDrain);
            if self.pending || !drained {
                return false;
            }
            self.table = Table::default();
            self.memory = MappedMemory::default();
            self.turn_time = None;
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
}
