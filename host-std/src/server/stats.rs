//! Statistics of a server, as an operator reads them.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// What a server has done since it was made. All counts only rise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Clients that have connected so far.
    pub clients: u64,
    /// Whether one is connected.
    pub connected: bool,
    /// Whether the server takes no requests because an operator said so.
    pub paused: bool,
    /// Memory tables that clients have set or changed.
    pub memory_tables: u64,
    /// Chains that a server before this one had taken and not returned, and this one has worked on again.
    pub resubmitted: u64,
    /// What each queue has done.
    pub queues: Vec<QueueStats>,
}

/// What a queue has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStats {
    /// Reads.
    pub reads: u64,
    /// Bytes that reads asked for, those that failed included.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that writes brought.
    pub written_bytes: u64,
    /// Flushes that the guest asked for.
    pub flushes: u64,
    /// Discards and write-zeroes.
    pub ranges: u64,
    /// Every other request: identification, and what the device does not do.
    pub others: u64,
    /// Requests of all kinds that ended in an error.
    pub errors: u64,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Interrupts: writes to the call descriptor. Those of a PCI device are all counted with its first image.
    pub notifications: u64,
    /// Times that the guest's notification woke the queue's thread.
    pub kicks: u64,
    /// Times that the queue's thread looked at the ring.
    pub polls: u64,
}

impl QueueStats {
    /// Requests of all kinds.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.ranges + self.others
    }
}

/// The counters of a queue: written by its thread alone, read by anyone.
#[derive(Debug, Default)]
pub(super) struct QueueCounters {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) writes: Counter,
    pub(super) written_bytes: Counter,
    pub(super) flushes: Counter,
    pub(super) ranges: Counter,
    pub(super) others: Counter,
    pub(super) errors: Counter,
    pub(super) in_flight: Counter,
    pub(super) notifications: Counter,
    pub(super) kicks: Counter,
    pub(super) polls: Counter,
}

impl QueueCounters {
    pub(super) fn snapshot(&self) -> QueueStats {
        QueueStats {
            reads: self.reads.get(),
            read_bytes: self.read_bytes.get(),
            writes: self.writes.get(),
            written_bytes: self.written_bytes.get(),
            flushes: self.flushes.get(),
            ranges: self.ranges.get(),
            others: self.others.get(),
            errors: self.errors.get(),
            in_flight: self.in_flight.get() as u32,
            notifications: self.notifications.get(),
            kicks: self.kicks.get(),
            polls: self.polls.get(),
        }
    }
}

/// A count with one writer: no locked instruction.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(super) fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }

    #[inline]
    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
