//! Guest memory mapped into this process: what the kernel reads and writes in place. Parts of it may be elsewhere, to be had only
//! by asking who has them.

mod bus_error;
mod copy;
mod dumps;
mod mapping;
mod regions;

use std::any::Any;
use std::cmp::Reverse;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use self::regions::{Part, Region, Regions, is_writable};

pub(crate) use copy::{copy_in, copy_out};

pub use bus_error::BusErrors;
pub use dumps::keep_out_of_core_dumps;
pub use mapping::Mapping;
pub use regions::{HostRange, RemoteMemory, RemoteWindow, Window};

/// Keeps a mapping alive: the addresses that [`HostMemory::host_range`] returned stay mapped as long as it lives.
pub type Anchor = Arc<dyn Any + Send + Sync>;

/// Guest memory of which the kernel can be given addresses.
///
/// # Safety
/// Every range that [`host_range`](Self::host_range) returns must be mapped, readable and writable, and no Rust
/// reference to it may exist, for as long as the [`anchor`](Self::anchor) taken at the same time lives.
pub unsafe trait HostMemory: GuestMemory {
    /// The longest contiguous part, `len` bytes at most, of guest memory from `addr` on; `None` if `addr` is not memory of this
    /// process or `len` is 0. What does not fit in one part is asked for again further on.
    fn host_range(&self, addr: GuestAddr, len: usize) -> Option<HostRange>;

    /// Keeps what `host_range` returned mapped. Cheap: an operation in flight holds one.
    fn anchor(&self) -> Anchor;
}

// SAFETY: the same ranges and the same anchor.
unsafe impl<M: HostMemory + ?Sized> HostMemory for &M {
    fn host_range(&self, addr: GuestAddr, len: usize) -> Option<HostRange> {
        (**self).host_range(addr, len)
    }

    fn anchor(&self) -> Anchor {
        (**self).anchor()
    }
}

/// Guest memory mapped into this process: one region or several, over vm-memory's mapping.
///
/// A clone is another handle to the same memory. Accesses are volatile copies; the guest, other threads and the kernel
/// may change the bytes at any time.
#[derive(Clone, Debug)]
pub struct MappedMemory {
    /// The largest region, the lower one of equals, where nearly every access goes: found without following a pointer.
    largest: Region,
    /// Offsets below this have [`SMALL_BYTES`] bytes of that region before them.
    small_end: u64,
    regions: Arc<Regions>,
}

/// Longest access that is found by one comparison: whatever a ring, a command or a status has is shorter.
const SMALL_BYTES: usize = 64;

/// The mapping could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// The regions overlap, are out of order, wrap, or the kernel refused to map them.
    #[error("cannot map guest memory: {0}; give regions in ascending order that do not overlap")]
    Mapping(#[from] vm_memory::mmap::FromRangesError),
    /// A part of guest memory overlaps another, wraps, or leaves its mapping.
    #[error(
        "cannot use {bytes} bytes at {addr:#x} as guest memory: they overlap others, or leave the mapping or the address space"
    )]
    Window {
        /// Where the guest has it.
        addr: u64,
        /// Its size.
        bytes: usize,
    },
    /// A memory file could not be made or sized.
    #[error("cannot make a memory file of {bytes} bytes for guest memory: {errno}")]
    MemoryFile {
        /// Its size.
        bytes: usize,
        /// Why.
        errno: rustix::io::Errno,
    },
}

impl MappedMemory {
    /// Anonymous, zeroed memory of this process alone: regions of (address, bytes), in ascending order.
    ///
    /// # Errors
    /// [`MappingError`] if the regions overlap or cannot be mapped.
    pub fn anonymous(regions: &[(GuestAddr, usize)]) -> Result<Self, MappingError> {
        let ranges: Vec<_> = regions.iter().map(|&(addr, bytes)| (GuestAddress(addr.0), bytes)).collect();
        Ok(Self::from(GuestMemoryMmap::from_ranges(&ranges)?))
    }

