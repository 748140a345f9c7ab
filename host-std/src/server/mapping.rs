//! Memory that a client shares: a part of a file, mapped.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::fs::{FileType, fstat, fstatfs};
use rustix::param::page_size;
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use crate::memory::{BusErrors, Mapping};

// Linux, include/uapi/linux/magic.h.
/// The pages come from a process, which may be the client, and may never come.
const FUSE: u64 = 0x6573_5546;
const HUGETLBFS: u64 = 0x9584_58f6;

/// Maps `bytes` bytes of a file from `offset` on, wherever that is, and returns where they begin in the mapping.
///
/// A page beyond the end of the file reads as zeroes when it is touched, and `errors` is told: the client may cut the file short
/// at any time.
pub(super) fn map(
    file: File,
    offset: u64,
    bytes: u64,
    errors: &Arc<BusErrors>,
) -> Result<(Arc<Mapping>, usize), String> {
    let stat =
        fstat(file.as_fd()).map_err(|errno| format!("the descriptor of shared memory fails: {errno}"))?;
    let end = offset.checked_add(bytes).ok_or("shared memory that wraps")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("shared memory that is no file: give memory-backend-memfd or memory-backend-file".into());
    }
    let file_system = fstatfs(&file).map_err(|errno| format!("the file of shared memory fails: {errno}"))?;
    let kind = file_system.f_type as u64;
    if kind == FUSE {
        return Err(
            "shared memory on a FUSE file system: give memory-backend-memfd, or a file elsewhere".into()
        );
    }
    if bytes == 0 || end > stat.st_size as u64 {
        return Err(format!(
            "{bytes} bytes of shared memory at offset {offset}, in a file of {} bytes",
            stat.st_size
        ));
    }
    // Of huge pages a part cannot be mapped, nor unmapped.
    let page = if kind == HUGETLBFS { file_system.f_bsize as u64 } else { page_size() as u64 };
    let first = offset - offset % page;
    let len = (end - first).next_multiple_of(page).min(stat.st_size as u64 - first);
    let fail = |why: &dyn std::fmt::Display| format!("cannot map {bytes} bytes of shared memory: {why}");
    let len = usize::try_from(len).map_err(|error| fail(&error))?;
    let mapping = MmapRegion::from_file(FileOffset::new(file, first), len).map_err(|error| fail(&error))?;
    let mapping = Mapping::of_client(mapping, page as usize, Arc::clone(errors));
    Ok((Arc::new(mapping), (offset - first) as usize))
}
