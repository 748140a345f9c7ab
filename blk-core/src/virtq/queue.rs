//! Virtqueue as the device sees it: its registers, and its ring once it is enabled.

use super::inflight::InflightTracker;
use super::ring::{Buffer, QueueError, RingFeatures, RingPosition, RingSetup, SIZE_MAX};
use super::running::RunningRing;
use super::split;
use super::walk::Walk;
use crate::memory::GuestMemory;
use crate::units::GuestAddr;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
enum State {
    /// Not enabled, or reset.
    Off,
    /// Enabled, with a split ring. Packed rings are not supported.
    Split(split::Ring),
    /// Broken until reset.
    Broken(QueueError),
}

/// One virtqueue, seen by the device: its registers, and the ring once it is enabled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Queue {
    size_max: u16,
    setup: RingSetup,
    state: State,
}

impl Queue {
    /// A queue that is off, of at most `size_max` entries: a power of two, [`SIZE_MAX`] at most; anything else is
    /// rounded down to that.
    #[must_use]
    pub const fn new(size_max: u16) -> Self {
        let size_max = if size_max < SIZE_MAX { size_max } else { SIZE_MAX };
        let size_max = match size_max.checked_ilog2() {
            Some(log) => 1_u16.wrapping_shl(log),
            None => 1,
        };
        let (size, none) = (size_max, GuestAddr(0));
        let setup = RingSetup { size, descriptors: none, driver: none, device: none };
        Self { size_max, setup, state: State::Off }
    }

    /// Most entries that the driver may choose.
    #[must_use]
    pub const fn size_max(&self) -> u16 {
        self.size_max
    }

    /// The setup, as the driver wrote it.
    #[must_use]
    pub const fn setup(&self) -> &RingSetup {
        &self.setup
    }

    /// The setup, for the driver's writes. `None` once the queue is enabled: it is fixed then (4.1.4.3.2).
    pub const fn setup_mut(&mut self) -> Option<&mut RingSetup> {
        match self.state {
            State::Off => Some(&mut self.setup),
            State::Split(_) | State::Broken(_) => None,
        }
    }

    /// Whether the driver has enabled the queue: it may be broken by now.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// Whether the queue is enabled and not broken.
    #[must_use]
    #[inline]
    pub const fn is_running(&self) -> bool {
        matches!(self.state, State::Split(_))
    }

