//! Guest memory as firmware has it: a range of addresses, every access volatile.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, Ordering};

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;
use volatile::VolatilePtr;

/// The guest's memory, which starts at guest address 0.
pub struct SharedMemory {
    start: NonNull<u8>,
    bytes: usize,
}

impl SharedMemory {
    /// Shares `memory` with a guest for good.
    pub fn new(memory: &'static mut [u8]) -> Self {
        Self { bytes: memory.len(), start: NonNull::from(memory).cast() }
    }

    fn byte(&self, addr: GuestAddr, at: usize) -> Option<VolatilePtr<'_, u8>> {
        let offset = usize::try_from(addr.0).ok()?.checked_add(at).filter(|offset| *offset < self.bytes)?;
        // SAFETY: `offset` lies within the slice that `new` took for good; from then on it is reached through volatile or
        // atomic accesses only, never by reference.
        Some(unsafe { VolatilePtr::new(self.start.add(offset)) })
    }

    fn index(&self, addr: GuestAddr) -> Result<&AtomicU16, MemoryError> {
        let pointer =
            self.byte(addr, 1).and(self.byte(addr, 0)).ok_or(MemoryError)?.as_raw_ptr().cast::<AtomicU16>();
        if !pointer.is_aligned() {
            return Err(MemoryError);
        }
        // SAFETY: both bytes are in range and aligned, they live for good, and an atomic may be changed by others.
        Ok(unsafe { pointer.as_ref() })
    }
}

impl GuestMemory for SharedMemory {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        for (at, byte) in into.iter_mut().enumerate() {
            *byte = self.byte(addr, at).ok_or(MemoryError)?.read();
        }
        Ok(())
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        for (at, byte) in from.iter().enumerate() {
            self.byte(addr, at).ok_or(MemoryError)?.write(*byte);
        }
        Ok(())
    }

    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        Ok(u16::from_le(self.index(addr)?.load(Ordering::Acquire)))
    }

    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        self.index(addr)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        addr.checked_add(len).is_some_and(|end| end.0 <= self.bytes as u64)
    }
}
