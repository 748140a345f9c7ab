//! What survives a device that is killed: the chains that it owes.

/// A log of the chains in flight, kept where it outlives the device, so that the one that comes after it finishes what was
/// begun: exactly once, as the driver sees it (vhost-user, Inflight I/O tracking). `()` keeps none.
///
/// ```text
/// taken(head) ... returned(head), returned(head) -> publishing -> [the driver sees them] -> published(index)
/// ```
///
/// A device that ends between two of these calls leaves a log from which the state of every chain can be told: owed, or
/// in the last batch, of which the used index says whether the driver has seen it.
pub trait InFlight {
    /// The oldest chain that the device before this one took and did not return. It stays the oldest until
    /// [`Self::resumed`].
    fn owed(&self) -> Option<u16> {
        None
    }

    /// The chain that [`Self::owed`] named is being worked on again. It stays in the log.
    fn resumed(&mut self) {}

    /// The chain at `head` was taken off the ring.
    fn taken(&mut self, _head: u16) {}

    /// How far a request that cannot be done twice had come, in the chain at `head`: what [`Self::set_stage`] was called
    /// with since it was taken, be it by the device before this one.
    fn stage(&self, _head: u16) -> u8 {
        0
    }

    /// The request in the chain at `head`, which was taken, is at `stage` from now on, whatever happens to the device.
    fn set_stage(&mut self, _head: u16, _stage: u8) {}

    /// The chain at `head` has its used entry, which the driver does not see yet.
    fn returned(&mut self, _head: u16) {}

    /// The used index is about to be stored: the chains returned since the last time are a batch.
    fn publishing(&mut self) {}

    /// The used index was stored as `used`: the batch is no longer in flight.
    fn published(&mut self, _used: u16) {}
}

impl InFlight for () {}
