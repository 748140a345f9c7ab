//! The system calls that a backend makes for a request, behind a trait so that a test can make them fail.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result};

use super::iovecs::IoVecs;

/// System calls that a backend makes for a request: one each, short transfers and `EINTR` included.
///
/// [`LinuxSyscalls`] is the real one. A test wraps it to inject errors, short transfers and delays.
pub trait Syscalls: Send + Sync + 'static {
    /// Reads at byte `offset`; returns the bytes moved, 0 at the end of the file.
    ///
    /// # Errors
    /// The kernel's.
    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize>;

    /// Writes at byte `offset`, with `RWF_DSYNC` if `dsync`; returns the bytes moved.
    ///
    /// # Errors
    /// The kernel's.
    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize>;

    /// Writes a part of the file of records at byte `offset`; returns the bytes moved.
    ///
    /// # Errors
    /// The kernel's.
    fn write_record(&self, fd: BorrowedFd<'_>, from: &[u8], offset: u64) -> Result<usize> {
        rustix::io::pwrite(fd, from, offset)
    }

    /// Makes everything that was written stable.
    ///
    /// # Errors
    /// The kernel's.
    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()>;

    /// Punches a hole or zeroes a range of bytes.
    ///
    /// # Errors
    /// The kernel's.
    fn fallocate(&self, fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<()>;

    /// Discards (`BLKDISCARD`) a range of bytes of a block device.
    ///
    /// # Errors
    /// The kernel's.
    fn block_discard(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()>;

    /// Zeroes (`BLKZEROOUT`) a range of bytes of a block device.
    ///
    /// # Errors
    /// The kernel's.
    fn block_zero(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()>;

    /// Whether a call takes no longer than the kernel's own: then those for which the kernel waits for no device are made on
    /// the queue's own thread. An implementation that delays says false.
    fn may_run_inline(&self) -> bool {
        false
    }

    /// [`read`](Self::read) if it need not wait (`RWF_NOWAIT`); part of it if only part need not.
    ///
    /// # Errors
    /// `EAGAIN` if it would wait, `EOPNOTSUPP` if it never does this; both, and all others, leave it to `read`.
    fn read_now(&self, _fd: BorrowedFd<'_>, _into: &IoVecs, _offset: u64) -> Result<usize> {
        Err(Errno::OPNOTSUPP)
    }

    /// [`write`](Self::write), not stable, if it need not wait.
    ///
    /// # Errors
    /// As for [`read_now`](Self::read_now).
    fn write_now(&self, _fd: BorrowedFd<'_>, _from: &IoVecs, _offset: u64) -> Result<usize> {
        Err(Errno::OPNOTSUPP)
    }

    /// Whether an io_uring may read and write in place of these calls.
    fn ring(&self) -> bool {
        false
    }

    /// What a read or write that an io_uring made is said to have come to: for tests, which change it.
    ///
    /// # Errors
    /// The kernel's, or another.
    fn ring_ended(&self, _write: bool, result: Result<usize>) -> Result<usize> {
        result
    }
}

/// The kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxSyscalls;

impl Syscalls for LinuxSyscalls {
    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        let (list, count, offset) = arguments(into, offset)?;
        // SAFETY: `IoVecs` vouches for its ranges: mapped and writable. `list` points to `count` iovecs. The kernel writes to
        // no other memory.
        transferred(unsafe { libc::preadv(fd.as_raw_fd(), list, count, offset) })
    }

    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize> {
        let (list, count, offset) = arguments(from, offset)?;
        let fd = fd.as_raw_fd();
        // SAFETY: `IoVecs` vouches for its ranges: mapped and readable. `list` points to `count` iovecs.
        transferred(unsafe {
            if dsync {
                libc::pwritev2(fd, list, count, offset, libc::RWF_DSYNC)
            } else {
                libc::pwritev(fd, list, count, offset)
            }
        })
    }

    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::fdatasync(fd)
    }

    fn fallocate(&self, fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<()> {
        rustix::fs::fallocate(fd, mode, offset, bytes)
    }

    fn block_discard(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        range_ioctl(fd, BLKDISCARD, offset, bytes)
    }

    fn block_zero(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        range_ioctl(fd, BLKZEROOUT, offset, bytes)
    }

    fn may_run_inline(&self) -> bool {
        true
    }

    fn read_now(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        let (list, count, offset) = arguments(into, offset)?;
        // SAFETY: as for `read`.
        transferred(unsafe { libc::preadv2(fd.as_raw_fd(), list, count, offset, libc::RWF_NOWAIT) })
    }

    fn write_now(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64) -> Result<usize> {
        let (list, count, offset) = arguments(from, offset)?;
        // SAFETY: as for `write`.
        transferred(unsafe { libc::pwritev2(fd.as_raw_fd(), list, count, offset, libc::RWF_NOWAIT) })
    }

    fn ring(&self) -> bool {
        true
    }
}

/// Linux, include/uapi/linux/fs.h: `_IO(0x12, 119)`; takes the offset and the length in bytes as two u64.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// Linux, include/uapi/linux/fs.h: `_IO(0x12, 127)`; takes the same.
const BLKZEROOUT: libc::Ioctl = 0x127f;

fn range_ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, offset: u64, bytes: u64) -> Result<()> {
    let range = [offset, bytes];
    // SAFETY: both requests read two u64 from the pointer, and `range` is that.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

fn arguments(iovecs: &IoVecs, offset: u64) -> Result<(*const libc::iovec, libc::c_int, libc::off_t)> {
    let list = iovecs.as_slice();
    let count = libc::c_int::try_from(list.len()).map_err(|_| Errno::INVAL)?;
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::INVAL)?;
    Ok((list.as_ptr(), count, offset))
}

fn transferred(returned: isize) -> Result<usize> {
    usize::try_from(returned).map_err(|_| last_errno())
}

/// The error of the system call that has just failed on this thread.
pub(super) fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}