    /// The same over memory files (memfd), one for each region in order, that another process can map too.
    ///
    /// # Errors
    /// [`MappingError`] if a file cannot be made, or the regions overlap or cannot be mapped.
    pub fn shared(regions: &[(GuestAddr, usize)]) -> Result<Self, MappingError> {
        let mut ranges = Vec::with_capacity(regions.len());
        for &(addr, bytes) in regions {
            let file = memory_file(bytes).map_err(|errno| MappingError::MemoryFile { bytes, errno })?;
            ranges.push((GuestAddress(addr.0), bytes, Some(FileOffset::new(file.into(), 0))));
        }
        Ok(Self::from(GuestMemoryMmap::from_ranges_with_files(ranges)?))
    }

    /// Parts of mappings, in any order: what another program shares, wherever it begins in its file and however long it is.
    ///
    /// # Errors
    /// [`MappingError`] if two overlap, or one wraps or leaves its mapping.
    pub fn windows(windows: Vec<Window>) -> Result<Self, MappingError> {
        Self::with_remote(windows, Vec::new())
    }

    /// The same, with memory that is not mapped here.
    ///
    /// # Errors
    /// As [`Self::windows`].
    pub fn with_remote(
        mut windows: Vec<Window>,
        mut remote: Vec<RemoteWindow>,
    ) -> Result<Self, MappingError> {
        windows.sort_by_key(|window| window.addr);
        remote.sort_by_key(|window| window.addr);
        let mut table = Vec::with_capacity(windows.len());
        let mut free_from = 0;
        for window in &windows {
            let Window { addr, ref mapping, offset, len } = *window;
            let bad = || MappingError::Window { addr: addr.0, bytes: len };
            let end = addr.checked_add(len as u64).ok_or_else(bad)?;
            let within = offset.checked_add(len).is_some_and(|end| end <= mapping.size());
            if len == 0 || addr.0 < free_from || !within || !is_writable(mapping) {
                return Err(bad());
            }
            free_from = end.0;
            // SAFETY: `offset` lies within the mapping, as was just checked.
            let host = NonNull::new(unsafe { mapping.as_ptr().add(offset) }).ok_or_else(bad)?;
            table.push(Region { start: addr.0, len: len as u64, host });
        }
        let mut free_from = 0;
        for window in &remote {
            let RemoteWindow { addr, len, .. } = *window;
            let bad =
                || MappingError::Window { addr: addr.0, bytes: usize::try_from(len).unwrap_or(usize::MAX) };
            let end = addr.checked_add(len).ok_or_else(bad)?;
            // The first mapped region that ends behind its start is the only one that it may meet first.
            let next = table.partition_point(|region| region.start + region.len <= addr.0);
            let meets = table.get(next).is_some_and(|region| region.start < end.0);
            if len == 0 || addr.0 < free_from || meets {
                return Err(bad());
            }
            free_from = end.0;
        }
        let (table, mapping) = (table.into(), GuestMemoryMmap::new());
        Ok(Self::of(Regions { table, mapping, windows, remote: remote.into() }))
    }

    fn of(regions: Regions) -> Self {
        let none = Region { start: 0, len: 0, host: NonNull::dangling() };
        let largest = regions.table.iter().copied().min_by_key(|region| Reverse(region.len));
        let largest = largest.unwrap_or(none);
        let small_end = largest.len.saturating_sub(SMALL_BYTES as u64 - 1);
        Self { largest, small_end, regions: Arc::new(regions) }
    }

    /// The mapping below, as other crates of the field take it (vhost, for one). Empty if this was made of windows.
    #[must_use]
    pub fn mapping(&self) -> &GuestMemoryMmap {
        &self.regions.mapping
    }
}

fn memory_file(bytes: usize) -> rustix::io::Result<OwnedFd> {
    let file = memfd_create("guest-memory", MemfdFlags::CLOEXEC)?;
    ftruncate(&file, bytes as u64)?;
    Ok(file)
}

/// No memory.
impl Default for MappedMemory {
    fn default() -> Self {
        Self::from(GuestMemoryMmap::new())
    }
}

impl From<GuestMemoryMmap> for MappedMemory {
    fn from(mapping: GuestMemoryMmap) -> Self {
        let table = mapping.iter().filter_map(Region::new).collect();
        Self::of(Regions { table, mapping, windows: Vec::new(), remote: Box::default() })
    }
}

