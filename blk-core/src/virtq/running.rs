//! Ring of a queue that runs, for one poll.

use super::inflight::InflightTracker;
use super::ring::QueueError;
use super::split::Ring;
use super::table::{Descriptor, Table};
use super::walk::Walk;
use crate::memory::GuestMemory;

/// Ring of a queue that is enabled and not broken, without a look at whether it is so with each call.
///
/// An error breaks nothing by itself: whoever has got one gives it to [`Queue::break_with`](super::Queue::break_with), and asks
/// nothing more of the ring. What the calls do is said at [`Queue`](super::Queue).
#[derive(Debug)]
pub struct RunningRing<'a> {
    pub(super) ring: &'a mut Ring,
}

impl RunningRing<'_> {
    /// Entries.
    #[inline]
    #[must_use]
    pub const fn size(&self) -> u16 {
        self.ring.size()
    }

    /// As [`Queue::fetch_avail_idx`](super::Queue::fetch_avail_idx).
    ///
    /// # Errors
    /// [`QueueError`].
    #[inline]
    pub fn fetch_avail_idx<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, QueueError> {
        self.ring.fetch_avail_idx(memory)
    }

    /// The head of the next chain that is unfinished or was fetched, without a read of the available index. It stays the next until
    /// [`Self::pop`].
    ///
    /// # Errors
    /// [`QueueError`].
    #[inline(always)]
    pub fn next_fetched<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        log: &impl InflightTracker,
    ) -> Result<Option<u16>, QueueError> {
        if let Some(head) = log.next_unfinished() {
            return Ok(Some(head));
        }
        if !self.ring.has_fetched() {
            return Ok(None);
        }
        self.ring.head(memory).map(Some)
    }

    /// Takes the chain at `head`, which [`Self::next_fetched`] has named. The device must return it by [`Self::add_used`].
    #[inline]
    pub fn pop(&mut self, log: &mut impl InflightTracker, head: u16) {
        if log.next_unfinished() == Some(head) {
            log.resubmitted();
        } else {
            self.ring.pop();
            log.record_taken(head);
        }
    }

    /// A walk through the chain at `head`.
    #[inline]
    #[must_use]
    pub const fn walk(&self, head: u16) -> Walk {
        Walk::new(self.ring.table(), head)
    }

    /// The table that the chain at `head` begins in, its first descriptor in it, and that: in the ring's table, or nearly always in
    /// an indirect one, where that was negotiated.
    ///
    /// # Errors
    /// [`QueueError`].
    #[inline(always)]
    pub fn first<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        head: u16,
    ) -> Result<(Table, Descriptor), QueueError> {
        let (mut table, mut index) = (self.ring.table(), head);
        loop {
            let descriptor = table.descriptor(memory, index)?;
            if descriptor.flags & Descriptor::INDIRECT == 0 {
                return Ok((table, descriptor));
            }
            (table, index) = (table.indirect(descriptor)?, 0);
        }
    }

    /// As [`Queue::add_used`](super::Queue::add_used).
    ///
    /// # Errors
    /// [`QueueError`].
    #[inline]
    pub fn add_used<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        log: &mut impl InflightTracker,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        self.ring.add_used(memory, head, written)?;
        log.record_used(head);
        Ok(())
    }

    /// As [`Queue::publish`](super::Queue::publish).
    ///
    /// # Errors
    /// [`QueueError`].
    #[inline]
    pub fn publish<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        log: &mut impl InflightTracker,
    ) -> Result<bool, QueueError> {
        self.ring.publish(memory, log)
    }

    /// As [`Queue::enable_notification`](super::Queue::enable_notification).
    ///
    /// # Errors
    /// [`QueueError`].
    #[inline]
    pub fn enable_notification<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, QueueError> {
        self.ring.enable_notification(memory)
    }
}
