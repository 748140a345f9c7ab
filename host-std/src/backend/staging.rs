//! The staging buffers of a handle.

use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::mmap::MmapRegion;

use super::limits::STAGING_BYTES;
use crate::memory::{Anchor, HostRange};

/// The staging buffers of a handle: one for each slot, page-aligned.
pub(super) struct Staging {
    mapping: Arc<MmapRegion>,
    /// Operations in flight that use each slot's buffer.
    users: Box<[u16]>,
}

impl Staging {
    pub(super) fn new(depth: usize) -> Result<Self, Errno> {
        let mapping = MmapRegion::new(depth * STAGING_BYTES as usize).map_err(|_| Errno::NOMEM)?;
        Ok(Self { mapping: Arc::new(mapping), users: vec![0; depth].into() })
    }

    /// Keeps the buffers mapped.
    pub(super) fn anchor(&self) -> Anchor {
        Arc::clone(&self.mapping) as _
    }

    pub(super) fn depth(&self) -> usize {
        self.users.len()
    }

    pub(super) fn borrow(&mut self, slot: u16) {
        if let Some(users) = self.users.get_mut(usize::from(slot)) {
            *users += 1;
        }
    }

    pub(super) fn give_back(&mut self, slot: u16) {
        if let Some(users) = self.users.get_mut(usize::from(slot)) {
            *users -= 1;
        }
    }

    pub(super) fn range(&self, slot: u16, offset: u32, len: u32) -> Option<HostRange> {
        let end = offset.checked_add(len)?;
        if usize::from(slot) >= self.depth() || end > STAGING_BYTES {
            return None;
        }
        let at = usize::from(slot) * STAGING_BYTES as usize + offset as usize;
        // SAFETY: `at` lies within the mapping, or at its end if `len` is 0: there are `depth` buffers of STAGING_BYTES.
        let start = unsafe { self.mapping.as_ptr().add(at) };
        Some(HostRange { start: NonNull::new(start)?, len: len as usize })
    }

    pub(super) fn slice(&mut self, slot: u16) -> &mut [u8] {
        let unused = self.users.get(usize::from(slot)) == Some(&0);
        match self.range(slot, 0, STAGING_BYTES).filter(|_| unused) {
            // SAFETY: mapped as long as `self` lives. No operation in flight uses this buffer, so that neither the kernel nor a
            // thread accesses it; none can begin while the slice, which borrows the handle mutably, lives.
            Some(range) => unsafe { std::slice::from_raw_parts_mut(range.start.as_ptr(), range.len) },
            None => &mut [],
        }
    }
}
