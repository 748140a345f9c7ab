//! System calls: what one is called, whose it is, and how it can fail.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use syscalls::{Errno, Sysno};

/// A call of the server's life: the `number`-th of its kind in its thread.
///
/// The order of calls of different threads is not the same twice; that of one thread mostly is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Call {
    /// The thread's name; the second thread of that name has `#2` behind it.
    pub(crate) thread: String,
    pub(crate) syscall: Sysno,
    /// From 1 on.
    pub(crate) number: u32,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.thread, self.syscall.name(), self.number)
    }
}

impl FromStr for Call {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.rsplitn(3, '/');
        let number = parts.next().and_then(|number| number.parse().ok());
        let syscall = parts.next().and_then(|name| Sysno::from_str(name).ok());
        match (parts.next(), syscall, number) {
            (Some(thread), Some(syscall), Some(number)) => {
                Ok(Self { thread: thread.to_owned(), syscall, number })
            }
            _ => Err(format!("{text}: not a call; give THREAD/SYSCALL/N, for example blk-host/openat/3")),
        }
    }
}

/// What is done at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// SIGKILL before the kernel does anything of it.
    KillBefore,
    /// SIGKILL once the kernel has done it.
    KillAfter,
    /// The thread is held before the call, SIGKILL comes when the others have had the time to do what they can: what was begun
    /// later has ended earlier.
    KillLate,
    /// The call fails with this error, and nothing of it is done.
    Fail(Errno),
    /// The same, and so do all later ones of its kind on the same descriptor: a reader that has gone, a disk that stays full.
    FailOn(Errno),
}

impl Action {
    pub(crate) const fn is_kill(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillAfter | Self::KillLate)
    }

    /// Everything that can be done at a call.
    pub(crate) fn all_of(syscall: Sysno, target: Target) -> impl Iterator<Item = Self> {
        let fail = errors(syscall, target).iter().copied().map(Self::Fail);
        let log = syscall == Sysno::write && target == Target::Other;
        let lasting = if log {
            [Errno::EIO, Errno::ENOSPC, Errno::EPIPE].map(Self::FailOn).to_vec()
        } else {
            Vec::new()
        };
        [Self::KillBefore, Self::KillAfter, Self::KillLate].into_iter().chain(fail).chain(lasting)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillBefore => f.write_str("kill-before"),
            Self::KillAfter => f.write_str("kill-after"),
            Self::KillLate => f.write_str("kill-late"),
            Self::Fail(errno) => f.write_str(errno.name().unwrap_or("?")),
            Self::FailOn(errno) => write!(f, "{}+", errno.name().unwrap_or("?")),
        }
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kill-before" => Ok(Self::KillBefore),
            "kill-after" => Ok(Self::KillAfter),
            "kill-late" => Ok(Self::KillLate),
            name => {
                let lasting = name.strip_suffix('+').and_then(errno).map(Self::FailOn);
                let action = lasting.or_else(|| errno(name).map(Self::Fail));
                action.ok_or_else(|| {
                    format!(
                        "{text}: give kill-before, kill-after, kill-late, or an error such as EIO or EPIPE+"
                    )
                })
            }
        }
    }
}

/// A call and what is done there, as it is given on the command line: CALL:ACTION.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub(crate) call: Call,
    pub(crate) action: Action,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.call, self.action)
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (call, action) = text.rsplit_once(':').ok_or("give THREAD/SYSCALL/N:ACTION")?;
        Ok(Self { call: call.parse()?, action: action.parse()? })
    }
}

/// What a read or a write is about, as far as its errors differ by that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Target {
    Eventfd,
    Socket,
    #[default]
    Other,
}

impl Target {
    /// Of a descriptor, by what its link in /proc names.
    pub(crate) fn of(link: &Path) -> Self {
        match link.to_str() {
            Some("anon_inode:[eventfd]") => Self::Eventfd,
            Some(name) if name.starts_with("socket:") => Self::Socket,
            _ => Self::Other,
        }
    }
}

