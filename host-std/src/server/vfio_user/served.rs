//! A PCI device at work: its thread, and what others see of it.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::PciDevice;
use super::connection::Connection;
use super::port::{Port, State};
use super::worker::{Command, Counts, Worker};
use crate::backend::Handle;
use crate::server::ServerError;
use crate::server::served::Served;
use crate::server::stats::{QueueCounters, Stats};
use crate::server::vhost_user::Waker;

/// A PCI device and the way to its thread.
pub(in crate::server) struct Pci {
    name: &'static str,
    patience: Duration,
    commands: Mutex<Sender<Command>>,
    waker: Arc<Waker>,
    /// Of each image.
    counters: Vec<Arc<QueueCounters>>,
    counts: Arc<Counts>,
    clients: AtomicU64,
    paused: Mutex<bool>,
    peer: Mutex<Option<UnixStream>>,
    stopping: AtomicBool,
    stop: Waker,
}

impl Pci {
    /// Starts the device's thread. A client may keep it waiting for `patience`.
    pub(in crate::server) fn start(
        name: &'static str,
        device: Box<dyn PciDevice>,
        handles: Vec<Box<dyn Handle>>,
        patience: Duration,
    ) -> Result<(Arc<Self>, JoinHandle<()>), ServerError> {
        let state = Arc::new(State::default());
        let counters: Vec<_> = handles.iter().map(|_| Arc::new(QueueCounters::default())).collect();
        let with = handles.into_iter().zip(&counters);
        let ports =
            with.map(|(handle, counters)| Port::new(handle, Arc::clone(&state), Arc::clone(counters)));
        let (commands, received) = channel();
        let waker = Arc::new(Waker::new()?);
        let counts = Arc::new(Counts::default());
        let worker =
            Worker::new(device, ports.collect(), state, received, Arc::clone(&waker), Arc::clone(&counts))
                .map_err(io::Error::from)?;
        #[cfg(feature = "mutants")]
        let switched_on = crate::server::mutant::current();
        let run = move || {
            #[cfg(feature = "mutants")]
            crate::server::mutant::set(switched_on);
            worker.run();
        };
        let thread = std::thread::Builder::new().name(format!("pci-{name}")).spawn(run)?;
        let pci = Self {
            name,
            patience,
            commands: Mutex::new(commands),
            waker,
            counters,
            counts,
            clients: AtomicU64::new(0),
            paused: Mutex::new(false),
            peer: Mutex::new(None),
            stopping: AtomicBool::new(false),
            stop: Waker::new()?,
        };
        Ok((Arc::new(pci), thread))
    }

    fn tell(&self, command: Command) {
        // A thread that has ended has said why; whoever waits for its answer finds that it does not come.
        let _ = lock(&self.commands).send(command);
        self.waker.wake();
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Option<T> {
        let (answer, answered) = channel();
        self.tell(command(answer));
        answered.recv().ok()
    }

    fn hold(&self, hold: bool) {
        self.ask(|done| Command::Hold { hold, done });
    }
}

impl Served for Pci {
    fn serve_client(self: Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let peer = stream.try_clone()?;
        let connection = Connection::new(stream, self.patience)?;
        {
            let mut current = lock(&self.peer);
            if self.is_stopping() {
                return Ok(());
            }
            self.clients.fetch_add(1, Ordering::Relaxed);
            *current = Some(peer);
        }
        tracing::info!(device = self.name, "a client has connected");
        let ended = self.ask(|done| Command::Client { connection: Box::new(connection), done });
        *lock(&self.peer) = None;
        ended.ok_or_else(|| io::Error::other("the device's thread has ended"))
    }

    fn set_paused(&self, pause: bool) {
        let mut paused = lock(&self.paused);
        if *paused != pause {
            *paused = pause;
            self.hold(pause);
        }
    }

    fn hold_and_drain(&self) {
        self.hold(true);
        self.ask(Command::Drain);
    }

    fn release(&self) {
        self.hold(false);
    }

    fn flush(&self) -> bool {
        self.ask(Command::Flush).unwrap_or(false)
    }

    fn config_changed(&self) {
        // The device sees what its images are whenever it is polled.
        self.tell(Command::Look);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn begin_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stop.wake();
        if let Some(peer) = &*lock(&self.peer) {
            // It may have been closed by the client.
            let _ = peer.shutdown(std::net::Shutdown::Both);
        }
    }

    fn stop_waker(&self) -> &Waker {
        &self.stop
    }

    fn end_threads(&self) {
        self.tell(Command::End);
    }

    fn abandon(&self) {
        self.end_threads();
        // Nobody answers: the thread drops the question when it ends.
        self.ask(Command::Drain);
    }

    fn stats(&self) -> Stats {
        let mut queues: Vec<_> = self.counters.iter().map(|counters| counters.snapshot()).collect();
        if let Some(first) = queues.first_mut() {
            first.notifications = self.counts.interrupts.get();
        }
        Stats {
            clients: self.clients.load(Ordering::Relaxed),
            connected: lock(&self.peer).is_some(),
            paused: *lock(&self.paused),
            memory_tables: self.counts.memory_tables.get(),
            resubmitted: 0,
            queues,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
