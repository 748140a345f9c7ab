//! Reads and writes through an io_uring: one for each handle, entered once for all that has been submitted since.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use blk_core::op::Op;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;

use super::iovecs::IoVecs;
use super::job::Job;
use super::shared::{Shared, Transfer};
use super::syscalls::Syscalls;

/// Index of the image among the ring's registered files.
const IMAGE: types::Fixed = types::Fixed(0);

/// A handle's ring, and the jobs that the kernel has of it.
///
/// Dropped, it waits until the kernel has ended them all.
pub(super) struct Ring<S: Syscalls> {
    shared: Arc<Shared<S>>,
    uring: IoUring,
    /// By number. A job that is here may be used by the kernel: it stays, and its memory with it, until its completion comes.
    jobs: Vec<Option<Box<Job>>>,
    in_flight: usize,
    /// The eventfd is to be signalled.
    armed: bool,
    /// The eventfd may have been signalled since it was last read.
    signalled: bool,
    /// An open file description of its own: see [`Image::another`](super::image::Image::another).
    _file: OwnedFd,
}

impl<S: Syscalls> Ring<S> {
    /// A ring for `depth` jobs that signals `wake`.
    ///
    /// # Errors
    /// The kernel's, where there is no io_uring, it is too old (before 5.19) or not permitted.
    pub(super) fn new(
        shared: Arc<Shared<S>>,
        file: OwnedFd,
        depth: usize,
        wake: BorrowedFd<'_>,
    ) -> io::Result<Self> {
        let entries = u32::try_from(depth).unwrap_or(u32::MAX);
        // Completions are posted when this thread enters the kernel anyway, not by interrupting it. The rings stay out of
        // children, which have no use for them. Disabled until its restrictions are in place.
        let mut builder = IoUring::builder();
        builder.setup_coop_taskrun().setup_taskrun_flag().setup_r_disabled().dontfork();
        let uring = builder.build(entries)?;
        // The second file is never used: the ring holds it, and with it the image lock, until its last operation has ended,
        // also if this process is killed. Nobody else is then given the lock while an old write may still land.
        let files = [file.as_raw_fd(), shared.image.exclusive().as_raw_fd()];
        uring.submitter().register_files(&files)?;
        uring.submitter().register_eventfd(wake.as_raw_fd())?;
        if let Err(error) = restrict(&uring) {
            let image = shared.image.path().display();
            tracing::warn!(%image, %error, "its io_uring takes any operation: this kernel cannot restrict it");
        }
        uring.submitter().register_enable_rings()?;
        let mut ring = Self {
            shared,
            uring,
            jobs: (0..depth).map(|_| None).collect(),
            in_flight: 0,
            armed: false,
            signalled: false,
            _file: file,
        };
        ring.uring.completion().disable_eventfd();
        Ok(ring)
    }

    /// Takes a read or write that is admitted, or gives it back.
    pub(super) fn push(&mut self, job: Box<Job>) -> Option<Box<Job>> {
        if let Op::Write { extent, fua } = job.op {
            self.shared.dirty(extent.start, fua);
        }
        self.submit(job)
    }

    /// Puts what is left of a job into the submission queue; gives back what does not fit or is no transfer.
    fn submit(&mut self, job: Box<Job>) -> Option<Box<Job>> {
        let Some(transfer) = transfer(job.op) else { return Some(job) };
        let Some(place) = self.jobs.get_mut(usize::from(job.number)).filter(|place| place.is_none()) else {
            return Some(job);
        };
        let entry = entry(transfer, &job.iovecs, job.at).user_data(job.number.into());
        // SAFETY: the entry names `job.iovecs`, which does not move as the job is boxed, and the memory that it lists. Both stay
        // as they are while the job is in `jobs`: its anchor and its completion queue keep the memory mapped, and nobody changes the list.
        // It is taken from there only when the completion with its number has come, after which the kernel uses neither; and
        // `drop` leaves nothing there.
        if unsafe { self.uring.submission().push(&entry) }.is_err() {
            return Some(job);
        }
        if let Transfer::Write { fua } = transfer {
            self.shared.count_write_call(fua);
        }
        *place = Some(job);
        self.in_flight += 1;
        None
    }

    /// Gives the kernel what was submitted since, and appends the jobs that have ended to `ended`.
    pub(super) fn poll(&mut self, ended: &mut VecDeque<Box<Job>>) {
        if self.in_flight != 0 {
            self.disarm();
            self.enter();
            self.reap(ended);
        }
    }

