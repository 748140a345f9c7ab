//! The device's side of virtqueues (VIRTIO 1.3, 2.6 to 2.8): bounded walks over what a driver alleges.
//!
//! Split rings, with indirect descriptors and EVENT_IDX. A [`Queue`] hides the format: packed rings join as another
//! variant of its ring, behind the same calls.
//!
//! ```text
//! peek -> head -> walk (each descriptor copied once) -> pop     (or leave it: the same head is peeked again)
//! complete, complete, ... -> publish: one index update, and whether to interrupt
//! enable_notification: ask for a notification, and look whether one was just missed
//! ```
//!
//! Whatever a driver does wrong that leaves no sane way on breaks the queue ([`QueueError`]): it does nothing more
//! until it is reset, and the device sets DEVICE_NEEDS_RESET (2.1.2).

mod inflight;
mod queue;
mod ring;
mod running;
mod split;
mod table;
#[cfg(test)]
mod tests;
mod walk;

pub use inflight::InflightTracker;
pub use queue::Queue;
pub use ring::{Buffer, QueueError, RingFeatures, RingPosition, RingSetup, SIZE_MAX};
pub use running::RunningRing;
pub use table::{Descriptor, Table};
pub use walk::Walk;
