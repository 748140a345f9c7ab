//! Transfers of guest memory that is not mapped into this process: a buffer stands for it on the way to the kernel.

use std::ptr::NonNull;
use std::sync::Arc;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::storage::IoErrorKind;
use blk_core::units::GuestAddr;
use rustix::mm::Advice;
use vm_memory::mmap::MmapRegion;

use super::budget::Budgets;
use crate::memory::{HostMemory, HostRange, copy_in, copy_out};

/// Bytes that are copied at a time.
const PIECE: usize = 64 * 1024;

/// Why an operation is not begun.
pub(super) enum Stop {
    /// It has to wait for room in a budget.
    Wait,
    Error(IoErrorKind),
}

impl From<IoErrorKind> for Stop {
    fn from(kind: IoErrorKind) -> Self {
        Self::Error(kind)
    }
}

/// Which way the bytes of such memory go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// A write's bytes come here.
    Fetch,
    /// A read's bytes go to where they belong, and the buffer's pages back to the kernel: that of a large one takes long.
    Deliver,
    /// The pages go back to the kernel.
    GiveUp,
}

/// A buffer with a part for each piece of such memory that an operation names. It is taken from the budget of private memory, and
/// given back when it is dropped: a client that shares no memory could else have as much of ours as it can name in its requests.
pub(super) struct RemoteBuffer {
    mapping: MmapRegion,
    /// Address and length of each part, in the order of the buffer.
    parts: Vec<(GuestAddr, usize)>,
    /// Bytes of the buffer that are parts.
    used: usize,
    /// Bytes that have been copied, the parts that all of them are of, and those of the next part.
    copied: usize,
    copied_parts: usize,
    copied_of_next: usize,
    budgets: Arc<Budgets>,
}

impl RemoteBuffer {
    /// A buffer for an operation of so many bytes.
    pub(super) fn new(bytes: u64, budgets: &Arc<Budgets>) -> Result<Box<Self>, Stop> {
        if !budgets.private.take(bytes) {
            return Err(Stop::Wait);
        }
        let Ok(mapping) = MmapRegion::new(bytes as usize) else {
            budgets.give_back(&budgets.private, bytes);
            // Nothing was begun: the guest may try again.
            return Err(IoErrorKind::Medium.into());
        };
        Ok(Box::new(Self {
            mapping,
            parts: Vec::new(),
            used: 0,
            copied: 0,
            copied_parts: 0,
            copied_of_next: 0,
            budgets: Arc::clone(budgets),
        }))
    }

    /// The next part of the buffer, for `len` bytes at `addr`, if that is memory and there is room.
    pub(super) fn part<M: HostMemory + ?Sized>(
        &mut self,
        memory: &M,
        addr: GuestAddr,
        len: usize,
    ) -> Option<HostRange> {
        let room = self.used.checked_add(len).is_some_and(|end| end <= self.mapping.size());
        if !room || !memory.contains(addr, len as u64) {
            return None;
        }
        let range = HostRange { start: self.at(self.used)?, len };
        self.parts.push((addr, len));
        self.used += len;
        Some(range)
    }

    fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        let within = offset <= self.mapping.size();
        // SAFETY: `offset` lies within the mapping, or at its end.
        within.then(|| NonNull::new(unsafe { self.mapping.as_ptr().add(offset) })).flatten()
    }

    /// Whether all bytes have been copied.
    pub(super) const fn is_copied(&self) -> bool {
        self.copied == self.used
    }

    /// From the first byte again.
    pub(super) const fn rewind(&mut self) {
        (self.copied, self.copied_parts, self.copied_of_next) = (0, 0, 0);
    }

    /// Gives the pages that end in a part of the buffer back to the kernel: nothing reads them any more.
    fn give_up_pages(&self, start: usize, end: usize) {
        let page = rustix::param::page_size();
        // The page that the part shares with the one before it was left to this one.
        let (start, end) = (start - start % page, end - end % page);
        if start < end
            && let Some(at) = self.at(start)
        {
            // SAFETY: whole pages of the mapping, which is ours alone and private; no operation uses them any more, and what is read
            // there later is zeroes. If it fails, the mapping's end frees them.
            let _ = unsafe { rustix::mm::madvise(at.as_ptr().cast(), end - start, Advice::LinuxDontNeed) };
        }
    }

    /// Copies the next bytes, `max` at most and not all at once. Returns how many.
    pub(super) fn copy<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        way: Way,
        max: usize,
    ) -> Result<usize, MemoryError> {
        let Some(&(addr, len)) = self.parts.get(self.copied_parts) else { return Ok(0) };
        let done = self.copied_of_next;
        let bytes = (len - done).min(if way == Way::GiveUp { max } else { PIECE.min(max) });
        let addr = addr.checked_add(done as u64).ok_or(MemoryError)?;
        let start = self.at(self.copied).ok_or(MemoryError)?;
        let mut piece = vec![0; if way == Way::GiveUp { 0 } else { bytes }];
        match way {
            Way::GiveUp => {}
            Way::Fetch => {
                memory.read(addr, &mut piece)?;
                // SAFETY: the parts lie in the mapping one after the other, and so many bytes of the next one follow `start`.
                unsafe { copy_in(&piece, start) };
            }
            Way::Deliver => {
                // SAFETY: as above.
                unsafe { copy_out(start, &mut piece) };
                memory.write(addr, &piece)?;
            }
        }
        if way != Way::Fetch {
            self.give_up_pages(self.copied, self.copied + bytes);
        }
        (self.copied, self.copied_of_next) = (self.copied + bytes, done + bytes);
        if self.copied_of_next == len {
            (self.copied_parts, self.copied_of_next) = (self.copied_parts + 1, 0);
        }
        Ok(bytes)
    }
}

impl Drop for RemoteBuffer {
    fn drop(&mut self) {
        self.budgets.give_back(&self.budgets.private, self.mapping.size() as u64);
    }
}
