//! A device that is served over vfio-user: its thread, and what others see of it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use super::connection::Connection;
use super::counted_handle::{CountedHandle, OperationCounts};
use super::pci_device::PciDevice;
use super::worker::{Command, Counts, Worker};
use crate::backend::Handle;
use crate::server::lifecycle::{DeviceLifecycle, Lifecycle, NextClient};
use crate::server::mailbox::{Mailbox, mailbox};
use crate::server::options::ServerError;
use crate::server::stats::{QueueCounters, Stats};

/// How often it is looked whether another client waits, and whether this one is gone.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(1);

/// A PCI device and the way to its thread.
pub(in crate::server) struct VfioUserDevice {
    lifecycle: Arc<Lifecycle>,
    mailbox: Mailbox<Command>,
    /// Of each image.
    counters: Vec<Arc<QueueCounters>>,
    counts: Arc<Counts>,
}

impl VfioUserDevice {
    /// The device, and what its thread does.
    pub(in crate::server) fn new(
        device: Box<dyn PciDevice>,
        handles: Vec<Box<dyn Handle>>,
    ) -> Result<(Arc<Self>, impl FnOnce() + Send + 'static), ServerError> {
        let state = Arc::new(OperationCounts::default());
        let counters: Vec<_> = handles.iter().map(|_| Arc::new(QueueCounters::default())).collect();
        let with = handles.into_iter().zip(&counters);
        let ports = with
            .map(|(handle, counters)| CountedHandle::new(handle, Arc::clone(&state), Arc::clone(counters)));
        let (mailbox, inbox) = mailbox()?;
        let counts = Arc::new(Counts::default());
        let lifecycle = Arc::new(Lifecycle::new()?);
        let worker =
            Worker::new(device, ports.collect(), state, inbox, Arc::clone(&lifecycle), Arc::clone(&counts));
        let worker = worker.map_err(io::Error::from)?;
        Ok((Arc::new(Self { lifecycle, mailbox, counters, counts }), move || worker.run()))
    }
}

impl DeviceLifecycle for VfioUserDevice {
    fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    fn serve_client(self: Arc<Self>, stream: UnixStream, mut next: NextClient<'_>) -> io::Result<()> {
        let peer = stream.try_clone()?;
        let connection = Connection::new(stream, self.lifecycle.patience())?;
        if !self.lifecycle.connect(peer) {
            return Ok(());
        }
        tracing::info!("a client has connected");
        let (done, ended) = channel();
        self.mailbox.send(Command::Client { connection: Box::new(connection), done });
        // The thread drops `done` where it cannot serve the client.
        while ended.recv_timeout(LOOK_FOR_OTHERS) == Err(RecvTimeoutError::Timeout) {
            next.tell_if_waiting();
            // Its thread may hang in a descriptor of its, and cannot see that it has gone.
            if self.lifecycle.client_has_gone() {
                self.mailbox.interrupt();
            }
        }
        self.lifecycle.disconnect();
        Ok(())
    }

    fn drop_client(&self) {
        self.lifecycle.hang_up();
        // It does not wait for what the client has sent before.
        self.mailbox.send(Command::HangUp);
    }

    fn hold(&self, hold: bool) {
        self.mailbox.call(|done| Command::Hold { hold, done });
    }

    fn drain(&self) {
        self.mailbox.call(Command::Drain);
    }

    fn flush(&self) -> bool {
        self.mailbox.call(Command::Flush).unwrap_or(false)
    }

    fn config_changed(&self) {
        // The device sees what its images are whenever it is polled.
        self.mailbox.send(Command::Look);
    }

    fn end_threads(&self) {
        self.mailbox.send(Command::End);
    }

    fn interrupt_threads(&self) {
        self.mailbox.interrupt();
    }

    fn abandon(&self) {
        self.end_threads();
        // Nobody answers: the thread drops the question when it ends.
        self.drain();
    }

    fn stats(&self) -> Stats {
        let mut queues: Vec<_> = self.counters.iter().map(|counters| counters.snapshot()).collect();
        if let Some(first) = queues.first_mut() {
            first.notifications = self.counts.interrupts.get();
        }
        Stats { memory_tables: self.counts.memory_tables.get(), queues, ..self.lifecycle.stats() }
    }
}
