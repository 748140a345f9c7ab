//! Signals that ask for the end, as a descriptor that is read (signalfd(2)).
//!
//! They are blocked in every thread, so no handler runs anywhere: a signal cannot be lost because what a handler does fails, and
//! none interrupts a system call. One that comes during the start waits until it is read.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long to wait after the descriptor could not be read.
const PAUSE: Duration = Duration::from_millis(100);

/// Signals are the process's own, and so is their descriptor.
static DESCRIPTOR: OnceLock<SignalFd> = OnceLock::new();

/// SIGTERM, SIGINT, and SIGHUP, which a closed terminal sends; the last not if the process was started with it ignored (nohup(1)).
#[derive(Debug)]
pub(super) struct Signals(&'static SignalFd);

impl Signals {
    /// Blocks the signals for this thread and those that it starts. To be called before there are others.
    pub(super) fn block() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        mask.add(Signal::SIGINT);
        if !is_ignored(libc::SIGHUP)? {
            mask.add(Signal::SIGHUP);
        }
        mask.thread_block()?;
        let descriptor = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
        Ok(Self(DESCRIPTOR.get_or_init(|| descriptor)))
    }

    /// Waits for the next one.
    pub(super) fn wait(&self) -> &'static str {
        loop {
            match self.0.read_signal() {
                Ok(Some(signal)) => {
                    let known =
                        i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
                    return known.map_or("a signal", Signal::as_str);
                }
                // Interrupted, or what should not be: the next signal is not to be lost for it.
                Ok(None) | Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

/// Whether one comes within `timeout` that nobody has read.
pub(super) fn comes_within(timeout: Duration) -> bool {
    let Some(descriptor) = DESCRIPTOR.get() else {
        thread::sleep(timeout);
        return false;
    };
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    matches!(poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&timeout)), Ok(1..))
}

fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the new action is null, so none is set; the old one is written to `action`, which has the room and the type that
    // sigaction(2) wants.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has succeeded, and so has filled it.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}
