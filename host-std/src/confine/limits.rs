//! Limits that a process is started with.

use std::fmt;
use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// The limit on open descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The soft limit that the process was started with; `None` is no limit.
    pub before: Option<u64>,
    /// The one that it has now.
    pub now: Option<u64>,
    /// The hard limit, which only an operator raises.
    pub hard: Option<u64>,
}

/// Raises the soft limit on descriptors to the hard one. The soft limit is low for the sake of
/// programs that use select(2).
///
/// # Errors
/// The kernel's, which has no reason for one.
pub fn raise_descriptors() -> io::Result<Descriptors> {
    let before = descriptor_limit()?;
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    // A soft limit up to the hard one is always permitted; if it is refused all the same, the old
    // one holds.
    let now = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { before };
    Ok(Descriptors { before: before.current, now: now.current, hard: now.maximum })
}

/// Rustix's `getrlimit` panics where the call fails, as a filter of system calls may have it.
fn descriptor_limit() -> io::Result<Rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` (getrlimit(2)), which `limit` is, and keeps no pointer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let known = |value| (value != libc::RLIM_INFINITY).then_some(value);
    Ok(Rlimit { current: known(limit.rlim_cur), maximum: known(limit.rlim_max) })
}

impl fmt::Display for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |limit: Option<u64>| limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string());
        let Self { before, now, hard } = *self;
        write!(f, "open files: {} (was {}, hard limit {})", text(now), text(before), text(hard))
    }
}

/// A write beyond the limit on file sizes fails with EFBIG, which its guest is told; the signal
/// would end the process, and with it every guest's disk. Call it at the start.
///
/// # Errors
/// The kernel's, which has no reason for one.
pub fn ignore_file_size_signal() -> io::Result<()> {
    // SAFETY: SIG_IGN is no handler of ours, so that nothing runs in a signal's context; no other
    // code relies on what this signal does, which is to end the process (signal(7), SIGXFSZ).
    match unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
