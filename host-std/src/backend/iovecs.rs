//! A transfer's memory, as the kernel takes it: a fixed list of iovecs that shrinks as the transfer goes on.

use std::ptr::NonNull;

use crate::memory::{HostRange, copy_in, copy_out};

/// Iovecs of an operation: a segment that crosses from one region of memory into the next takes two.
/// Below `IOV_MAX` (1024).
const CAPACITY: usize = 256;

/// The memory of one transfer that is still to be moved: mapped, readable and writable while this value is in use.
pub struct IoVecs {
    list: [libc::iovec; CAPACITY],
    /// First iovec that has bytes left.
    first: usize,
    /// One past the last iovec.
    end: usize,
}

// SAFETY: addresses and lengths. What they point to may be accessed from any thread: it is only ever accessed by the
// kernel and by volatile copies, and whoever made the list keeps it mapped (see `IoVecs::push`).
unsafe impl Send for IoVecs {}

/// The operation has more pieces of memory than an operation may have.
#[derive(Debug)]
pub(super) struct TooMany;

impl IoVecs {
    pub(super) const fn new() -> Self {
        const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { list: [EMPTY; CAPACITY], first: 0, end: 0 }
    }

    pub(super) fn clear(&mut self) {
        (self.first, self.end) = (0, 0);
    }

    /// Appends a range.
    ///
    /// # Safety
    /// The range must stay mapped, readable and writable, and be shared memory to which no Rust reference exists, until
    /// the list has been cleared or is no longer used.
    pub(super) unsafe fn push(&mut self, range: HostRange) -> Result<(), TooMany> {
        let slot = self.list.get_mut(self.end).ok_or(TooMany)?;
        *slot = libc::iovec { iov_base: range.start.as_ptr().cast(), iov_len: range.len };
        self.end += 1;
        Ok(())
    }

    pub(super) fn as_slice(&self) -> &[libc::iovec] {
        &self.list[self.first..self.end]
    }

    /// How many pieces there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.end - self.first
    }

    /// Bytes left to move.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.as_slice().iter().map(|iov| iov.iov_len).sum()
    }

    /// Calls `f` with the first `bytes` bytes alone: with it a [`Syscalls`](super::Syscalls) under test makes a short transfer.
    pub fn with_prefix<R>(&self, bytes: usize, f: impl FnOnce(&Self) -> R) -> R {
        // Lent, not returned: a list must not outlive the operation that keeps its memory mapped.
        let mut prefix = Self::new();
        let mut left = bytes;
        for iov in self.as_slice() {
            let len = iov.iov_len.min(left);
            prefix.list[prefix.end] = libc::iovec { iov_base: iov.iov_base, iov_len: len };
            prefix.end += 1;
            left -= len;
            if left == 0 {
                break;
            }
        }
        f(&prefix)
    }

    /// Takes the first `bytes` bytes off, or all.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.take(bytes, |_, _, _| {});
    }

    /// Copies the first `into.len()` bytes out, and takes them off.
    pub(super) fn gather(&mut self, into: &mut [u8]) {
        self.take(into.len(), |at, start, len| {
            // SAFETY: `push` vouched for the range.
            unsafe { copy_out(start, &mut into[at..at + len]) }
        });
    }

    /// Copies `from` over the first bytes, and takes them off.
    pub(super) fn scatter(&mut self, from: &[u8]) {
        self.take(from.len(), |at, start, len| {
            // SAFETY: `push` vouched for the range.
            unsafe { copy_in(&from[at..at + len], start) }
        });
    }

    fn take(&mut self, bytes: usize, mut each: impl FnMut(usize, NonNull<u8>, usize)) {
        let mut done = 0;
        for iov in &mut self.list[self.first..self.end] {
            let len = iov.iov_len.min(bytes - done);
            if let Some(start) = NonNull::new(iov.iov_base.cast::<u8>()).filter(|_| len != 0) {
                each(done, start, len);
            }
            done += len;
            if len < iov.iov_len {
                iov.iov_base = iov.iov_base.wrapping_byte_add(len);
                iov.iov_len -= len;
                break;
            }
            self.first += 1;
        }
    }

    /// Whether every piece begins at a multiple of `address` and is a multiple of `length` bytes long.
    pub(super) fn aligned(&self, address: usize, length: usize) -> bool {
        let bits = self.as_slice().iter().fold((0, 0), |(addresses, lengths), iov| {
            (addresses | iov.iov_base.addr(), lengths | iov.iov_len)
        });
        bits.0 & (address - 1) == 0 && bits.1 & (length - 1) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(parts: &mut [&mut [u8]]) -> IoVecs {
        let mut iovecs = IoVecs::new();
        for part in parts {
            let start = NonNull::new(part.as_mut_ptr()).unwrap();
            // SAFETY: the tests use the list only while they leave the parts alone.
            unsafe { iovecs.push(HostRange { start, len: part.len() }) }.unwrap();
        }
        iovecs
    }

    #[test]
    fn a_transfer_goes_on_in_the_middle_of_a_piece() {
        let (mut a, mut b) = ([0; 5], [0; 3]);
        let mut iovecs = over(&mut [&mut a, &mut b]);
        iovecs.advance(2);
        assert_eq!((iovecs.count(), iovecs.bytes()), (2, 6));
        iovecs.scatter(&[1, 2, 3, 4]);
        assert_eq!((iovecs.count(), iovecs.bytes()), (1, 2));
        iovecs.scatter(&[5, 6]);
        assert_eq!((iovecs.count(), iovecs.bytes()), (0, 0));
        iovecs.advance(7);
        assert_eq!((a, b), ([0, 0, 1, 2, 3], [4, 5, 6]));
    }

    #[test]
    fn a_prefix_ends_in_the_middle_of_a_piece() {
        let (mut a, mut b) = ([1; 5], [2; 3]);
        let lengths = over(&mut [&mut a, &mut b])
            .with_prefix(6, |prefix| (prefix.bytes(), prefix.as_slice().iter().map(|v| v.iov_len).collect()));
        assert_eq!(lengths, (6, vec![5, 1]));
    }

    #[test]
    fn more_pieces_than_there_is_room_for_are_refused() {
        let mut byte = [0_u8; 1];
        let start = NonNull::new(byte.as_mut_ptr()).unwrap();
        let mut iovecs = IoVecs::new();
        for _ in 0..CAPACITY {
            // SAFETY: nothing is copied.
            unsafe { iovecs.push(HostRange { start, len: 1 }) }.unwrap();
        }
        // SAFETY: as above.
        assert!(unsafe { iovecs.push(HostRange { start, len: 1 }) }.is_err());
    }
}
