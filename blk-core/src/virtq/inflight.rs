//! Log of descriptor chains in flight, kept outside the device so that its successor finishes each exactly once.

/// Tracks the chains that a queue has taken and not returned, in memory that outlives the process (vhost-user, Inflight I/O
/// tracking). [`Queue`](super::Queue) calls it on its own thread. The process may be killed between any two calls. `()` tracks
/// nothing.
///
/// ```text
/// record_taken(head) ... record_used(head), record_used(head) -> publishing -> [the driver sees them] -> published(index)
/// ```
///
/// Whatever the last call was, the log tells the state of every chain: unfinished, or in the last batch. Whether the driver has
/// seen that batch is told by the ring's used index.
pub trait InflightTracker {
    /// The oldest chain that the previous device took and did not return. It stays the oldest until [`Self::resubmitted`].
    fn next_unfinished(&self) -> Option<u16> {
        None
    }

    /// The chain that [`Self::next_unfinished`] named was submitted again. It stays in the log.
    fn resubmitted(&mut self) {}

    /// The chain at `head` was taken off the ring.
    fn record_taken(&mut self, _head: u16) {}

    /// Progress of a request that cannot be done twice, in the chain at `head`: the last value of [`Self::set_stage`] since it
    /// was taken, by this device or the previous one. 0 if there is none.
    fn stage(&self, _head: u16) -> u8 {
        0
    }

    /// Records the progress of the request in the chain at `head`, which was taken.
    fn set_stage(&mut self, _head: u16, _stage: u8) {}

    /// The chain at `head` has its used entry, which the driver does not see yet.
    fn record_used(&mut self, _head: u16) {}

    /// The used index is about to be stored: the chains returned since the last time are a batch.
    fn publishing(&mut self) {}

    /// The used index was stored as `used`: the batch is no longer in flight.
    fn published(&mut self, _used: u16) {}
}

impl InflightTracker for () {}