impl MappedMemory {
    /// The bytes from `addr` to the end of its region.
    #[inline]
    fn rest(&self, addr: GuestAddr) -> Option<HostRange> {
        self.largest.rest(addr).or_else(|| self.regions.rest(addr))
    }

    /// [`SMALL_BYTES`] bytes from `addr` on, if the largest region has them and they are aligned for `T`.
    #[inline(always)]
    fn near<T>(&self, addr: GuestAddr) -> Option<NonNull<T>> {
        let offset = addr.0.wrapping_sub(self.largest.start);
        if offset >= self.small_end {
            return None;
        }
        // SAFETY: the offset lies within the region, which is mapped.
        let at = unsafe { self.largest.host.add(offset as usize) }.cast::<T>();
        if at.is_aligned() { Some(at) } else { None }
    }

    /// `len` bytes from `addr` on, if one region has them all: nearly always.
    #[inline]
    fn whole(&self, addr: GuestAddr, len: usize) -> Option<NonNull<u8>> {
        if len <= SMALL_BYTES
            && let Some(at) = self.near(addr)
        {
            return Some(at);
        }
        self.whole_elsewhere(addr, len)
    }

    /// Not in the largest region, or not aligned. Out of line, and without a buffer of the caller's.
    #[cold]
    #[inline(never)]
    fn read_u64_pair_elsewhere(&self, addr: GuestAddr) -> Result<[u64; 2], MemoryError> {
        let mut bytes = [[0; 8]; 2];
        self.read(addr, bytes.as_flattened_mut())?;
        Ok(bytes.map(u64::from_le_bytes))
    }

    #[cold]
    #[inline(never)]
    fn write_u32_pair_elsewhere(&self, addr: GuestAddr, words: [u32; 2]) -> Result<(), MemoryError> {
        self.write(addr, words.map(u32::to_le_bytes).as_flattened())
    }

    /// Longer, or not in the largest region. Out of line, so that what is inlined into a ring's code is short.
    #[cold]
    #[inline(never)]
    fn whole_elsewhere(&self, addr: GuestAddr, len: usize) -> Option<NonNull<u8>> {
        self.rest(addr).filter(|range| len <= range.len).map(|range| range.start)
    }

    /// Calls `each` with every contiguous part of a range, and the position of that part in it.
    #[cold]
    fn parts(
        &self,
        addr: GuestAddr,
        len: usize,
        mut each: impl FnMut(usize, Part<'_>) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < len {
            let at = addr.checked_add(done as u64).ok_or(MemoryError)?;
            if let Some(range) = self.host_range(at, len - done) {
                each(done, Part::Mapped(range))?;
                done += range.len;
            } else {
                let (memory, left) = self.regions.remote(at).ok_or(MemoryError)?;
                let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(len - done);
                each(done, Part::Remote(memory, at, bytes))?;
                done += bytes;
            }
        }
        Ok(())
    }

    /// An aligned u16 in any region.
    #[inline]
    fn u16_at(&self, addr: GuestAddr) -> Option<&AtomicU16> {
        let at = self.whole(addr, 2)?.cast::<AtomicU16>();
        if !at.is_aligned() {
            return None;
        }
        // SAFETY: two mapped bytes, and aligned, that live as long as `self`. Rust code accesses them only atomically or volatile
        // as memory shared with others; an atomic has interior mutability, so the reference asserts nothing about them.
        Some(unsafe { at.as_ref() })
    }