/// Whether a call's errors depend on what it is about.
pub(crate) fn has_target(syscall: Sysno) -> bool {
    matches!(syscall, Sysno::read | Sysno::readv | Sysno::write | Sysno::writev)
}

/// Calls of the allocator and of the standard library, which make them on their own account: the start and the end of threads,
/// stacks, locks. An mmap of a file is the server's own.
pub(crate) fn is_of_the_library(syscall: Sysno, arguments: [u64; 6]) -> bool {
    match syscall {
        Sysno::mmap => arguments[3] & libc::MAP_ANONYMOUS as u64 != 0,
        Sysno::munmap
        | Sysno::mremap
        | Sysno::mprotect
        | Sysno::brk
        | Sysno::madvise
        | Sysno::clone3
        | Sysno::clone
        | Sysno::futex
        | Sysno::rseq
        | Sysno::set_robust_list
        | Sysno::set_tid_address
        | Sysno::sigaltstack
        | Sysno::rt_sigprocmask
        | Sysno::rt_sigreturn
        | Sysno::restart_syscall
        | Sysno::sched_getaffinity
        | Sysno::sched_yield
        | Sysno::gettid
        | Sysno::getrandom
        | Sysno::exit
        | Sysno::exit_group => true,
        Sysno::prctl => arguments[0] == libc::PR_SET_NAME as u64,
        // A check of a debug build before a descriptor is closed.
        Sysno::fcntl => arguments[1] == libc::F_GETFD as u64,
        _ => false,
    }
}

/// Whether the kernel does a call also where it says that it failed: close(2) releases the descriptor in any case, and an eventfd
/// that takes no more (EAGAIN) is readable.
pub(crate) fn is_done_in_any_case(syscall: Sysno, action: Action, target: Target) -> bool {
    syscall == Sysno::close
        || (syscall == Sysno::write && action == Action::Fail(Errno::EAGAIN) && target == Target::Eventfd)
}

/// The errors that the manual page of a call names. Left out are those that only a wrong program gets: EBADF, EFAULT, ENOTSOCK
/// and the like. A call that is not here cannot fail.
fn errors(syscall: Sysno, target: Target) -> &'static [Errno] {
    static TABLE: LazyLock<HashMap<&str, Vec<Errno>>> = LazyLock::new(|| {
        let rows = MANUAL.iter().flat_map(|(calls, errors)| {
            let errors: Vec<_> = errors.split(' ').map(|name| errno(name).expect("an error")).collect();
            calls.split(", ").map(move |call| (call, errors.clone()))
        });
        rows.collect()
    });
    let name = match (syscall, target) {
        (Sysno::read | Sysno::readv, Target::Eventfd) => "read eventfd",
        (Sysno::read | Sysno::readv, Target::Socket) => "read socket",
        (Sysno::write | Sysno::writev, Target::Eventfd) => "write eventfd",
        (Sysno::write | Sysno::writev, Target::Socket) => "write socket",
        _ => syscall.name(),
    };
    TABLE.get(name).map_or(&[], Vec::as_slice)
}

