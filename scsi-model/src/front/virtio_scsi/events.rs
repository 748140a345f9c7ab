//! The event queue: what a driver is told unasked. VIRTIO 1.3, 5.6.6.3.

use blk_core::memory::GuestMemory;
use blk_core::virtq::{InflightTracker, Queue, QueueError};
use zerocopy::IntoBytes;

use super::address::Address;
use super::rings::{Chain, put};
use super::wire::{EventData, Features, event};
use crate::fifo::Fifo;

/// Events that wait for a buffer. More are lost, and the driver is told that they were.
const EVENTS_MAX: usize = 16;

const EVENT_BYTES: u64 = size_of::<EventData>() as u64;

/// Something that happened to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Happened {
    /// It appeared.
    Appeared,
    /// It is gone.
    Removed,
    /// Its capacity is another one: CAPACITY DATA HAS CHANGED.
    Resized,
}

impl Happened {
    /// What a driver has to have negotiated to be told.
    const fn feature(self) -> Features {
        match self {
            Self::Appeared | Self::Removed => Features::HOTPLUG,
            Self::Resized => Features::CHANGE,
        }
    }

    /// Event and reason. Of a parameter change that is the additional sense code, and its qualifier in bits 15:8.
    const fn encode(self) -> (u32, u32) {
        match self {
            Self::Appeared => (event::TRANSPORT_RESET, event::RESCAN),
            Self::Removed => (event::TRANSPORT_RESET, event::REMOVED),
            Self::Resized => (event::PARAMETER_CHANGE, 0x2a | 0x09 << 8),
        }
    }
}

/// Events that the driver has not been told yet, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Events {
    waiting: Fifo<(Address, Happened), EVENTS_MAX>,
    /// Some were lost for want of buffers.
    missed: bool,
}

impl Events {
    pub(super) const fn new() -> Self {
        Self { waiting: Fifo::new(), missed: false }
    }

    /// Notes that something happened, for a driver that has set its queue up.
    pub(super) fn push(&mut self, ring: Option<&Queue>, address: Address, happened: Happened) {
        if ring.is_some_and(Queue::is_enabled) {
            self.missed |= !self.waiting.push_back((address, happened));
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && !self.missed
    }

    /// Puts what waits into the driver's buffers, as far as there are any.
    pub(super) fn deliver<M: GuestMemory + ?Sized>(
        &mut self,
        ring: &mut Queue,
        memory: &M,
        features: Features,
        log: &mut impl InflightTracker,
    ) -> Result<(), QueueError> {
        loop {
            // What the driver did not ask to be told is not told: 5.6.6.3.2.
            self.waiting.retain(|(_, happened)| features.contains(happened.feature()));
            if self.is_empty() {
                return Ok(());
            }
            let Some(head) = ring.peek(memory, log)? else {
                // The driver adds buffers when it likes, and is to say so.
                if ring.enable_notification(memory)? {
                    continue;
                }
                return Ok(());
            };
            let mut chain = Chain::new();
            chain.read(ring, memory, head)?;
            let room = chain.writable.bytes;
            let (bytes, told) = if room >= EVENT_BYTES {
                (self.next(), true)
            } else {
                // Too short for an event: 5.6.6.3 lets it be used for nothing.
                (EventData { event: event::NONE.into(), ..EventData::default() }, false)
            };
            if room < size_of_val(&bytes.event) as u64 {
                return Err(ring.break_with(QueueError::Unanswerable));
            }
            ring.pop(log, head);
            let written = put(ring, memory, head, 0, bytes.as_bytes())?;
            ring.add_used(memory, log, head, written)?;
            if told {
                let _ = self.waiting.pop_front();
                self.missed = false;
            }
        }
    }

    /// The oldest event, and whether others were lost.
    fn next(&self) -> EventData {
        let missed = if self.missed { event::MISSED } else { 0 };
        match self.waiting.front() {
            Some((address, happened)) => {
                let (event, reason) = happened.encode();
                EventData { event: (event | missed).into(), lun: address.in_event(), reason: reason.into() }
            }
            None => EventData { event: (event::NONE | missed).into(), ..EventData::default() },
        }
    }
}