    /// The ring, if the queue is enabled and not broken: for a poll that makes many calls.
    #[inline]
    pub const fn running(&mut self) -> Option<RunningRing<'_>> {
        match &mut self.state {
            State::Split(ring) => Some(RunningRing { ring }),
            State::Off | State::Broken(_) => None,
        }
    }

    /// The error that broke the queue, if it is broken.
    #[must_use]
    pub const fn error(&self) -> Option<QueueError> {
        match self.state {
            State::Broken(error) => Some(error),
            State::Off | State::Split(_) => None,
        }
    }

    /// Enables the queue with a split ring at its beginning.
    ///
    /// # Errors
    /// [`QueueError::Size`] or [`QueueError::Layout`]; the queue is then broken.
    pub fn enable(&mut self, features: RingFeatures) -> Result<(), QueueError> {
        self.enable_at(features, RingPosition::default())
    }

    /// Enables the queue with a split ring that has been in use. Everything before `position` is done, except the chains
    /// that [`InflightTracker::next_unfinished`] names.
    ///
    /// # Errors
    /// As for [`Self::enable`].
    pub fn enable_at(&mut self, features: RingFeatures, position: RingPosition) -> Result<(), QueueError> {
        match split::Ring::new(&self.setup, self.size_max, features, position) {
            Ok(ring) => self.state = State::Split(ring),
            Err(error) => return Err(self.break_with(error)),
        }
        Ok(())
    }

    /// The ring's position, if there is a ring.
    #[must_use]
    pub const fn position(&self) -> Option<RingPosition> {
        match &self.state {
            State::Split(ring) => Some(ring.position()),
            State::Off | State::Broken(_) => None,
        }
    }

    /// Turns the queue off and forgets the ring and its setup, as a reset does.
    pub fn reset(&mut self) {
        *self = Self::new(self.size_max);
    }

    /// Breaks the queue for a reason that its owner found, and returns that.
    #[cold]
    pub const fn break_with(&mut self, error: QueueError) -> QueueError {
        self.state = State::Broken(error);
        error
    }

    /// Whether a chain is unfinished, or fetched and not popped: [`Self::peek`] then returns it without a read of the
    /// available index.
    #[must_use]
    #[inline]
    pub fn has_fetched(&self, log: &impl InflightTracker) -> bool {
        match &self.state {
            State::Split(ring) => ring.has_fetched() || log.next_unfinished().is_some(),
            State::Off | State::Broken(_) => false,
        }
    }

    /// Reads the available index, unless a fetched chain is left. Returns whether a chain is waiting.
    ///
    /// # Errors
    /// [`QueueError`]; the queue is then broken. A queue that is off or broken has no chains.
    #[inline]
    pub fn fetch_avail_idx<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, QueueError> {
        let State::Split(ring) = &mut self.state else { return Ok(false) };
        ring.fetch_avail_idx(memory).map_err(|error| self.break_with(error))
    }

    /// The head of the next chain, if there is one; unfinished chains come first. It stays the next until [`Self::pop`].
    ///
    /// # Errors
    /// [`QueueError`]; the queue is then broken. A queue that is off or broken has no chains.
    #[inline(always)]
    pub fn peek<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        log: &impl InflightTracker,
    ) -> Result<Option<u16>, QueueError> {
        let Some(mut ring) = self.running() else { return Ok(None) };
        let fetched = if log.next_unfinished().is_some() { Ok(true) } else { ring.fetch_avail_idx(memory) };
        fetched.and_then(|_| ring.next_fetched(memory, log)).map_err(|error| self.break_with(error))
    }

    /// Takes the chain at `head`, which was peeked last. The device must return it by [`Self::add_used`].
    #[inline]
    pub fn pop(&mut self, log: &mut impl InflightTracker, head: u16) {
        if self.has_fetched(log)
            && let Some(mut ring) = self.running()
        {
            ring.pop(log, head);
        }
    }

    /// Visits the buffers of the chain at `head` in order: the readable ones, then the writable ones. Empty buffers are
    /// left out. Each descriptor is copied out of guest memory once.
    ///
    /// # Errors
    /// [`QueueError`]; the queue is then broken, and some buffers may have been visited.
    #[inline]
    pub fn walk<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        head: u16,
        mut visit: impl FnMut(Buffer),
    ) -> Result<(), QueueError> {
        let State::Split(ring) = &self.state else { return Ok(()) };
        let mut walk = Walk::new(ring.table(), head);
        loop {
            match walk.next(memory) {
                Ok(Some(buffer)) => visit(buffer),
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.break_with(error)),
            }
        }
    }

    /// Adds the chain at `head` to the used ring, with `written` bytes written into it. The driver sees it after the next
    /// [`Self::publish`].
    ///
    /// `written` must not be more than the device wrote: drivers take it as initialised (CVE-2024-8612).
    ///
    /// # Errors
    /// [`QueueError`]; the queue is then broken.
    #[inline]
    pub fn add_used<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        log: &mut impl InflightTracker,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let Some(mut ring) = self.running() else { return Ok(()) };
        ring.add_used(memory, log, head, written).map_err(|error| self.break_with(error))
    }

    /// Stores the used index, which shows the driver all chains added since the last time. Returns whether the driver wants an
    /// interrupt for them. Cheap if there are none.
    ///
    /// # Errors
    /// [`QueueError`]; the queue is then broken.
    #[inline]
    pub fn publish<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        log: &mut impl InflightTracker,
    ) -> Result<bool, QueueError> {
        let State::Split(ring) = &mut self.state else { return Ok(false) };
        ring.publish(memory, log).map_err(|error| self.break_with(error))
    }

    /// Enables available-buffer notifications, then reads the available index again. Returns true if a chain is waiting: the
    /// driver may have added it before it saw the change, and then sends no notification for it. Call it when [`Self::peek`]
    /// finds nothing more.
    ///
    /// # Errors
    /// [`QueueError`]; the queue is then broken.
    #[inline]
    pub fn enable_notification<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, QueueError> {
        let State::Split(ring) = &mut self.state else { return Ok(false) };
        ring.enable_notification(memory).map_err(|error| self.break_with(error))
    }
}
