//! Guest memory mapped into this process: what the kernel reads and writes in place. Parts of it may be elsewhere, to be had only
//! by asking who has them.

mod bus_error;
mod dumps;
mod mapping;

use std::any::Any;
use std::cmp::Reverse;
use std::fmt;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

pub use bus_error::BusErrors;
pub use dumps::keep_out_of_core_dumps;
pub use mapping::Mapping;

/// Keeps a mapping alive: the addresses that [`HostMemory::host_range`] returned stay mapped as long as it lives.
pub type Anchor = Arc<dyn Any + Send + Sync>;

/// Contiguous bytes of guest memory in this process.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    /// First byte.
    pub start: NonNull<u8>,
    /// Bytes from there on: 1 at least.
    pub len: usize,
}

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
    regions: Arc<Regions>,
}

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
        Self { largest: largest.unwrap_or(none), regions: Arc::new(regions) }
    }

    /// The mapping below, as other crates of the field take it (vhost, for one). Empty if this was made of windows.
    #[must_use]
    pub fn mapping(&self) -> &GuestMemoryMmap {
        &self.regions.mapping
    }
}

/// A part of a mapping, as guest memory.
#[derive(Clone, Debug)]
pub struct Window {
    /// Where the guest has it.
    pub addr: GuestAddr,
    /// A mapping, readable and writable.
    pub mapping: Arc<Mapping>,
    /// Where the part begins in the mapping.
    pub offset: usize,
    /// Its bytes.
    pub len: usize,
}

/// Memory of a guest that this process cannot map. Each access asks whoever has it, and waits for the answer.
pub trait RemoteMemory: fmt::Debug + Send + Sync {
    /// Copies `into.len()` bytes out of it.
    ///
    /// # Errors
    /// [`MemoryError`] if they cannot be had; `into` is then unspecified.
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `from` into it.
    ///
    /// # Errors
    /// [`MemoryError`] if it cannot be done; some of it may have been.
    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError>;
}

/// A part of guest memory that is not mapped here.
#[derive(Clone, Debug)]
pub struct RemoteWindow {
    /// Where the guest has it.
    pub addr: GuestAddr,
    /// Its bytes.
    pub len: u64,
    /// Who has it.
    pub memory: Arc<dyn RemoteMemory>,
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

#[derive(Debug)]
struct Regions {
    /// By address.
    table: Box<[Region]>,
    /// Owns what the table points to, together with `windows`.
    mapping: GuestMemoryMmap,
    #[expect(dead_code, reason = "owns what the table points to")]
    windows: Vec<Window>,
    /// By address; between those of the table.
    remote: Box<[RemoteWindow]>,
}

impl Regions {
    fn rest(&self, addr: GuestAddr) -> Option<HostRange> {
        let after = self.table.partition_point(|region| region.start <= addr.0);
        self.table.get(after.checked_sub(1)?)?.rest(addr)
    }

    /// Who has the byte at `addr`, and how many from there on.
    fn remote(&self, addr: GuestAddr) -> Option<(&dyn RemoteMemory, u64)> {
        let after = self.remote.partition_point(|window| window.addr <= addr);
        let window = self.remote.get(after.checked_sub(1)?)?;
        let left = window.len.checked_sub(addr.0 - window.addr.0).filter(|left| *left != 0)?;
        Some((&*window.memory, left))
    }
}

/// A contiguous part of an access.
enum Part<'a> {
    Mapped(HostRange),
    /// So many bytes at that address.
    Remote(&'a dyn RemoteMemory, GuestAddr, usize),
}

#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: a `Region` is an address and a length. What it points to is only ever accessed through raw pointers, volatile
// or atomic, and is meant to be changed by others; `Regions::mapping` keeps it mapped.
unsafe impl Send for Region {}
// SAFETY: as for `Send`: a shared `Region` gives out addresses, never references.
unsafe impl Sync for Region {}

impl Region {
    /// The bytes from `addr` to the end of the region, if it lies within.
    #[inline]
    fn rest(&self, addr: GuestAddr) -> Option<HostRange> {
        let offset = addr.0.wrapping_sub(self.start);
        if offset >= self.len {
            return None;
        }
        // The mapping is in this process's address space: its length, and an offset into it, fit a usize.
        let (offset, len) = (offset as usize, self.len as usize);
        // SAFETY: `offset` is less than the length of the region, which is one mapping from `host` on.
        Some(HostRange { start: unsafe { self.host.add(offset) }, len: len - offset })
    }

