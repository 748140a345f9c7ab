//! Recorder of a queue's thread: chains in flight, and counts.

use std::collections::VecDeque;
use std::sync::Arc;

use blk_core::virtq::InflightTracker;
use virtio_blk_model::command::Command;
use virtio_blk_model::queue::Observer;
use virtio_blk_model::wire::Status;

use super::inflight::{QueueLog, Recovered};
use super::persistent_state::PersistentState;
use crate::server::stats::QueueCounters;

/// Tracker and observer of one ring. Without a region of the client it only counts.
pub(in crate::server) struct InflightRecorder {
    region: Option<(QueueLog, Arc<PersistentState>)>,
    /// Chains that the previous server took and did not return, the oldest first.
    unfinished: VecDeque<u16>,
    /// The number of the next chain.
    counter: u64,
    /// Chains returned since the used index was stored.
    batch: u16,
    /// A request has failed since then: store the latches before the next used index.
    failed: bool,
    counters: Arc<QueueCounters>,
}

impl InflightRecorder {
    /// A log that keeps counts only.
    pub(in crate::server) const fn none(counters: Arc<QueueCounters>) -> Self {
        Self { region: None, unfinished: VecDeque::new(), counter: 0, batch: 0, failed: false, counters }
    }

    /// A log in a region, with what was recovered from it.
    pub(in crate::server) fn new(
        region: QueueLog,
        persistent: Arc<PersistentState>,
        recovered: Recovered,
        counters: Arc<QueueCounters>,
    ) -> Self {
        let Recovered { unfinished, counter } = recovered;
        Self {
            region: Some((region, persistent)),
            unfinished: unfinished.into(),
            counter,
            ..Self::none(counters)
        }
    }
}

impl InflightRecorder {
    /// The trailer of the region that it is in.
    pub(in crate::server) fn persistent(&self) -> Option<&Arc<PersistentState>> {
        self.region.as_ref().map(|(_, persistent)| persistent)
    }
}

impl InflightTracker for InflightRecorder {
    #[inline]
    fn next_unfinished(&self) -> Option<u16> {
        self.unfinished.front().copied()
    }

    fn resubmitted(&mut self) {
        self.unfinished.pop_front();
    }

    #[inline]
    fn record_taken(&mut self, head: u16) {
        if let Some((region, _)) = &self.region {
            region.taken(head, self.counter);
            self.counter = self.counter.wrapping_add(1);
        }
    }

    fn stage(&self, head: u16) -> u8 {
        self.region.as_ref().map_or(0, |(region, _)| region.stage(head))
    }

    fn set_stage(&mut self, head: u16, stage: u8) {
        if let Some((region, _)) = &self.region {
            region.set_stage(head, stage);
        }
    }

    #[inline]
    fn record_used(&mut self, head: u16) {
        if let Some((region, _)) = &self.region {
            region.returned(head);
            self.batch = self.batch.wrapping_add(1);
        }
    }

    #[inline]
    fn publishing(&mut self) {
        if self.failed {
            self.failed = false;
            if let Some((_, persistent)) = &self.region {
                persistent.store_latches();
            }
        }
    }

    #[inline]
    fn published(&mut self, used: u16) {
        if let Some((region, _)) = &self.region {
            region.published(std::mem::take(&mut self.batch), used);
        }
    }
}

impl Observer for InflightRecorder {
    #[inline]
    fn began(&mut self, command: Option<Command>, bytes: u64) {
        let counters = &self.counters;
        match command {
            Some(Command::Read { .. }) => {
                counters.reads.add(1);
                counters.read_bytes.add(bytes);
            }
            Some(Command::Write { .. }) => {
                counters.writes.add(1);
                counters.written_bytes.add(bytes);
            }
            Some(Command::Flush) => counters.flushes.add(1),
            Some(Command::Discard | Command::WriteZeroes) => counters.ranges.add(1),
            Some(Command::GetId | Command::Unknown { .. }) | None => counters.others.add(1),
        }
    }

    #[inline]
    fn ended(&mut self, status: Status) {
        if status != Status::Ok {
            self.counters.errors.add(1);
            self.failed = true;
        }
    }
}
