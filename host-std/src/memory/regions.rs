//! The table of guest memory: what is mapped where, and what is not mapped here.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use blk_core::memory::MemoryError;
use blk_core::units::GuestAddr;
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::mapping::Mapping;

/// Contiguous bytes of guest memory in this process.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    /// First byte.
    pub start: NonNull<u8>,
    /// Bytes from there on: 1 at least.
    pub len: usize,
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

#[derive(Debug)]
pub(super) struct Regions {
    /// By address.
    pub(super) table: Box<[Region]>,
    /// Owns what the table points to, together with `windows`.
    pub(super) mapping: GuestMemoryMmap,
    #[expect(dead_code, reason = "owns what the table points to")]
    pub(super) windows: Vec<Window>,
    /// By address; between those of the table.
    pub(super) remote: Box<[RemoteWindow]>,
}

impl Regions {
    pub(super) fn rest(&self, addr: GuestAddr) -> Option<HostRange> {
        let after = self.table.partition_point(|region| region.start <= addr.0);
        self.table.get(after.checked_sub(1)?)?.rest(addr)
    }

    /// Who has the byte at `addr`, and how many from there on.
    pub(super) fn remote(&self, addr: GuestAddr) -> Option<(&dyn RemoteMemory, u64)> {
        let after = self.remote.partition_point(|window| window.addr <= addr);
        let window = self.remote.get(after.checked_sub(1)?)?;
        let left = window.len.checked_sub(addr.0 - window.addr.0).filter(|left| *left != 0)?;
        Some((&*window.memory, left))
    }
}

/// A contiguous part of an access.
pub(super) enum Part<'a> {
    Mapped(HostRange),
    /// So many bytes at that address.
    Remote(&'a dyn RemoteMemory, GuestAddr, usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) len: u64,
    pub(super) host: NonNull<u8>,
}

// SAFETY: a `Region` is an address and a length. What it points to is only ever accessed through raw pointers, volatile
// or atomic, and is meant to be changed by others; `Regions::mapping` keeps it mapped.
unsafe impl Send for Region {}
// SAFETY: as for `Send`: a shared `Region` gives out addresses, never references.
unsafe impl Sync for Region {}

impl Region {
    /// The bytes from `addr` to the end of the region, if it lies within.
    #[inline]
    pub(super) fn rest(&self, addr: GuestAddr) -> Option<HostRange> {
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
    pub(super) fn new(region: &GuestRegionMmap) -> Option<Self> {
        let mapping = region.get_mmap();
        let host = NonNull::new(mapping.as_ptr()).filter(|_| is_writable(&mapping))?;
        Some(Self { start: region.start_addr().0, len: region.len(), host })
    }
}

pub(super) fn is_writable(mapping: &MmapRegion) -> bool {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    mapping.prot() & access == access
}
