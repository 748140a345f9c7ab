//! System calls of each role's thread.
//!
//! Found by tracing the program under its tests, and by reading what it does on errors. A call that
//! glibc or the standard library makes in more than one way is listed in each.

use libc::c_long;
use libc::{
    SYS_accept4, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_clone3,
    SYS_close, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2,
    SYS_exit, SYS_exit_group, SYS_faccessat, SYS_fallocate, SYS_fcntl, SYS_fdatasync, SYS_flock, SYS_fstat,
    SYS_fstatfs, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpeername,
    SYS_getpid, SYS_getrandom, SYS_getrusage, SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday,
    SYS_getuid, SYS_io_uring_enter, SYS_io_uring_register, SYS_io_uring_setup, SYS_ioctl, SYS_lseek,
    SYS_madvise, SYS_memfd_create, SYS_mmap, SYS_mprotect, SYS_mremap, SYS_munmap, SYS_nanosleep,
    SYS_newfstatat, SYS_openat, SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv, SYS_preadv2, SYS_pwrite64,
    SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmsg,
    SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sched_getaffinity, SYS_sched_yield, SYS_seccomp, SYS_sendmsg, SYS_sendto, SYS_set_robust_list,
    SYS_setsockopt, SYS_shutdown, SYS_sigaltstack, SYS_statx, SYS_tgkill, SYS_timerfd_create,
    SYS_timerfd_gettime, SYS_timerfd_settime, SYS_unlinkat, SYS_write, SYS_writev,
};

/// Role of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The main thread once it has started the others, and the one that takes signals: waits,
    /// tells, removes sockets at the end.
    Main,
    /// Accepts the clients of a device, and answers the messages of a vhost-user client.
    Serve,
    /// Works on rings or on a PCI device: requests, interrupts, the client's memory, and over
    /// vfio-user its messages.
    Queue,
    /// Reads, writes, zeroes and discards where that has to wait.
    Worker,
    /// Makes an image stable.
    Flusher,
    /// Does an operator's commands: opens images, which starts threads.
    Control,
    /// Logs failures, and pauses devices.
    Watch,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 7] =
        [Self::Main, Self::Serve, Self::Queue, Self::Worker, Self::Flusher, Self::Control, Self::Watch];

    pub(super) fn calls(self) -> impl Iterator<Item = c_long> {
        let groups: &[&[c_long]] = match self {
            Self::Main => &[EVENTS, OLD_EVENTS, SOCKETS, SYNC, RING, STAT, OLD_STAT, UNLINK, OLD_UNLINK, DUP],
            Self::Serve => {
                &[EVENTS, OLD_EVENTS, SOCKETS, ACCEPT, TRANSFER, SYNC, RING, STAT, OLD_STAT, MEMORY_FILE, DUP]
            }
            Self::Queue => {
                &[EVENTS, OLD_EVENTS, SOCKETS, TRANSFER, SYNC, RING, STAT, OLD_STAT, MEMORY_FILE, DUP]
            }
            // A file that was cut short is found by its size.
            Self::Worker => &[TRANSFER, SYNC, STAT, OLD_STAT],
            Self::Flusher => &[SYNC, STAT, OLD_STAT],
            Self::Control => &[
                EVENTS,
                OLD_EVENTS,
                SOCKETS,
                ACCEPT,
                TRANSFER,
                SYNC,
                RING,
                STAT,
                OLD_STAT,
                MEMORY_FILE,
                DUP,
                SPAWN,
                OPEN,
                OLD_OPEN,
                NEW_RING,
            ],
            Self::Watch => &[],
        };
        [RUNTIME, OLD_RUNTIME].iter().chain(groups).flat_map(|group| group.iter().copied())
    }
}

/// The standard library and libc in any thread: memory, locks, time, a log line on standard error,
/// a signal handler that wakes another thread, a panic, an abort, a thread's end.
const RUNTIME: &[c_long] = &[
    SYS_read,
    SYS_write,
    SYS_writev,
    SYS_close,
    SYS_fcntl,
    SYS_futex,
    SYS_brk,
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_getrandom,
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_getrusage,
    SYS_getpid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_prctl,
    SYS_sigaltstack,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_restart_syscall,
    SYS_sendto,
    SYS_tgkill,
    SYS_exit,
    SYS_exit_group,
];

/// Where there is no vDSO.
#[cfg(target_arch = "x86_64")]
const OLD_RUNTIME: &[c_long] = &[libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OLD_RUNTIME: &[c_long] = &[];

/// Waiting for descriptors.
const EVENTS: &[c_long] = &[
    SYS_ppoll,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_eventfd2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
];
#[cfg(target_arch = "x86_64")]
const OLD_EVENTS: &[c_long] = &[libc::SYS_poll, libc::SYS_epoll_wait];
#[cfg(not(target_arch = "x86_64"))]
const OLD_EVENTS: &[c_long] = &[];

/// Sockets that are connected. None is made.
const SOCKETS: &[c_long] = &[
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_readv,
    SYS_shutdown,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_getsockname,
    SYS_getpeername,
];

const ACCEPT: &[c_long] = &[SYS_accept4];

/// A descriptor for another owner.
const DUP: &[c_long] = &[SYS_dup];

/// The data of an image.
const TRANSFER: &[c_long] = &[
    SYS_preadv,
    SYS_preadv2,
    SYS_pread64,
    SYS_pwritev,
    SYS_pwritev2,
    SYS_pwrite64,
    SYS_fallocate,
    SYS_ioctl,
    SYS_lseek,
];

const SYNC: &[c_long] = &[SYS_fdatasync, SYS_fsync];

/// A ring that was set up before, until its end.
const RING: &[c_long] = &[SYS_io_uring_enter, SYS_io_uring_register];

const NEW_RING: &[c_long] = &[SYS_io_uring_setup];

/// What a descriptor is: those of clients are looked at before they are used.
const STAT: &[c_long] = &[SYS_fstat, SYS_newfstatat, SYS_statx, SYS_fstatfs, SYS_readlinkat];
#[cfg(target_arch = "x86_64")]
const OLD_STAT: &[c_long] = &[libc::SYS_stat, libc::SYS_lstat, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_STAT: &[c_long] = &[];

/// Memory that a client is given: the in-flight region.
const MEMORY_FILE: &[c_long] = &[SYS_memfd_create, SYS_ftruncate];

const UNLINK: &[c_long] = &[SYS_unlinkat];
#[cfg(target_arch = "x86_64")]
const OLD_UNLINK: &[c_long] = &[libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_UNLINK: &[c_long] = &[];

/// A file, and the lock of a recording.
const OPEN: &[c_long] = &[SYS_openat, SYS_faccessat, SYS_flock];
#[cfg(target_arch = "x86_64")]
const OLD_OPEN: &[c_long] = &[libc::SYS_open];
#[cfg(not(target_arch = "x86_64"))]
const OLD_OPEN: &[c_long] = &[];

/// A thread, and the first that it does: restrict itself.
const SPAWN: &[c_long] = &[SYS_clone, SYS_clone3, SYS_set_robust_list, SYS_rseq, SYS_seccomp];
