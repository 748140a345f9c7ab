//! The client's memory: what it shares, where the guest has it, and where the client itself has it.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use blk_core::units::GuestAddr;
use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use crate::memory::{MappedMemory, Window};

/// Most regions. QEMU has fewer slots for a guest with hotplugged memory only if a backend says so.
pub(super) const SLOTS_MAX: usize = 128;

/// What a message says of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alleged {
    pub(super) guest: u64,
    pub(super) bytes: u64,
    pub(super) user: u64,
    pub(super) offset: u64,
}

#[derive(Clone, Debug)]
struct Region {
    alleged: Alleged,
    window: Window,
}

/// The regions that a client shares.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    regions: Vec<Region>,
}

impl Table {
    /// The regions of SET_MEM_TABLE.
    pub(super) fn new(regions: impl Iterator<Item = (Alleged, File)>) -> Result<Self, String> {
        let mut table = Self::default();
        for (alleged, file) in regions {
            table.add(alleged, file)?;
        }
        Ok(table)
    }

    /// ADD_MEM_REG.
    pub(super) fn add(&mut self, alleged: Alleged, file: File) -> Result<(), String> {
        if self.regions.len() >= SLOTS_MAX {
            return Err(format!("more than {SLOTS_MAX} memory regions"));
        }
        let (mapping, offset) = map(file, alleged.offset, alleged.bytes)?;
        let window = Window { addr: GuestAddr(alleged.guest), mapping, offset, len: alleged.bytes as usize };
        self.regions.push(Region { alleged, window });
        Ok(())
    }

    /// REM_MEM_REG: the guest's address, the client's and the size say which. Its offset does not.
    pub(super) fn remove(&mut self, alleged: &Alleged) -> Result<(), String> {
        let same = |region: &Region| {
            let Alleged { guest, bytes, user, offset: _ } = region.alleged;
            (guest, bytes, user) == (alleged.guest, alleged.bytes, alleged.user)
        };
        match self.regions.iter().position(same) {
            Some(index) => {
                self.regions.swap_remove(index);
                Ok(())
            }
            None => {
                Err(format!("there is no memory region of {} bytes at {:#x}", alleged.bytes, alleged.guest))
            }
        }
    }

    /// The guest's memory.
    pub(super) fn mapped(&self) -> Result<MappedMemory, String> {
        let windows = self.regions.iter().map(|region| region.window.clone()).collect();
        MappedMemory::windows(windows).map_err(|error| error.to_string())
    }

    /// Where the guest has what the client has at `user`.
    pub(super) fn guest_addr(&self, user: u64) -> Option<GuestAddr> {
        self.regions.iter().find_map(|Region { alleged, .. }| {
            let offset = user.checked_sub(alleged.user).filter(|offset| *offset < alleged.bytes)?;
            alleged.guest.checked_add(offset).map(GuestAddr)
        })
    }
}

/// Maps `bytes` bytes of a file from `offset` on, wherever that is, and returns where they begin in the mapping.
///
/// A page beyond the end of the file would kill this process with SIGBUS when it is touched, so the size is checked first.
pub(in crate::server) fn map(
    file: File,
    offset: u64,
    bytes: u64,
) -> Result<(Arc<MmapRegion>, usize), String> {
    let stat =
        fstat(file.as_fd()).map_err(|errno| format!("the descriptor of shared memory fails: {errno}"))?;
    let end = offset.checked_add(bytes).ok_or("shared memory that wraps")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("shared memory that is no file: give memory-backend-memfd or memory-backend-file".into());
    }
    if bytes == 0 || end > stat.st_size as u64 {
        return Err(format!(
            "{bytes} bytes of shared memory at offset {offset}, in a file of {} bytes",
            stat.st_size
        ));
    }
    // The client may still cut the file short later on, which the check above knows nothing of: it is trusted not to.
    if !fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK)) {
        tracing::info!(
            bytes,
            "the client's memory is in a file that is not sealed (F_SEAL_SHRINK): whoever cuts it short ends this server"
        );
    }
    // The page size of the file's memory: of huge pages a part cannot be mapped, nor unmapped.
    let page = (stat.st_blksize as u64).max(4096);
    let first = offset - offset % page;
    let len = end - first;
    let len = if page > 4096 { len.next_multiple_of(page).min(stat.st_size as u64 - first) } else { len };
    let fail = |why: &dyn std::fmt::Display| format!("cannot map {bytes} bytes of shared memory: {why}");
    let len = usize::try_from(len).map_err(|error| fail(&error))?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, first), len).map_err(|error| fail(&error))?;
    Ok((Arc::new(mapping), (offset - first) as usize))
}
