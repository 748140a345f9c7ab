//! Transfers of guest memory that is not mapped into this process: a buffer stands for it on the way to the kernel.

use std::cell::Cell;
use std::ptr::NonNull;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::storage::IoErrorKind;
use blk_core::units::GuestAddr;
use vm_memory::mmap::MmapRegion;

use super::limits::TRANSFER_MAX_BYTES;
use crate::memory::{HostMemory, HostRange, copy_in, copy_out};

/// Bytes that are copied at a time.
const PIECE: usize = 64 * 1024;

/// Most bytes of such buffers that a handle has at a time: room for one operation of any size.
const PRIVATE_MAX_BYTES: u64 = TRANSFER_MAX_BYTES as u64;

/// Why an operation is not begun.
pub(super) enum Stop {
    /// It has to wait for others of its handle.
    Busy,
    Error(IoErrorKind),
}

impl From<IoErrorKind> for Stop {
    fn from(kind: IoErrorKind) -> Self {
        Self::Error(kind)
    }
}

/// The buffers that a handle's operations have, counted: a client that shares no memory could have as much of ours as it can name
/// in its requests.
#[derive(Default)]
pub(super) struct PrivateMemory {
    bytes: Cell<u64>,
}

impl PrivateMemory {
    /// A place in the operation's buffer, which is made where there is none, for memory that is not mapped here.
    #[cold]
    pub(super) fn range<M: HostMemory + ?Sized>(
        &self,
        memory: &M,
        buffer: &mut Option<Box<RemoteBuffer>>,
        addr: GuestAddr,
        len: usize,
        bytes: u64,
    ) -> Result<HostRange, Stop> {
        if !memory.contains(addr, len as u64) {
            return Err(IoErrorKind::Memory.into());
        }
        if buffer.is_none() {
            let used = self.bytes.get();
            // Nothing waits for ever: what is used belongs to operations in flight, and their end is told.
            if used + bytes > PRIVATE_MAX_BYTES {
                return Err(Stop::Busy);
            }
            // An operation of which nothing was begun: the guest may try again.
            *buffer = Some(RemoteBuffer::new(bytes as usize).ok_or(IoErrorKind::Medium)?);
            self.bytes.set(used + bytes);
        }
        buffer.as_mut().and_then(|buffer| buffer.part(memory, addr, len)).ok_or(IoErrorKind::Memory.into())
    }

    /// The operation has ended, and its buffer goes.
    pub(super) fn give_back(&self, buffer: &RemoteBuffer) {
        self.bytes.set(self.bytes.get() - buffer.mapping.size() as u64);
    }
}

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