/// Section 2 of the Linux man-pages, 6.9.
const MANUAL: &[(&str, &str)] = &[
    ("read", "EAGAIN EINTR EINVAL EIO EISDIR"),
    ("readv", "EAGAIN EINTR EINVAL EIO EISDIR"),
    ("pread64, preadv", "EAGAIN EINTR EINVAL EIO ENXIO EOVERFLOW ESPIPE"),
    ("preadv2", "EAGAIN EINTR EINVAL EIO ENXIO EOPNOTSUPP EOVERFLOW ESPIPE"),
    ("write, writev", "EAGAIN EDESTADDRREQ EDQUOT EFBIG EINTR EINVAL EIO ENOSPC EPERM EPIPE"),
    ("pwrite64, pwritev", "EAGAIN EDQUOT EFBIG EINTR EINVAL EIO ENOSPC ENXIO EOVERFLOW EPERM ESPIPE"),
    ("pwritev2", "EAGAIN EDQUOT EFBIG EINTR EINVAL EIO ENOSPC ENXIO EOPNOTSUPP EOVERFLOW EPERM ESPIPE"),
    // eventfd(2), unix(7).
    ("read eventfd", "EAGAIN EINTR EINVAL EIO"),
    ("write eventfd", "EAGAIN EINTR"),
    ("read socket", "EAGAIN ECONNRESET EINTR EINVAL EIO ENOMEM"),
    ("write socket", "EAGAIN ECONNRESET EINTR EINVAL EIO ENOBUFS ENOMEM EPERM EPIPE"),
    ("fsync, fdatasync", "EDQUOT EINTR EINVAL EIO ENOSPC EROFS"),
    ("fallocate", "EFBIG EINTR EINVAL EIO ENODEV ENOSPC ENOSYS EOPNOTSUPP EPERM ESPIPE ETXTBSY"),
    ("ftruncate", "EFBIG EINTR EINVAL EIO EPERM EROFS ETXTBSY"),
    (
        "open, openat",
        "EACCES EAGAIN EBUSY EDQUOT EEXIST EFBIG EINTR EINVAL EISDIR ELOOP EMFILE ENAMETOOLONG ENFILE ENODEV ENOENT ENOMEM \
         ENOSPC ENOTDIR ENXIO EOPNOTSUPP EOVERFLOW EPERM EROFS ETXTBSY",
    ),
    (
        "stat, fstat, lstat, newfstatat, statx",
        "EACCES EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EOVERFLOW",
    ),
    ("statfs, fstatfs", "EACCES EINTR EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOSYS ENOTDIR EOVERFLOW"),
    ("getdents64", "EINVAL ENOENT ENOTDIR"),
    ("close", "EDQUOT EINTR EIO ENOSPC"),
    ("fcntl", "EACCES EAGAIN EBUSY EDEADLK EINTR EINVAL EMFILE ENOLCK EPERM"),
    ("flock", "EINTR EINVAL ENOLCK EWOULDBLOCK"),
    ("dup, dup2, dup3", "EBUSY EINTR EINVAL EMFILE ENOMEM"),
    ("lseek", "EINVAL ENXIO EOVERFLOW ESPIPE"),
    ("ioctl", "EINVAL ENOTTY"),
    ("unlink, unlinkat", "EACCES EBUSY EIO EISDIR ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EPERM EROFS"),
    ("readlink, readlinkat", "EACCES EINVAL EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR"),
    ("access, faccessat, faccessat2", "EACCES EINVAL EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EROFS"),
    ("chmod, fchmod, fchmodat", "EACCES EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EPERM EROFS"),
    ("chown, fchown, lchown, fchownat", "EACCES EIO ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EPERM EROFS"),
    ("memfd_create", "EINVAL EMFILE ENFILE ENOMEM EPERM"),
    ("socket", "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT"),
    ("socketpair", "EAFNOSUPPORT EMFILE ENFILE EOPNOTSUPP EPROTONOSUPPORT"),
    ("bind", "EACCES EADDRINUSE EADDRNOTAVAIL EINVAL ELOOP ENAMETOOLONG ENOENT ENOMEM ENOTDIR EROFS"),
    ("listen", "EADDRINUSE EOPNOTSUPP"),
    (
        "accept, accept4",
        "EAGAIN ECONNABORTED EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM EOPNOTSUPP EPERM EPROTO",
    ),
    (
        "connect",
        "EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY ECONNREFUSED EINPROGRESS EINTR EISCONN ENETUNREACH \
         EPERM EPROTOTYPE ETIMEDOUT",
    ),
    ("recvfrom, recvmsg", "EAGAIN ECONNREFUSED EINTR EINVAL ENOMEM ENOTCONN"),
    (
        "sendto, sendmsg",
        "EACCES EAGAIN EALREADY ECONNRESET EDESTADDRREQ EINTR EINVAL EISCONN EMSGSIZE ENOBUFS ENOMEM ENOTCONN EOPNOTSUPP \
         EPIPE",
    ),
    ("shutdown", "EINVAL ENOTCONN"),
    ("setsockopt, getsockopt", "EINVAL ENOPROTOOPT"),
    ("getsockname, getpeername", "EINVAL ENOBUFS ENOTCONN"),
    ("poll, ppoll", "EINTR EINVAL ENOMEM"),
    ("epoll_create1", "EINVAL EMFILE ENFILE ENOMEM"),
    ("epoll_ctl", "EEXIST EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM"),
    ("epoll_wait, epoll_pwait, epoll_pwait2", "EINTR EINVAL"),
    ("eventfd2", "EINVAL EMFILE ENFILE ENODEV ENOMEM"),
    ("timerfd_create", "EINVAL EMFILE ENFILE ENODEV ENOMEM EPERM"),
    ("timerfd_settime", "ECANCELED EINVAL"),
    ("signalfd4", "EINVAL EMFILE ENFILE ENODEV ENOMEM"),
    ("pipe2", "EINVAL EMFILE ENFILE"),
    ("io_uring_setup", "EINVAL EMFILE ENFILE ENOMEM ENOSYS EPERM"),
    ("io_uring_register", "EACCES EBADFD EBUSY EEXIST EINVAL EMFILE ENOMEM ENXIO EOPNOTSUPP"),
    ("io_uring_enter", "EAGAIN EBADFD EBADR EBUSY EEXIST EINTR EINVAL ENXIO EOPNOTSUPP EOWNERDEAD"),
    ("rt_sigaction", "EINVAL"),
    ("clock_nanosleep, nanosleep", "EINTR EINVAL"),
    ("prlimit64", "EINVAL EPERM"),
    ("prctl", "EINVAL EPERM"),
    ("seccomp", "EACCES EINVAL ENOMEM ENOSYS EOPNOTSUPP ESRCH"),
    ("landlock_create_ruleset", "EINVAL ENOMSG ENOSYS EOPNOTSUPP"),
    ("landlock_add_rule", "EINVAL ENOMSG EOPNOTSUPP EPERM"),
    ("landlock_restrict_self", "E2BIG EINVAL EOPNOTSUPP EPERM"),
    ("capset", "EINVAL EPERM ESRCH"),
    ("setuid, setgid, setresuid, setresgid, setgroups", "EAGAIN EINVAL ENOMEM EPERM"),
    // The allocator's and the standard library's.
    ("mmap", "EACCES EAGAIN EINVAL ENFILE ENODEV ENOMEM EOVERFLOW EPERM ETXTBSY"),
    ("munmap", "EINVAL ENOMEM"),
    ("mremap", "EAGAIN EINVAL ENOMEM"),
    ("mprotect", "EACCES EINVAL ENOMEM"),
    ("brk", "ENOMEM"),
    ("madvise", "EACCES EAGAIN EINVAL EIO ENOMEM EPERM"),
    ("clone, clone3", "EAGAIN EINVAL ENOMEM ENOSPC EPERM EUSERS"),
    ("sigaltstack", "EINVAL ENOMEM EPERM"),
    ("sched_getaffinity", "EINVAL ESRCH"),
    ("getrandom", "EAGAIN EINTR EINVAL ENOSYS"),
];

fn errno(name: &str) -> Option<Errno> {
    (1..=133).map(Errno::new).find(|errno| errno.name() == Some(name)).or(match name {
        "EWOULDBLOCK" => Some(Errno::EAGAIN),
        "EOPNOTSUPP" => Some(Errno::EOPNOTSUPP),
        "EDEADLK" => Some(Errno::EDEADLK),
        _ => None,
    })
}