    /// Asks for the eventfd to be signalled by the next completion. Returns false if one is there, or the kernel did not take all
    /// that was submitted: then the caller is to poll. To be called when the eventfd has been read.
    pub(super) fn arm(&mut self) -> bool {
        self.signalled = false;
        if self.in_flight == 0 {
            return true;
        }
        self.enter();
        self.armed = true;
        self.uring.completion().enable_eventfd();
        // Either the kernel sees the flag after it has posted a completion, or the completion is seen here.
        fence(Ordering::SeqCst);
        self.uring.completion().is_empty()
            && self.uring.submission().is_empty()
            && !self.uring.submission().taskrun()
    }

    /// Whether the eventfd may have been signalled.
    pub(super) const fn may_have_signalled(&self) -> bool {
        self.signalled || self.armed
    }

    fn disarm(&mut self) {
        if self.armed {
            (self.armed, self.signalled) = (false, true);
            self.uring.completion().disable_eventfd();
        }
    }

    /// Enters the kernel if there is something to give it, or it has completions to post.
    fn enter(&mut self) {
        let queue = self.uring.submission();
        let reason = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if reason {
            // EINTR, EAGAIN and EBUSY leave the rest in the queue: the next poll tries again. There are no others.
            let _ = self.uring.submit();
        }
    }

    /// Takes completions that the kernel has posted; no system call.
    fn reap(&mut self, ended: &mut VecDeque<Box<Job>>) {
        loop {
            let Some(entry) = self.uring.completion().next() else { return };
            let number = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(job) = self.jobs.get_mut(number).and_then(Option::take) else { continue };
            self.in_flight -= 1;
            if let Some(job) = self.step(job, entry.result()) {
                ended.push_back(job);
            }
        }
    }

    /// What a completion means for its job: it has ended, or it goes on.
    fn step(&mut self, mut job: Box<Job>, result: i32) -> Option<Box<Job>> {
        let transfer = transfer(job.op)?;
        let result = usize::try_from(result).map_err(|_| Errno::from_raw_os_error(result.saturating_neg()));
        let result = self.shared.syscalls.ring_ended(transfer != Transfer::Read, result);
        if let Err(Errno::AGAIN | Errno::CANCELED) = result {
            // The kernel would have to wait and does not here, or the thread that submitted it has exited.
            self.shared.work.push(job);
            return None;
        }
        let ended = self.shared.moved(transfer, &mut job.iovecs, &mut job.at, result);
        let Some(result) = ended else {
            if self.shared.needs_bounce(&job.iovecs, job.at) {
                self.shared.work.push(job);
            } else if let Some(job) = self.submit(job) {
                self.shared.work.push(job);
            }
            return None;
        };
        if let Op::Write { extent, fua } = job.op {
            self.shared.dirty(extent.start, fua);
        }
        let result = self.shared.settle(job.op, result);
        job.end(result);
        Some(job)
    }
}

impl<S: Syscalls> Drop for Ring<S> {
    fn drop(&mut self) {
        let mut ended = VecDeque::new();
        while self.in_flight != 0 {
            self.reap(&mut ended);
            ended.clear();
            if self.in_flight == 0 {
                break;
            }
            // Waits as long as the kernel takes: before that no memory may go.
            let _ = self.uring.submit_and_wait(1);
        }
        // Now, not when the kernel gets round to it: the next one to open a device exclusively must find it free.
        let _ = self.uring.submitter().unregister_files();
    }
}

/// Restricts a ring that is still disabled to what this file does with it: reads and writes of registered files.
///
/// No seccomp filter sees what a ring is given, so code that has taken over this process could open files and make
/// connections through it. What the ring refuses completes with `EACCES` (io_uring_register(2),
/// `IORING_REGISTER_RESTRICTIONS`).
fn restrict(uring: &IoUring) -> io::Result<()> {
    const UNREGISTER_FILES: u8 = 3; // Linux, include/uapi/linux/io_uring.h: what `drop` does.
    let fixed_file = squeue::Flags::FIXED_FILE.bits();
    let operations = [opcode::Read::CODE, opcode::Readv::CODE, opcode::Write::CODE, opcode::Writev::CODE];
    let [read, readv, write, writev] = operations.map(Restriction::sqe_op);
    let mut allowed = [
        read,
        readv,
        write,
        writev,
        Restriction::sqe_flags_allowed(fixed_file),
        Restriction::sqe_flags_required(fixed_file),
        Restriction::register_op(UNREGISTER_FILES),
    ];
    uring.submitter().register_restrictions(&mut allowed)
}