    /// `None` for what is not mapped readable and writable: it is no memory to a device.
    fn new(region: &GuestRegionMmap) -> Option<Self> {
        let mapping = region.get_mmap();
        let host = NonNull::new(mapping.as_ptr()).filter(|_| is_writable(&mapping))?;
        Some(Self { start: region.start_addr().0, len: region.len(), host })
    }
}

fn is_writable(mapping: &MmapRegion) -> bool {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    mapping.prot() & access == access
}

impl MappedMemory {
    /// The bytes from `addr` to the end of its region.
    #[inline]
    fn rest(&self, addr: GuestAddr) -> Option<HostRange> {
        self.largest.rest(addr).or_else(|| self.regions.rest(addr))
    }

    /// `len` bytes from `addr` on, if one region has them all: nearly always.
    #[inline]
    fn whole(&self, addr: GuestAddr, len: usize) -> Option<NonNull<u8>> {
        match self.largest.rest(addr) {
            Some(range) if len <= range.len => Some(range.start),
            _ => self.whole_elsewhere(addr, len),
        }
    }

    /// Not in the largest region. Out of line, so that what is inlined into a ring's code is short.
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

    /// Who has an aligned u16, if it is not mapped.
    #[cold]
    fn remote_u16(&self, addr: GuestAddr) -> Result<&dyn RemoteMemory, MemoryError> {
        let (memory, left) = self.regions.remote(addr).ok_or(MemoryError)?;
        if left >= 2 && addr.0.is_multiple_of(2) { Ok(memory) } else { Err(MemoryError) }
    }

