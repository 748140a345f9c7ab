//! Memory that a client shares: a part of a file, mapped.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

/// Maps `bytes` bytes of a file from `offset` on, wherever that is, and returns where they begin in the mapping.
///
/// A page beyond the end of the file would kill this process with SIGBUS when it is touched, so the size is checked first.
pub(super) fn map(file: File, offset: u64, bytes: u64) -> Result<(Arc<MmapRegion>, usize), String> {
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
