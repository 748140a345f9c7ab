//! A worker's buffer for what direct I/O cannot take as it is.

use std::ops::Range;
use std::ptr::NonNull;

use rustix::io::Errno;
use vm_memory::mmap::MmapRegion;

use super::image::Alignment;
use super::iovecs::IoVecs;
use crate::memory::HostRange;

/// Bytes that go through a bounce buffer at a time: a multiple of every alignment that an image may have.
pub(super) const BOUNCE_BYTES: usize = 256 * 1024;

/// A worker's bounce buffer. One each, so that none waits for another's.
pub(super) struct Bounce {
    /// `BOUNCE_BYTES` of `_mapping`, aligned as direct I/O demands.
    start: NonNull<u8>,
    _mapping: MmapRegion,
    iovecs: IoVecs,
}

// SAFETY: `start` points into `_mapping`, which nobody else uses and which moves with it.
unsafe impl Send for Bounce {}

impl Bounce {
    pub(super) fn new(direct: Alignment) -> Result<Self, Errno> {
        let align = direct.memory as usize;
        let mapping = MmapRegion::new(BOUNCE_BYTES + align).map_err(|_| Errno::NOMEM)?;
        let base = mapping.as_ptr();
        let skip = base.addr().next_multiple_of(align) - base.addr();
        let start = NonNull::new(base.wrapping_add(skip)).ok_or(Errno::NOMEM)?;
        Ok(Self { start, _mapping: mapping, iovecs: IoVecs::new() })
    }

    pub(super) fn bytes(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= BOUNCE_BYTES, "a part of the bounce buffer");
        // SAFETY: within the `BOUNCE_BYTES` that are mapped from `start` on. `self` is borrowed as long as the slice lives, so
        // that there is no other, and the kernel uses the buffer only inside `transfer`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Hands a part of the buffer to `f` as iovecs.
    pub(super) fn transfer<R>(&mut self, range: Range<usize>, f: impl FnOnce(&mut IoVecs) -> R) -> R {
        let part = NonNull::from(self.bytes(range.clone())).cast::<u8>();
        self.iovecs.clear();
        // SAFETY: the part is mapped as long as `self` lives, and borrowed until the list is cleared below. An empty list has room.
        let pushed = unsafe { self.iovecs.push(HostRange { start: part, len: range.len() }) };
        debug_assert!(pushed.is_ok());
        let result = f(&mut self.iovecs);
        self.iovecs.clear();
        result
    }
}
