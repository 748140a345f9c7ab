//! A device that is served over vhost-user, as the threads of its server share it: the virtio device, its queues' threads, the
//! client of the moment.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use super::header::send_config_change;
use crate::mutex::lock;
use crate::server::lifecycle::Lifecycle;
use crate::server::mailbox::Mailbox;
use crate::server::mutant::{self, Mutant};
use crate::server::queue::Command;
use crate::server::stats::{QueueCounters, Stats};
use crate::server::virtio::VirtioBackend;

/// A queue's thread, which works on the rings from `first` on.
pub(in crate::server) struct QueueThread {
    pub(in crate::server) mailbox: Mailbox<Command>,
    pub(in crate::server) first: usize,
}

const GONE: &str = "the queue's thread has ended";

pub(in crate::server) struct VhostUserDevice {
    pub(super) backend: Box<dyn VirtioBackend>,
    pub(super) lifecycle: Arc<Lifecycle>,
    threads: Vec<QueueThread>,
    counters: Vec<Arc<QueueCounters>>,
    memory_tables: AtomicU64,
    resubmitted: AtomicU64,
    /// `writeback` in configuration space. Written by SET_CONFIG; restored from persistent state by SET_INFLIGHT_FD.
    writeback: AtomicBool,
    /// Where requests of ours go to the client (SET_BACKEND_REQ_FD).
    requests: Mutex<Option<OwnedFd>>,
}

impl VhostUserDevice {
    pub(in crate::server) fn new(
        backend: Box<dyn VirtioBackend>,
        lifecycle: Arc<Lifecycle>,
        threads: Vec<QueueThread>,
        counters: Vec<Arc<QueueCounters>>,
    ) -> Self {
        Self {
            backend,
            lifecycle,
            threads,
            counters,
            memory_tables: AtomicU64::new(0),
            resubmitted: AtomicU64::new(0),
            writeback: AtomicBool::new(true),
            requests: Mutex::new(None),
        }
    }

    pub(super) fn counters(&self, ring: usize) -> Arc<QueueCounters> {
        self.counters.get(ring).cloned().unwrap_or_default()
    }

    /// Sends a command to the thread of a ring.
    pub(super) fn send(&self, ring: usize, command: impl FnOnce(usize) -> Command) {
        if let Some(thread) = self.thread(ring) {
            thread.mailbox.send(command(ring - thread.first));
        }
    }

    /// Sends a command to the thread of a ring, and waits for the answer.
    pub(super) fn call<T>(
        &self,
        ring: usize,
        command: impl FnOnce(usize, Sender<T>) -> Command,
    ) -> Result<T, String> {
        let thread = self.thread(ring).ok_or(GONE)?;
        let answer = thread.mailbox.call(|answer| command(ring - thread.first, answer));
        answer.ok_or_else(|| GONE.into())
    }

    /// Sends a command to every thread, and waits for all answers.
    pub(super) fn call_all<T>(&self, command: impl Fn(Sender<T>) -> Command) {
        let sent = self.threads.iter().map(|thread| {
            let (answer, answered) = channel();
            thread.mailbox.send(command(answer));
            (thread, answered)
        });
        for (thread, answered) in sent.collect::<Vec<_>>() {
            thread.mailbox.wait(&answered);
        }
    }

    fn thread(&self, ring: usize) -> Option<&QueueThread> {
        self.threads.iter().rfind(|thread| thread.first <= ring)
    }

    /// Adds a hold to every thread, or takes one away.
    pub(super) fn hold(&self, hold: bool) {
        self.call_all(|done| Command::Hold { hold, done });
    }

    /// Waits until nothing is in flight on any thread.
    pub(super) fn drain(&self) {
        self.call_all(Command::Drain);
    }

    /// Flushes the images, while held and drained.
    pub(super) fn flush(&self) -> bool {
        self.call(0, |_, done| Command::Flush(done)).unwrap_or(false)
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
        self.hold(true);
        self.drain();
        let flushed = mutant::active(Mutant::CacheOffWithoutFlush) || self.flush();
        if flushed {
            self.set_writeback(false);
        } else {
            self.hold(false);
        }
        flushed
    }

    /// A client has come. False if it is not to be served, since the end has begun.
    pub(super) fn connect(&self, stream: UnixStream) -> bool {
        self.lifecycle.connect(stream)
    }

    /// The client has gone, and its socket for requests of ours with it.
    pub(super) fn disconnect(&self) {
        self.set_request_channel(None);
        self.lifecycle.disconnect();
    }

    pub(super) fn set_request_channel(&self, channel: Option<OwnedFd>) {
        *lock(&self.requests) = channel;
    }

    /// Tells the client that the configuration space has changed.
    pub(super) fn config_changed(&self) {
        // A virtio-scsi host looks at its units' capacities whenever it is polled, and has an event for it.
        for thread in &self.threads {
            thread.mailbox.wake();
        }
        if self.backend.writeback_offset().is_none() || !self.lifecycle.stats().connected {
            return;
        }
        let requests = lock(&self.requests);
        let sent = requests.as_ref().ok_or_else(|| "it takes no requests from its backend".to_owned());
        if let Err(why) = sent.and_then(send_config_change) {
            tracing::warn!("the client is not told that the device has changed: {why}");
        }
    }

    pub(super) fn end_threads(&self) {
        for thread in &self.threads {
            thread.mailbox.send(Command::End);
        }
    }

    /// Frees the threads from what a client makes them hang in.
    pub(super) fn interrupt_threads(&self) {
        self.threads.iter().for_each(|thread| thread.mailbox.interrupt());
    }

    pub(super) fn memory_table_set(&self) {
        self.memory_tables.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn resubmits(&self, requests: usize) {
        self.resubmitted.fetch_add(requests as u64, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            memory_tables: self.memory_tables.load(Ordering::Relaxed),
            resubmitted: self.resubmitted.load(Ordering::Relaxed),
            queues: self.counters.iter().map(|counters| counters.snapshot()).collect(),
            ..self.lifecycle.stats()
        }
    }
}
