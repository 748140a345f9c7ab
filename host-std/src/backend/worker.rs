//! A worker: what transfers, on the thread that calls it, with a file of its own.

use std::cell::Cell;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use blk_core::storage::IoError;

use super::bounce_buffer::Bounce;
use super::iovecs::IoVecs;
use super::range_lock::{HeldRange, RangeLock};
use super::shared::{Shared, Transfer};
use super::syscalls::Syscalls;

/// Reads, writes, zeroes and discards, on the thread that calls it.
pub(super) struct Worker<S> {
    pub(super) shared: Arc<Shared<S>>,
    /// An open file description of its own: see [`Image::another`](super::image::Image::another).
    pub(super) file: OwnedFd,
    /// Its place in the range lock.
    pub(super) id: usize,
    pub(super) bounce: Cell<Option<Bounce>>,
}

impl<S: Syscalls> Worker<S> {
    /// Fills `into` from byte `offset` on.
    pub(super) fn read_all(&self, into: &mut IoVecs, offset: u64) -> Result<(), IoError> {
        let mut at = offset;
        while into.count() != 0 {
            let result = self.shared.syscalls.read(self.file.as_fd(), into, at);
            if let Some(result) = self.shared.moved(Transfer::Read, into, &mut at, result) {
                return result;
            }
        }
        Ok(())
    }

    /// Writes all of `from` at byte `offset`.
    pub(super) fn write_all(&self, from: &mut IoVecs, offset: u64, fua: bool) -> Result<(), IoError> {
        let mut at = offset;
        while from.count() != 0 {
            self.shared.count_write_call(fua);
            let result = self.shared.syscalls.write(self.file.as_fd(), from, at, fua);
            if let Some(result) = self.shared.moved(Transfer::Write { fua }, from, &mut at, result) {
                return result;
            }
        }
        Ok(())
    }

    /// The blocks of direct I/O that bytes of the file touch.
    pub(super) fn blocks(&self, range: Range<u64>) -> Range<u64> {
        let unit = self.unit();
        range.start - range.start % unit..range.end.next_multiple_of(unit)
    }

    /// Holds the blocks of direct I/O that bytes of the file touch.
    pub(super) fn hold<'a>(&self, ranges: &'a RangeLock, range: Range<u64>) -> HeldRange<'a> {
        ranges.hold(self.id, self.blocks(range))
    }

    /// Bytes of a block of direct I/O.
    pub(super) fn unit(&self) -> u64 {
        self.shared.image.direct.map_or(1, |direct| u64::from(direct.offset))
    }
}
