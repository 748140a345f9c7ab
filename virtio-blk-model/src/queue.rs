//! Request queue: a ring and its requests in flight. It is separate from the device, so that each can have its own thread.
//!
//! ```text
//! poll -> completions                      -> answer -> publish
//!      -> chain -> decode -> storage -> (done at once) -^
//! ```

mod mutants;
mod noted;
mod range_requests;
mod ranges;
mod requests;
mod view;

pub use self::view::{DeviceView, Observer, QueueProgress};

use blk_core::memory::GuestMemory;
use blk_core::order::Deferred;
use blk_core::storage::Storage;
use blk_core::virtq::{self, InflightTracker};

use self::requests::Requests;

/// A ring and its requests in flight, at most `N`.
///
/// It is polled by whoever owns it, with the storage handle that is its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Queue<const N: usize> {
    ring: virtq::Queue,
    requests: Requests<N>,
    /// The epoch of the view seen last.
    epoch: u32,
}

impl<const N: usize> Queue<N> {
    /// An idle queue of at most `size_max` entries, for a device that calls itself `id`.
    #[must_use]
    pub const fn new(size_max: u16, id: [u8; 20]) -> Self {
        Self { ring: virtq::Queue::new(size_max), requests: Requests::new(id), epoch: 0 }
    }

    /// Makes an idle queue one of at most `size_max` entries, for a device that calls itself `id`.
    pub(crate) const fn configure(&mut self, size_max: u16, id: [u8; 20]) {
        self.ring = virtq::Queue::new(size_max);
        self.requests.id = id;
    }

    /// The ring and its registers.
    #[must_use]
    pub const fn ring(&self) -> &virtq::Queue {
        &self.ring
    }

    /// The ring, for a front that sets it up.
    pub const fn ring_mut(&mut self) -> &mut virtq::Queue {
        &mut self.ring
    }

    /// Requests in flight.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.requests.slots.in_use()
    }

    /// Whether nothing is in flight.
    pub(crate) const fn is_idle(&self) -> bool {
        self.requests.slots.is_idle()
    }

    /// Whether the queue has seen `epoch` and has nothing in flight.
    #[must_use]
    pub const fn is_quiet(&self, epoch: u32) -> bool {
        self.epoch == epoch && self.requests.slots.is_idle()
    }

    /// Whether a reset of the queue still waits for operations in flight.
    #[must_use]
    pub const fn is_resetting(&self) -> bool {
        self.requests.slots.is_resetting()
    }

    /// Takes completions and requests until there are no more, or as many as the ring has entries.
    ///
    /// `view` is called after each read of the available index, so that a request made after a change is taken under it.
    #[inline]
    pub fn poll<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: impl Fn() -> DeviceView,
    ) -> QueueProgress {
        self.poll_logged(memory, storage, view, &mut ())
    }

    /// [`Self::poll`] with a tracker of the chains in flight, from which a successor can resume, and an observer.
    #[inline]
    pub fn poll_logged<M: GuestMemory + ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        view: impl Fn() -> DeviceView,
        log: &mut (impl InflightTracker + Observer),
    ) -> QueueProgress {
        if self.requests.slots.is_resetting() {
            // When the reset is over, poll again: a change may wait until every queue has seen the present epoch.
            return QueueProgress { interrupt: false, again: self.finish_reset(memory, storage) };
        }
        let Some(mut ring) = self.ring.running() else {
            // Off or broken: completions are taken, and nothing is answered.
            self.epoch = view().epoch;
            self.requests.drain(memory, storage);
            return QueueProgress::default();
        };
        match self.requests.serve(&mut ring, memory, storage, &view, &mut self.epoch, log) {
            Ok(progress) => progress,
            Err(error) => {
                // `ring().error()` reports it.
                self.ring.break_with(error);
                QueueProgress::default()
            }
        }
    }

    /// Submits the flush that turns the cache off. Call it when this and every other queue [is quiet](Self::is_quiet).
    ///
    /// # Errors
    /// [`Deferred`] if it cannot be taken now.
    pub fn flush<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
    ) -> Result<(), Deferred> {
        self.requests.flush(memory, storage)
    }

    /// Result of the flush that [`Self::flush`] submitted, once it has ended.
    pub const fn take_flushed(&mut self) -> Option<bool> {
        self.requests.flushed.take()
    }

    /// Begins a reset: the ring is forgotten, and no guest memory of it is touched any more; what the storage has is
    /// awaited by [`Self::poll`] while [`Self::is_resetting`].
    pub fn reset(&mut self) {
        self.ring.reset();
        self.requests.reset();
    }

    /// Goes on with a reset, and returns whether it is over. Bounded by what is in flight.
    pub fn finish_reset<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) -> bool {
        self.requests.finish_reset(memory, storage)
    }
}
