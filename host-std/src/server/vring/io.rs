//! A ring's connections to the client.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use blk_core::virtq::{InflightTracker, RingPosition};

use super::inflight_recorder::InflightRecorder;
use crate::server::client_fd::ClientFd;
use crate::server::stats::QueueCounters;

/// Whether a ring runs.
pub(in crate::server) enum Run {
    Off,
    /// Takes requests where `enabled`.
    On {
        enabled: bool,
    },
    /// Completes what is in flight, and answers with its position.
    Stopping(Sender<u16>),
}

/// What a ring's thread has of a ring beside its queue: the client's descriptors, the in-flight log, what is due.
pub(in crate::server) struct VringIo {
    /// Its number in the device.
    pub(in crate::server) index: u16,
    pub(in crate::server) run: Run,
    /// The thread is held: no ring takes requests.
    pub(in crate::server) held: bool,
    pub(in crate::server) call: Option<ClientFd>,
    pub(in crate::server) err: Option<ClientFd>,
    pub(in crate::server) kick: Option<ClientFd>,
    pub(in crate::server) log: InflightRecorder,
    /// An interrupt is due.
    pub(in crate::server) interrupt: bool,
    /// Where the ring stood last, also when it is broken now.
    pub(in crate::server) position: RingPosition,
    /// The client knows that the ring is broken.
    pub(in crate::server) told_broken: bool,
    pub(in crate::server) counters: Arc<QueueCounters>,
}

impl VringIo {
    pub(in crate::server) fn new(index: u16, counters: Arc<QueueCounters>) -> Self {
        Self {
            index,
            run: Run::Off,
            held: false,
            call: None,
            err: None,
            kick: None,
            log: InflightRecorder::none(Arc::clone(&counters)),
            interrupt: false,
            position: RingPosition::default(),
            told_broken: false,
            counters,
        }
    }

    /// Whether requests may be taken.
    pub(in crate::server) const fn is_open(&self) -> bool {
        matches!(self.run, Run::On { enabled: true }) && !self.held
    }

    /// The driver wants to be interrupted.
    pub(in crate::server) const fn interrupt(&mut self) {
        self.interrupt = true;
    }

    pub(in crate::server) const fn log_mut(&mut self) -> &mut InflightRecorder {
        &mut self.log
    }

    /// Whether the ring is to be looked at unasked: the client gave no descriptor for its kicks.
    pub(in crate::server) const fn is_polled(&self) -> bool {
        self.kick.is_none() && matches!(self.run, Run::On { enabled: true })
    }
}

/// A ring's log, where a device takes a slice of them.
impl InflightTracker for VringIo {
    fn next_unfinished(&self) -> Option<u16> {
        self.log.next_unfinished()
    }

    fn resubmitted(&mut self) {
        self.log.resubmitted();
    }

    fn record_taken(&mut self, head: u16) {
        self.log.record_taken(head);
    }

    fn stage(&self, head: u16) -> u8 {
        self.log.stage(head)
    }

    fn set_stage(&mut self, head: u16, stage: u8) {
        self.log.set_stage(head, stage);
    }

    fn record_used(&mut self, head: u16) {
        self.log.record_used(head);
    }

    fn publishing(&mut self) {
        self.log.publishing();
    }

    fn published(&mut self, used: u16) {
        self.log.published(used);
    }
}
