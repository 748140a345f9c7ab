//! The image lock: two machines that write one image destroy it.
//!
//! The bytes are QEMU's (block/file-posix.c, RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE), so that each side sees the
//! other: a read lock on 100 + n says "I hold permission n", one on 200 + n "I share permission n with nobody". Permission 0
//! is a consistent read, 1 is a write.
//!
//! - A writer write-locks all of these bytes, which excludes everybody.
//! - A reader read-locks 100 and 201 (it reads, and tolerates no writer) and then looks for a lock on 101, a writer.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};

use super::syscalls::last_errno;

const READS: i64 = 100;
const WRITES: i64 = 101;
const TOLERATES_NO_WRITER: i64 = 201;
const ALL: std::ops::Range<i64> = 100..300;

/// Takes the lock, on this open file description; it goes when that is closed. Never waits.
///
/// # Errors
/// `EAGAIN` if another holder is in the way.
pub(super) fn take(fd: BorrowedFd<'_>, read_only: bool) -> Result<()> {
    if !read_only {
        return set(fd, libc::F_WRLCK, ALL);
    }
    set(fd, libc::F_RDLCK, READS..READS + 1)?;
    set(fd, libc::F_RDLCK, TOLERATES_NO_WRITER..TOLERATES_NO_WRITER + 1)?;
    if held_by_others(fd, WRITES)? { Err(Errno::AGAIN) } else { Ok(()) }
}

/// Gives up all that `take` took.
pub(super) fn release(fd: BorrowedFd<'_>) {
    // Cannot fail on an open file; if it did, closing it would release the lock.
    let _ = set(fd, libc::F_UNLCK, ALL);
}

fn set(fd: BorrowedFd<'_>, kind: libc::c_int, bytes: std::ops::Range<i64>) -> Result<()> {
    let mut lock = describe(kind, bytes);
    match call(fd, libc::F_OFD_SETLK, &mut lock) {
        Err(Errno::ACCESS) => Err(Errno::AGAIN),
        result => result,
    }
}

fn held_by_others(fd: BorrowedFd<'_>, byte: i64) -> Result<bool> {
    let mut lock = describe(libc::F_WRLCK, byte..byte + 1);
    call(fd, libc::F_OFD_GETLK, &mut lock)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "lock types and SEEK_SET are small constants, short in the struct"
)]
fn describe(kind: libc::c_int, bytes: std::ops::Range<i64>) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: bytes.start,
        l_len: bytes.end - bytes.start,
        // Must be 0 for an open-file-description lock (fcntl(2)).
        l_pid: 0,
    }
}

fn call(fd: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> Result<()> {
    // SAFETY: both commands read and write one `flock` behind the pointer, and that is what `lock` is.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(last_errno()),
        _ => Ok(()),
    }
}
