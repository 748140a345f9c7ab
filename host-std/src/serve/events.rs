//! Events of a server, sent to its subscribers.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use serde::{Deserialize, Serialize};

use super::error_policy::Failure;
use crate::mutex::lock;

/// Something happened to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The host failed a request.
    Failed {
        /// The device.
        device: String,
        /// The request.
        #[serde(flatten)]
        failure: Failure,
    },
    /// The device takes no more requests.
    Paused {
        /// The device.
        device: String,
        /// Why.
        reason: String,
    },
    /// The device takes requests again; held ones have been tried again.
    Resumed {
        /// The device.
        device: String,
    },
    /// The size of an image has changed.
    Resized {
        /// The device.
        device: String,
        /// The image.
        image: String,
        /// Its size now.
        bytes: u64,
    },
    /// A logical unit was added.
    Plugged {
        /// The device.
        device: String,
        /// Where.
        lun: String,
    },
    /// A logical unit was removed.
    Unplugged {
        /// The device.
        device: String,
        /// Where.
        lun: String,
    },
    /// The server ends.
    Stopping,
    /// Events were left out: this subscriber did not keep up.
    Missed {
        /// How many.
        events: u64,
    },
}

/// Events that wait for a subscriber.
const BACKLOG: usize = 256;

/// The subscribers.
#[derive(Debug, Default)]
pub(super) struct Bus(Mutex<Vec<Subscriber>>);

#[derive(Debug)]
struct Subscriber {
    id: u64,
    queue: SyncSender<Event>,
    missed: u64,
}

impl Bus {
    /// Every event from now on, until `unsubscribe`.
    pub(super) fn subscribe(&self, id: u64) -> Receiver<Event> {
        let (queue, receiver) = sync_channel(BACKLOG);
        self.lock().push(Subscriber { id, queue, missed: 0 });
        receiver
    }

    pub(super) fn unsubscribe(&self, id: u64) {
        self.lock().retain(|subscriber| subscriber.id != id);
    }

    /// Never waits for a subscriber.
    pub(super) fn publish(&self, event: &Event) {
        self.lock().retain_mut(|subscriber| subscriber.offer(event));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Subscriber>> {
        lock(&self.0)
    }
}

impl Subscriber {
    /// Returns whether it is still there.
    fn offer(&mut self, event: &Event) -> bool {
        if self.missed != 0 {
            match self.queue.try_send(Event::Missed { events: self.missed }) {
                Ok(()) => self.missed = 0,
                Err(TrySendError::Full(_)) => {
                    self.missed += 1;
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        match self.queue.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed += 1;
                true
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_subscriber_learns_what_it_missed_and_delays_nobody() {
        let bus = Bus::default();
        let (slow, gone) = (bus.subscribe(1), bus.subscribe(2));
        drop(gone);
        for _ in 0..BACKLOG + 3 {
            bus.publish(&Event::Stopping);
        }
        assert_eq!(slow.try_iter().take(BACKLOG).filter(|event| *event == Event::Stopping).count(), BACKLOG);
        bus.publish(&Event::Stopping);
        let rest: Vec<_> = slow.try_iter().collect();
        assert_eq!(rest, [Event::Missed { events: 3 }, Event::Stopping]);
        bus.unsubscribe(1);
        bus.publish(&Event::Stopping);
        assert!(slow.recv().is_err());
    }
}
