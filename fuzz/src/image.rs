//! An image in memory, for the targets that run a whole server.

use std::os::fd::{AsRawFd as _, OwnedFd};

use blk_core::storage::CacheMode;
use host_std::backend::{FileBackend, FileOptions};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// A file of `bytes` zeroes that is nowhere but in memory.
pub fn memory_file(name: &str, bytes: u64) -> OwnedFd {
    let file = memfd_create(name, MemfdFlags::CLOEXEC).expect("a memory file");
    ftruncate(&file, bytes).expect("its size");
    file
}

/// An image of 1 MiB in a file that is to be kept open, and its backend.
pub fn image() -> (OwnedFd, FileBackend) {
    let image = memory_file("image", 1 << 20);
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let backend = FileBackend::open(&path, &FileOptions::new(CacheMode::WriteBack)).expect("an image");
    (image, backend)
}
