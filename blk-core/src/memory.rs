//! Guest memory, as a model sees it: bytes copied in and out once, never references.

use core::cell::Cell;
use core::fmt;
use core::sync::atomic::{Ordering, fence};

use zerocopy::{IntoBytes as _, little_endian};

use crate::op::Segment;
use crate::units::GuestAddr;

/// The guest gave an address range that is not memory, or not memory that the device may access this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MemoryError;

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the range is not guest memory that may be accessed")
    }
}

impl core::error::Error for MemoryError {}

/// Memory that a guest shares with its devices.
///
/// It comes in with each call and is never stored. Accesses are copies: the guest may change the bytes at any time,
/// so a model copies once and then validates the copy. An implementation makes every access volatile, and refuses
/// addresses that belong to device registers, so that DMA never re-enters a device (CVE-2023-0330).
///
/// Ring indices need more than copies: an acquire load and a release store of 16 bits, and a full fence.
pub trait GuestMemory {
    /// Copies `into.len()` bytes out of guest memory.
    ///
    /// # Errors
    /// [`MemoryError`] if any byte of the range is not readable memory; `into` is then unspecified.
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `from` into guest memory.
    ///
    /// # Errors
    /// [`MemoryError`] if any byte of the range is not writable memory; some of it may have been written.
    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError>;

    /// Copies 16 bytes out of guest memory, as two little-endian words: a descriptor, or a request's header. Does what [`Self::read`]
    /// does; memory that is mapped has them in registers.
    ///
    /// # Errors
    /// As for [`Self::read`].
    #[inline]
    fn read_u64_pair(&self, addr: GuestAddr) -> Result<[u64; 2], MemoryError> {
        let mut words = [little_endian::U64::ZERO; 2];
        self.read(addr, words.as_mut_bytes())?;
        Ok(words.map(little_endian::U64::get))
    }

    /// Copies two little-endian words of 32 bits into guest memory: a used entry. Does what [`Self::write`] does.
    ///
    /// # Errors
    /// As for [`Self::write`].
    #[inline]
    fn write_u32_pair(&self, addr: GuestAddr, words: [u32; 2]) -> Result<(), MemoryError> {
        self.write(addr, words.map(little_endian::U32::new).as_bytes())
    }

    /// Loads a little-endian u16 with acquire ordering. `addr` is 2-byte aligned.
    ///
    /// # Errors
    /// [`MemoryError`] if it is not readable memory or not aligned.
    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError>;

    /// Stores a little-endian u16 with release ordering. `addr` is 2-byte aligned.
    ///
    /// # Errors
    /// [`MemoryError`] if it is not writable memory or not aligned.
    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError>;

    /// Whether `len` bytes from `addr` on are memory that a device may read and write.
    /// A range that wraps past 2^64 is not.
    fn contains(&self, addr: GuestAddr, len: u64) -> bool;

    /// Orders every earlier access of this thread before every later one, loads after stores included.
    fn full_fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl<M: GuestMemory + ?Sized> GuestMemory for &M {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        (**self).read(addr, into)
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        (**self).write(addr, from)
    }

    fn read_u64_pair(&self, addr: GuestAddr) -> Result<[u64; 2], MemoryError> {
        (**self).read_u64_pair(addr)
    }

    fn write_u32_pair(&self, addr: GuestAddr, words: [u32; 2]) -> Result<(), MemoryError> {
        (**self).write_u32_pair(addr, words)
    }

    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        (**self).load_u16_acquire(addr)
    }

    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        (**self).store_u16_release(addr, value)
    }

    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        (**self).contains(addr, len)
    }

    fn full_fence(&self) {
        (**self).full_fence();
    }
}

/// Whether every guest segment is memory that the device may access.
#[must_use]
pub fn all_contained<M: GuestMemory + ?Sized>(memory: &M, segments: &[Segment]) -> bool {
    segments.iter().all(|segment| match *segment {
        Segment::Guest { addr, len } => memory.contains(addr, u64::from(len)),
        Segment::Staging { .. } => true,
    })
}

/// Guest memory of a machine with one thread: firmware that polls, fuzzers, benchmarks, tests.
///
/// `Cell`s keep it free of `unsafe` and of references that a guest could change under; they also keep it on one
/// thread. A host whose guests run on other threads brings its own volatile mapping.
#[derive(Clone, Copy, Debug)]
pub struct CellMemory<'a> {
    base: GuestAddr,
    bytes: &'a [Cell<u8>],
}

impl<'a> CellMemory<'a> {
    /// The memory `bytes`, which the guest sees from address `base` on.
    pub fn new(base: GuestAddr, bytes: &'a mut [u8]) -> Self {
        Self { base, bytes: Cell::from_mut(bytes).as_slice_of_cells() }
    }

    fn range(&self, addr: GuestAddr, len: usize) -> Result<&'a [Cell<u8>], MemoryError> {
        let start = addr.0.checked_sub(self.base.0).and_then(|start| usize::try_from(start).ok());
        let start = start.ok_or(MemoryError)?;
        let end = start.checked_add(len).ok_or(MemoryError)?;
        self.bytes.get(start..end).ok_or(MemoryError)
    }
}

impl GuestMemory for CellMemory<'_> {
    #[inline]
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        let from = self.range(addr, into.len())?;
        into.iter_mut().zip(from).for_each(|(to, from)| *to = from.get());
        Ok(())
    }

    #[inline]
    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        let into = self.range(addr, from.len())?;
        into.iter().zip(from).for_each(|(to, from)| to.set(*from));
        Ok(())
    }

    #[inline]
    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        let mut bytes = [0; 2];
        self.read(aligned_u16(addr)?, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    #[inline]
    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        self.write(aligned_u16(addr)?, &value.to_le_bytes())
    }

    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.range(addr, len).is_ok())
    }
}

fn aligned_u16(addr: GuestAddr) -> Result<GuestAddr, MemoryError> {
    if addr.0.is_multiple_of(2) { Ok(addr) } else { Err(MemoryError) }
}
