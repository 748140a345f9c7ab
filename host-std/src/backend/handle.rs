//! Interface of a backend to a server: an image that gives each queue a handle, on which a thread can sleep.

use std::os::fd::BorrowedFd;

use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Completion, Info, Storage, Submission};
use blk_core::units::Tag;

use super::counters::Counts;
use super::latch::LatchCause;
use super::open_error::OpenError;
use crate::memory::MappedMemory;

/// A queue's way to an image, for a thread that sleeps when there is nothing to do.
///
/// Layers (an error policy, a recorder) are handles over a handle.
pub trait Handle: Storage<MappedMemory> + Send {
    /// Asks for [`Self::wake_fd`] to become readable when the next operation ends. Returns false if one has ended already
    /// and is there to be polled: nothing would wake the caller.
    fn arm(&mut self) -> bool;

    /// Readable once an operation has ended after [`Self::arm`]. Not to be read from: `arm` does that.
    fn wake_fd(&self) -> BorrowedFd<'_>;

    /// The thread has looked at its other work, and comes back to this: until the next turn, what is copied on it has a bound. A
    /// device polls its storage many times in a turn. Without turns the bound is from one poll that finds nothing to the next.
    fn begin_turn(&mut self) {}

    /// The device drains: for a reset, a ring that stops, a client that is gone, the end of the server. Until this is called with
    /// false, layers hold nothing back: a failed request that an error policy held ends with its error, to be polled, and one that a limit of
    /// rate held begins.
    fn drain(&mut self, on: bool) {
        let _ = on;
    }
}

impl Storage<MappedMemory> for Box<dyn Handle> {
    fn info(&self) -> &Info {
        (**self).info()
    }

    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        (**self).submit(memory, tag, op, segments)
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        (**self).poll(memory)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        (**self).staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        (**self).release_hold(slot);
    }

    fn cancel_in_flight(&mut self) -> bool {
        (**self).cancel_in_flight()
    }
}

/// An image that is open. Layers are backends over a backend.
pub trait Backend: Send + Sync {
    /// A handle, for one queue.
    ///
    /// # Errors
    /// [`OpenError`] if there is no memory or no descriptor for it.
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError>;

    /// The image's current properties. A live resize changes them.
    fn info(&self) -> Info;

    /// Takes over the size that the image has now, or, if `bytes` is given, first extends a file to that. Never shrinks a file
    /// by itself. Handles take the new [`Info`] over when they poll.
    ///
    /// # Errors
    /// [`OpenError`] if the size cannot be, or cannot be set; then nothing has changed for the handles.
    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError>;

    /// Counts so far, of all handles.
    fn counts(&self) -> Counts;

    /// Why it has latched, if it has.
    fn latched(&self) -> Option<LatchCause>;

    /// Latches for good.
    fn latch(&self, cause: LatchCause);

    /// Latches for the client of the moment, which says that a server before this one told it of the latch; with `None` that
    /// ends. To be ended when the client goes: it may have forged what it says, and the next one is not to pay for it.
    fn set_client_latch(&self, cause: Option<LatchCause>);
}