    #[inline]
    fn u16_at(&self, addr: GuestAddr) -> Result<&AtomicU16, MemoryError> {
        let at = self.whole(addr, 2).ok_or(MemoryError)?.cast::<AtomicU16>();
        if !at.is_aligned() {
            return Err(MemoryError);
        }
        // SAFETY: two mapped, aligned bytes that live as long as `self`. Rust code accesses them only atomically or volatile
        // as memory shared with others; an atomic has interior mutability, so the reference asserts nothing about them.
        Ok(unsafe { at.as_ref() })
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
    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        if let Ok(at) = self.u16_at(addr) {
            return Ok(u16::from_le(at.load(Ordering::Acquire)));
        }
        // Messages are taken in order.
        let mut bytes = [0; 2];
        self.remote_u16(addr)?.read(addr, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    #[inline]
    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        if let Ok(at) = self.u16_at(addr) {
            at.store(value.to_le(), Ordering::Release);
            return Ok(());
        }
        self.remote_u16(addr)?.write(addr, &value.to_le_bytes())
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

/// Copies memory that others may change meanwhile, each byte read once: in words where `from` is aligned for it.
///
/// # Safety
/// `into.len()` bytes from `from` on are mapped and readable during the call.
#[inline]
pub(crate) unsafe fn copy_out(from: NonNull<u8>, into: &mut [u8]) {
    let mut from = from.as_ptr().cast_const();
    let mut into = into;
    if from.cast::<u64>().is_aligned() {
        let (words, tail) = into.as_chunks_mut::<8>();
        for word in words {
            // SAFETY: eight bytes of the range remain, and `from` is aligned for a word, as it is moved on by words only.
            unsafe {
                *word = from.cast::<u64>().read_volatile().to_ne_bytes();
                from = from.add(8);
            }
        }
        into = tail;
    }
    for byte in into {
        // SAFETY: a byte of the range remains for each one left in `into`.
        unsafe {
            *byte = from.read_volatile();
            from = from.add(1);
        }
    }
}

/// Copies into memory that others may access meanwhile, each byte written once: in words where `into` is aligned for it.
///
/// # Safety
/// `from.len()` bytes from `into` on are mapped and writable during the call.
#[inline]
pub(crate) unsafe fn copy_in(from: &[u8], into: NonNull<u8>) {
    let mut from = from;
    let mut into = into.as_ptr();
    if into.cast::<u64>().is_aligned() {
        let (words, tail) = from.as_chunks::<8>();
        for word in words {
            // SAFETY: eight bytes of the range remain, and `into` is aligned for a word, as it is moved on by words only.
            unsafe {
                into.cast::<u64>().write_volatile(u64::from_ne_bytes(*word));
                into = into.add(8);
            }
        }
        from = tail;
    }
    for byte in from {
        // SAFETY: a byte of the range remains for each one left in `from`.
        unsafe {
            into.write_volatile(*byte);
            into = into.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const A: GuestAddr = GuestAddr(0x1000);

    fn two_regions() -> MappedMemory {
        // Adjacent for the guest, apart in this process.
        MappedMemory::anonymous(&[(A, 0x1000), (GuestAddr(0x2000), 0x1000), (GuestAddr(0x8000), 0x1000)])
            .unwrap()
    }

    #[test]
    fn copies_cross_from_one_region_into_the_next_and_stop_at_a_hole() {
        let memory = two_regions();
        let data: Vec<u8> = (0..=255).collect();
        for start in [0x1f81, 0x1f80, 0x1000, 0x2f00] {
            let mut back = [0; 256];
            memory.write(GuestAddr(start), &data).unwrap();
            memory.read(GuestAddr(start), &mut back).unwrap();
            assert_eq!(back.as_slice(), data, "{start:#x}");
        }
        assert_eq!(memory.write(GuestAddr(0x2f01), &data), Err(MemoryError));
        assert_eq!(memory.read(GuestAddr(0xfff), &mut [0]), Err(MemoryError));
        assert!(memory.contains(A, 0x2000) && !memory.contains(A, 0x2001));
        assert!(!memory.contains(GuestAddr(0x0), 1) && memory.contains(GuestAddr(0x8fff), 1));
    }

    #[test]
    fn a_range_that_wraps_past_2_to_the_64_is_not_memory() {
        let top = MappedMemory::anonymous(&[(GuestAddr(u64::MAX - 0xffff), 0x1000)]).unwrap();
        assert!(top.contains(GuestAddr(u64::MAX - 0xffff), 0x1000));
        assert!(!top.contains(GuestAddr(u64::MAX - 0xffff), u64::MAX));
        assert_eq!(top.read(GuestAddr(u64::MAX), &mut [0; 2]), Err(MemoryError));
        assert_eq!(two_regions().read(GuestAddr(u64::MAX), &mut [0; 2]), Err(MemoryError));
    }

    #[test]
    fn indices_are_little_endian_aligned_and_inside_one_region() {
        let memory = two_regions();
        memory.store_u16_release(A, 0x1234).unwrap();
        let mut bytes = [0; 2];
        memory.read(A, &mut bytes).unwrap();
        assert_eq!(bytes, [0x34, 0x12]);
        assert_eq!(memory.load_u16_acquire(A), Ok(0x1234));
        assert_eq!(memory.load_u16_acquire(GuestAddr(0x1001)), Err(MemoryError));
        assert_eq!(memory.load_u16_acquire(GuestAddr(0x9000)), Err(MemoryError));
    }

    #[test]
    fn an_anchor_outlives_the_memory_that_gave_it() {
        let memory = MappedMemory::shared(&[(A, 0x1000)]).unwrap();
        memory.write(A, b"kept").unwrap();
        let range = memory.host_range(A, 4).unwrap();
        let anchor = memory.anchor();
        drop(memory);
        let mut bytes = [0; 4];
        // SAFETY: the anchor keeps the range mapped.
        unsafe { copy_out(range.start, &mut bytes) };
        assert_eq!(&bytes, b"kept");
        drop(anchor);
    }

    #[test]
    fn windows_are_parts_of_mappings_at_any_offset_and_never_overlap() {
        let mapping = Arc::new(Mapping::from(MmapRegion::new(0x3000).unwrap()));
        let window =
            |addr, offset, len| Window { addr: GuestAddr(addr), mapping: Arc::clone(&mapping), offset, len };
        let memory =
            MappedMemory::windows(vec![window(0x9000, 0x1001, 0x333), window(0x1000, 0, 0x801)]).unwrap();
        memory.write(GuestAddr(0x9332), &[7]).unwrap();
        assert!(memory.contains(GuestAddr(0x1000), 0x801) && !memory.contains(GuestAddr(0x1000), 0x802));
        assert_eq!(memory.write(GuestAddr(0x9333), &[7]), Err(MemoryError));
        let overlap = MappedMemory::windows(vec![window(0x1000, 0, 0x801), window(0x1800, 0x1000, 0x10)]);
        assert!(overlap.unwrap_err().to_string().contains("overlap"));
        assert!(MappedMemory::windows(vec![window(0x1000, 0x2fff, 2)]).is_err());
        assert!(MappedMemory::windows(vec![window(u64::MAX, 0, 2)]).is_err());
    }

    /// Memory of another process, which the test plays.
    #[derive(Debug)]
    struct Elsewhere(u64, Mutex<Vec<u8>>);

    impl RemoteMemory for Elsewhere {
        fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
            let at = (addr.0 - self.0) as usize;
            into.copy_from_slice(&self.1.lock().unwrap()[at..at + into.len()]);
            Ok(())
        }

        fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
            let at = (addr.0 - self.0) as usize;
            self.1.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
            Ok(())
        }
    }

    #[test]
    fn accesses_cross_between_memory_that_is_mapped_and_memory_that_is_not() {
        let mapping = Arc::new(Mapping::from(MmapRegion::new(0x2000).unwrap()));
        let window = |addr, offset| Window {
            addr: GuestAddr(addr),
            mapping: Arc::clone(&mapping),
            offset,
            len: 0x1000,
        };
        let elsewhere = Arc::new(Elsewhere(0x2000, Mutex::new(vec![0; 0x1000])));
        let remote = |addr, len| RemoteWindow {
            addr: GuestAddr(addr),
            len,
            memory: Arc::clone(&elsewhere) as Arc<dyn RemoteMemory>,
        };
        let both = |addr, len| {
            MappedMemory::with_remote(
                vec![window(0x1000, 0), window(0x3000, 0x1000)],
                vec![remote(addr, len)],
            )
        };
        let memory = both(0x2000, 0x1000).unwrap();
        let data: Vec<u8> = (0..0x1200).map(|n| (n % 251) as u8).collect();
        memory.write(GuestAddr(0x1f00), &data).unwrap();
        let mut back = vec![0; data.len()];
        memory.read(GuestAddr(0x1f00), &mut back).unwrap();
        assert_eq!(back, data);
        assert_eq!(elsewhere.1.lock().unwrap()[..], data[0x100..0x1100]);
        assert!(memory.contains(A, 0x3000) && !memory.contains(A, 0x3001));
        assert!(memory.host_range(GuestAddr(0x2000), 1).is_none());
        memory.store_u16_release(GuestAddr(0x2ffe), 0x1234).unwrap();
        assert_eq!(memory.load_u16_acquire(GuestAddr(0x2ffe)), Ok(0x1234));
        assert_eq!(memory.load_u16_acquire(GuestAddr(0x2fff)), Err(MemoryError));
        for (addr, len) in
            [(0x1fff, 2), (0x2000, 0x1001), (0x3fff, 1), (0xfff, 2), (0x2000, 0), (u64::MAX, 2)]
        {
            assert!(both(addr, len).is_err(), "{addr:#x} {len:#x}");
        }
    }

    #[test]
    fn regions_out_of_order_are_refused_with_the_remedy() {
        let error = MappedMemory::anonymous(&[(GuestAddr(0x2000), 0x1000), (A, 0x1000)]).unwrap_err();
        assert!(error.to_string().contains("ascending order"), "{error}");
    }
}