    #[cold]
    #[inline(never)]
    fn load_u16_elsewhere(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        if let Some(at) = self.u16_at(addr) {
            return Ok(u16::from_le(at.load(Ordering::Acquire)));
        }
        // Messages are taken in order.
        let mut bytes = [0; 2];
        self.remote_u16(addr)?.read(addr, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn store_u16_elsewhere(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        if let Some(at) = self.u16_at(addr) {
            at.store(value.to_le(), Ordering::Release);
            return Ok(());
        }
        self.remote_u16(addr)?.write(addr, &value.to_le_bytes())
    }

    /// Who has an aligned u16, if it is not mapped.
    fn remote_u16(&self, addr: GuestAddr) -> Result<&dyn RemoteMemory, MemoryError> {
        let (memory, left) = self.regions.remote(addr).ok_or(MemoryError)?;
        if left >= 2 && addr.0.is_multiple_of(2) { Ok(memory) } else { Err(MemoryError) }
    }
}

impl GuestMemory for MappedMemory {
    #[inline]
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        if let Some(start) = self.whole(addr, into.len()) {
            // SAFETY: `into.len()` mapped bytes; `self` keeps them so.
            unsafe { copy_out(start, into) };
            return Ok(());
        }
        self.parts(addr, into.len(), |at, part| match part {
            Part::Mapped(range) => {
                // SAFETY: the range is mapped, `self` keeps it so, and `into[at..]` holds `range.len` bytes at least.
                unsafe { copy_out(range.start, &mut into[at..at + range.len]) };
                Ok(())
            }
            Part::Remote(memory, addr, bytes) => memory.read(addr, &mut into[at..at + bytes]),
        })
    }

    #[inline]
    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        if let Some(start) = self.whole(addr, from.len()) {
            // SAFETY: `from.len()` mapped, writable bytes; `self` keeps them so.
            unsafe { copy_in(from, start) };
            return Ok(());
        }
        self.parts(addr, from.len(), |at, part| match part {
            Part::Mapped(range) => {
                // SAFETY: the range is mapped and writable, and `self` keeps it so; `from[at..]` holds `range.len` bytes at least.
                unsafe { copy_in(&from[at..at + range.len], range.start) };
                Ok(())
            }
            Part::Remote(memory, addr, bytes) => memory.write(addr, &from[at..at + bytes]),
        })
    }

    #[inline]
    fn read_u64_pair(&self, addr: GuestAddr) -> Result<[u64; 2], MemoryError> {
        let Some(at) = self.near::<u64>(addr) else { return self.read_u64_pair_elsewhere(addr) };
        // SAFETY: `at` is aligned, and `near` has found more than 16 mapped bytes from it on; `self` keeps them so.
        let words = unsafe { [at.read_volatile(), at.add(1).read_volatile()] };
        Ok(words.map(u64::from_le))
    }

    #[inline]
    fn write_u32_pair(&self, addr: GuestAddr, words: [u32; 2]) -> Result<(), MemoryError> {
        let Some(at) = self.near::<u32>(addr) else { return self.write_u32_pair_elsewhere(addr, words) };
        let [first, second] = words.map(u32::to_le);
        // SAFETY: `at` is aligned, and `near` has found more than 8 mapped, writable bytes from it on; `self` keeps them so.
        unsafe {
            at.write_volatile(first);
            at.add(1).write_volatile(second);
        }
        Ok(())
    }

    #[inline]
    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        let Some(at) = self.near::<AtomicU16>(addr) else { return self.load_u16_elsewhere(addr) };
        // SAFETY: as in `u16_at`.
        Ok(u16::from_le(unsafe { at.as_ref() }.load(Ordering::Acquire)))
    }

    #[inline]
    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        let Some(at) = self.near::<AtomicU16>(addr) else { return self.store_u16_elsewhere(addr, value) };
        // SAFETY: as in `u16_at`.
        unsafe { at.as_ref() }.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    #[inline]
    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        let whole = usize::try_from(len).is_ok_and(|len| self.whole(addr, len).is_some());
        whole || usize::try_from(len).is_ok_and(|len| self.parts(addr, len, |_, _| Ok(())).is_ok())
    }
}

// SAFETY: `rest` returns bytes of regions of `self.regions.mapping` or of its windows, mapped readable and writable; the anchor
// owns both. This module makes references to guest bytes only as `AtomicU16`, which may be changed from elsewhere.
unsafe impl HostMemory for MappedMemory {
    #[inline]
    fn host_range(&self, addr: GuestAddr, len: usize) -> Option<HostRange> {
        let rest = self.rest(addr).filter(|_| len != 0)?;
        Some(HostRange { start: rest.start, len: rest.len.min(len) })
    }

    #[inline]
    fn anchor(&self) -> Anchor {
        Arc::clone(&self.regions) as Anchor
    }
}

#[cfg(test)]
mod tests;