/// Whether every ring of this process is restricted: the kernel can, or lets nobody set one up.
///
/// # Errors
/// The kernel's, where it has rings that cannot be restricted.
#[cfg(feature = "server")]
pub(crate) fn can_restrict() -> io::Result<()> {
    IoUring::builder().setup_r_disabled().build(1).map_or(Ok(()), |uring| restrict(&uring))
}

const fn transfer(op: Op) -> Option<Transfer> {
    match op {
        Op::Read { .. } => Some(Transfer::Read),
        Op::Write { fua, .. } => Some(Transfer::Write { fua }),
        _ => None,
    }
}

fn entry(transfer: Transfer, left: &IoVecs, at: u64) -> squeue::Entry {
    let list = left.as_slice();
    // At most 192 pieces, each of at most TRANSFER_MAX_BYTES.
    let count = list.len() as u32;
    let flags = match transfer {
        Transfer::Write { fua: true } => libc::RWF_DSYNC,
        Transfer::Read | Transfer::Write { fua: false } => 0,
    };
    match (transfer, list) {
        (Transfer::Read, [one]) => {
            opcode::Read::new(IMAGE, one.iov_base.cast(), one.iov_len as u32).offset(at).build()
        }
        (Transfer::Read, _) => opcode::Readv::new(IMAGE, list.as_ptr(), count).offset(at).build(),
        (Transfer::Write { .. }, [one]) => {
            let write = opcode::Write::new(IMAGE, one.iov_base.cast_const().cast(), one.iov_len as u32);
            write.offset(at).rw_flags(flags).build()
        }
        (Transfer::Write { .. }, _) => {
            opcode::Writev::new(IMAGE, list.as_ptr(), count).offset(at).rw_flags(flags).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use blk_core::storage::CacheMode;
    use io_uring::types::{Fd, FsyncFlags};
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::backend::FileOptions;
    use crate::backend::budget::Budgets;
    use crate::backend::image::Image;
    use crate::backend::syscalls::LinuxSyscalls;

    const EACCES: i32 = -libc::EACCES;

    /// What the ring of an image says to an entry.
    fn result_of(entry: impl FnOnce(Fd) -> squeue::Entry) -> i32 {
        with_ring(|ring, image| {
            let entry = entry(Fd(image));
            // SAFETY: each entry of these tests names memory that is static, or a buffer that its test keeps until this returns.
            unsafe { ring.uring.submission().push(&entry) }.unwrap();
            ring.uring.submit_and_wait(1).unwrap();
            ring.uring.completion().next().unwrap().result()
        })
    }

    fn with_ring<R>(test: impl FnOnce(&mut Ring<LinuxSyscalls>, i32) -> R) -> R {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let image = Image::open(file.path(), &FileOptions::new(CacheMode::WriteBack)).unwrap();
        let shared = Arc::new(Shared::new(LinuxSyscalls, image, None, 1, Budgets::new(u64::MAX, u64::MAX)));
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let own = shared.image.another().unwrap();
        let mut ring = Ring::new(Arc::clone(&shared), own, 4, wake.as_fd()).unwrap();
        test(&mut ring, file.as_file().as_raw_fd())
    }

    #[test]
    fn a_ring_reads_its_image() {
        let mut block = [1_u8; 512];
        assert_eq!(result_of(|_| opcode::Read::new(IMAGE, block.as_mut_ptr(), 512).build()), 512);
        assert_eq!(block, [0; 512]);
    }

    #[test]
    fn a_ring_does_nothing_but_read_and_write() {
        assert_eq!(result_of(|_| opcode::Fsync::new(IMAGE).flags(FsyncFlags::DATASYNC).build()), EACCES);
        let path = c"/etc/passwd".as_ptr();
        assert_eq!(result_of(|_| opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build()), EACCES);
        assert_eq!(result_of(|_| opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()), EACCES);
        assert_eq!(result_of(|_| opcode::Fallocate::new(IMAGE, 4096).build()), EACCES);
        assert_eq!(result_of(|_| opcode::Nop::new().build()), EACCES);
    }

    #[test]
    fn a_ring_uses_no_descriptor_that_is_not_registered_with_it() {
        let mut block = [0_u8; 512];
        let read = |image| opcode::Read::new(image, block.as_mut_ptr(), 512).build();
        assert_eq!(result_of(read), EACCES);
    }

    #[test]
    fn a_ring_takes_no_other_files_later() {
        with_ring(|ring, image| {
            let error = ring.uring.submitter().register_files_update(0, &[image]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        });
    }
}
