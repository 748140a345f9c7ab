//! Transfers of guest memory that is not mapped into this process: a buffer stands for it on the way to the kernel.

use std::ptr::NonNull;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;
use vm_memory::mmap::MmapRegion;

use crate::memory::{HostRange, copy_in, copy_out};

/// Bytes that are copied at a time.
const PIECE: usize = 64 * 1024;

/// A buffer with a part for each piece of such memory that an operation names.
pub(super) struct RemoteBuffer {
    mapping: MmapRegion,
    /// Address and length of each part, in the order of the buffer.
    parts: Vec<(GuestAddr, usize)>,
    used: usize,
}

impl RemoteBuffer {
    /// A buffer for an operation of so many bytes.
    pub(super) fn new(bytes: usize) -> Option<Box<Self>> {
        let mapping = MmapRegion::new(bytes).ok()?;
        Some(Box::new(Self { mapping, parts: Vec::new(), used: 0 }))
    }

    /// The next part of the buffer, for `len` bytes at `addr`, if that is memory and there is room.
    pub(super) fn part<M: GuestMemory + ?Sized>(
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

    /// Brings a write's bytes here.
    pub(super) fn fetch<M: GuestMemory + ?Sized>(&self, memory: &M) -> Result<(), MemoryError> {
        self.each(|addr, start, bytes| {
            memory.read(addr, bytes)?;
            // SAFETY: `each` names so many bytes of the mapping.
            unsafe { copy_in(bytes, start) };
            Ok(())
        })
    }

    /// Brings a read's bytes to where they belong.
    pub(super) fn deliver<M: GuestMemory + ?Sized>(&self, memory: &M) -> Result<(), MemoryError> {
        self.each(|addr, start, bytes| {
            // SAFETY: `each` names so many bytes of the mapping.
            unsafe { copy_out(start, bytes) };
            memory.write(addr, bytes)
        })
    }

    /// Calls `each` with an address, a place in the buffer and as many bytes as belong to both, piece by piece.
    fn each(
        &self,
        mut each: impl FnMut(GuestAddr, NonNull<u8>, &mut [u8]) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut bytes = vec![0; PIECE.min(self.used)];
        let mut offset = 0;
        for &(addr, len) in &self.parts {
            let mut done = 0;
            while done < len {
                let piece = &mut bytes[..PIECE.min(len - done)];
                let addr = addr.checked_add(done as u64).ok_or(MemoryError)?;
                each(addr, self.at(offset + done).ok_or(MemoryError)?, piece)?;
                done += piece.len();
            }
            offset += len;
        }
        Ok(())
    }
}
