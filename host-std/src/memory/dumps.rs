//! Core dumps: without the memory of guests.
//!
//! Mapping by mapping, not by making the process undumpable: then a crash would leave nothing to be
//! looked at, and its user could neither trace it nor look into its /proc.

use std::ptr::NonNull;

use rustix::io::Result;
use rustix::mm::{Advice, madvise};

/// Keeps a mapping out of core dumps (`MADV_DONTDUMP`). `start` is the start of a page; the last
/// page counts as a whole.
///
/// Call it on each mapping of guest memory and of what is copied from it.
///
/// # Errors
/// The kernel's: ENOMEM if a part is not mapped, EINVAL if `start` is not the start of a page.
pub fn keep_out_of_core_dumps(start: NonNull<u8>, bytes: usize) -> Result<()> {
    // SAFETY: MADV_DONTDUMP sets a flag of the mappings in the range, which is looked at when the
    // process dumps core (madvise(2)). It changes no byte, moves and unmaps nothing: whatever owns
    // the memory sees no difference.
    unsafe { madvise(start.as_ptr().cast(), bytes, Advice::LinuxDontDump) }
}

#[cfg(test)]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    const BYTES: usize = 1 << 20;

    /// The flags of the mapping that begins at `start`: "dd" is "do not dump" (Linux,
    /// Documentation/filesystems/proc.rst).
    fn flags(start: NonNull<u8>) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&format!("{:x}-", start.addr())));
        lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap().to_owned()
    }

    #[test]
    fn memory_that_is_kept_out_of_dumps_says_so() {
        // SAFETY: a mapping at an address of the kernel's choice, of which nobody else knows.
        let mapped = unsafe {
            mmap_anonymous(std::ptr::null_mut(), BYTES, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)
        };
        let start = NonNull::new(mapped.unwrap().cast::<u8>()).unwrap();
        assert!(!flags(start).contains(" dd"));
        keep_out_of_core_dumps(start, BYTES).unwrap();
        assert!(flags(start).contains(" dd"));
        // SAFETY: the mapping from above, which nothing refers to any more.
        unsafe { munmap(start.as_ptr().cast(), BYTES) }.unwrap();
    }
}
