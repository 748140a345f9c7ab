//! What the threads of a server share: the device, the way to each queue's thread, the client of the moment.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Device;
use super::mutant::{self, Mutant};
use super::served::{Served, no_unit};
use super::stats::{QueueCounters, Stats};
use super::vhost_user::{self, Command, Peer, Waker};
use super::{Lun, ServerError, scsi};

/// The way to a thread, which works on the rings from `first` on.
pub(super) struct Thread {
    pub(super) commands: Sender<Command>,
    pub(super) waker: Arc<Waker>,
    pub(super) first: usize,
}

impl Thread {
    fn tell(&self, command: Command) {
        // A thread that has ended has said why; whoever waits for its answer finds that it does not come.
        let _ = self.commands.send(command);
        self.waker.wake();
    }
}

const GONE: &str = "the queue's thread has ended";

pub(super) struct Shared {
    pub(super) device: Box<dyn Device>,
    threads: Vec<Thread>,
    counters: Vec<Arc<QueueCounters>>,
    clients: AtomicU64,
    memory_tables: AtomicU64,
    resubmitted: AtomicU64,
    /// The field `writeback` of the configuration space. Only SET_CONFIG changes it, or what a region says of one before.
    writeback: AtomicBool,
    paused: Mutex<bool>,
    peer: Mutex<Option<Peer>>,
    stopping: AtomicBool,
    stop: Waker,
}

impl Shared {
    pub(super) fn new(
        device: Box<dyn Device>,
        threads: Vec<Thread>,
        counters: Vec<Arc<QueueCounters>>,
        stop: Waker,
    ) -> Self {
        Self {
            device,
            threads,
            counters,
            clients: AtomicU64::new(0),
            memory_tables: AtomicU64::new(0),
            resubmitted: AtomicU64::new(0),
            writeback: AtomicBool::new(true),
            paused: Mutex::new(false),
            peer: Mutex::new(None),
            stopping: AtomicBool::new(false),
            stop,
        }
    }

    pub(super) fn counters(&self, ring: usize) -> Arc<QueueCounters> {
        self.counters.get(ring).cloned().unwrap_or_default()
    }

    /// Tells the thread of a ring.
    pub(super) fn tell(&self, ring: usize, command: impl FnOnce(usize) -> Command) {
        if let Some(thread) = self.threads.iter().rfind(|thread| thread.first <= ring) {
            thread.tell(command(ring - thread.first));
        }
    }

    /// Asks the thread of a ring, and waits for the answer.
    pub(super) fn ask<T>(
        &self,
        ring: usize,
        command: impl FnOnce(usize, Sender<T>) -> Command,
    ) -> Result<T, String> {
        let (answer, answered) = channel();
        self.tell(ring, |ring| command(ring, answer));
        answered.recv().map_err(|_| GONE.into())
    }

    /// Asks every thread, and waits for all answers.
    pub(super) fn ask_all<T>(&self, command: impl Fn(Sender<T>) -> Command) -> Vec<T> {
        let (answer, answered) = channel();
        for thread in &self.threads {
            thread.tell(command(answer.clone()));
        }
        drop(answer);
        answered.iter().collect()
    }

    /// No thread takes requests, for one reason more.
    pub(super) fn hold(&self) {
        self.ask_all(|done| Command::Hold { hold: true, done });
    }

    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::SeqCst)
    }

    pub(super) fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::SeqCst);
    }

    /// Turns the write cache off: drains and flushes. If it returns true the queues are held, until the caller has told them
    /// that the cache is off; if the flush failed they go on as before.
    pub(super) fn turn_cache_off(&self) -> bool {
        self.hold_and_drain();
        let flushed = mutant::active(Mutant::CacheOffWithoutFlush) || self.flush();
        if flushed {
            self.set_writeback(false);
        } else {
            self.release();
        }
        flushed
    }

    /// A client has come, unless the server is to end.
    pub(super) fn connect(&self, peer: Peer) -> bool {
        let mut current = lock(&self.peer);
        if self.is_stopping() {
            return false;
        }
        self.clients.fetch_add(1, Ordering::Relaxed);
        *current = Some(peer);
        true
    }

    pub(super) fn disconnect(&self) {
        *lock(&self.peer) = None;
    }

    pub(super) fn set_request_channel(&self, channel: OwnedFd) {
        if let Some(peer) = &mut *lock(&self.peer) {
            peer.set_requests(channel);
        }
    }

    pub(super) fn memory_table_set(&self) {
        self.memory_tables.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn resubmits(&self, requests: usize) {
        self.resubmitted.fetch_add(requests as u64, Ordering::Relaxed);
    }
}

impl Served for Shared {
    fn serve_client(self: Arc<Self>, stream: UnixStream) -> io::Result<()> {
        vhost_user::serve_client(&self, stream)
    }

    fn set_paused(&self, pause: bool) {
        let mut paused = lock(&self.paused);
        if *paused != pause {
            *paused = pause;
            self.ask_all(|done| Command::Hold { hold: pause, done });
        }
    }

    fn hold_and_drain(&self) {
        self.hold();
        self.ask_all(Command::Drain);
    }

    fn release(&self) {
        self.ask_all(|done| Command::Hold { hold: false, done });
    }

    fn flush(&self) -> bool {
        self.ask(0, |_, done| Command::Flush(done)).unwrap_or(false)
    }

    fn config_changed(&self) {
        // A virtio-scsi host looks at its units' capacities whenever it is polled, and has an event for it.
        for thread in &self.threads {
            thread.waker.wake();
        }
        if self.device.writeback_offset().is_none() {
            return;
        }
        if let Some(peer) = &*lock(&self.peer)
            && let Err(why) = peer.config_changed()
        {
            tracing::warn!("the client is not told that the device has changed: {why}");
        }
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn begin_stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.stop.wake();
        if let Some(peer) = &*lock(&self.peer) {
            peer.hang_up();
        }
    }

    fn end_threads(&self) {
        for thread in &self.threads {
            thread.tell(Command::End);
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            clients: self.clients.load(Ordering::Relaxed),
            connected: lock(&self.peer).is_some(),
            paused: *lock(&self.paused),
            memory_tables: self.memory_tables.load(Ordering::Relaxed),
            resubmitted: self.resubmitted.load(Ordering::Relaxed),
            queues: self.counters.iter().map(|counters| counters.snapshot()).collect(),
        }
    }

    fn stop_waker(&self) -> &Waker {
        &self.stop
    }

    fn abandon(&self) {
        self.end_threads();
        // Nobody answers: each thread drops the question when it ends.
        self.ask_all(Command::Drain);
    }

    fn plug(&self, lun: Lun) -> Result<(), ServerError> {
        let value = format!("{}:{}", lun.target, lun.lun);
        let (image, unit) = scsi::open(lun)?;
        let plugged = self.ask(0, |_, done| Command::Plug(Box::new(unit), done));
        let place = plugged.map_err(io::Error::other)?.map_err(|remedy| no_unit(value, remedy))?;
        self.device.images().set(place, Some(image));
        Ok(())
    }

    fn unplug(&self, target: u8, lun: u16) -> Result<(), ServerError> {
        let unplugged = self.ask(0, |_, done| Command::Unplug { target, lun, done });
        let Some(place) = unplugged.map_err(io::Error::other)? else {
            return Err(no_unit(format!("{target}:{lun}"), "give the address of a unit that is there"));
        };
        self.device.images().set(place, None);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
