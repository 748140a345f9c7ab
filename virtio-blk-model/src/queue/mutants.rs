//! Defects of the queue that tests switch on.

use blk_core::order::Sequencer;

use super::Queue;

impl<const N: usize> Queue<N> {
    /// Forgets what is in flight instead of awaiting it.
    pub(crate) fn forget_in_flight(&mut self) {
        self.requests.slots = Sequencer::new();
    }
}
