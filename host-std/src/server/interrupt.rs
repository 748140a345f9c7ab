//! A signal that ends a wait in a system call, for a thread that hangs in a descriptor of its client's.
//!
//! Such a thread is in a call that the client made wait, against the flag that we set (see [`client_fd`](super::client_fd)), and
//! only a signal gets it out. The handler does nothing; the call returns `EINTR`. A signal that comes before the call is of no
//! effect, so whoever waits for the thread sends it again and again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::thread::gettid;

/// Nobody else uses it: its default is to be ignored, and it means out-of-band data on sockets, of which there are none here.
const SIGNAL: libc::c_int = libc::SIGURG;

/// A thread that may be interrupted, once it has begun.
#[derive(Debug, Default)]
pub(super) struct Interruptible {
    /// 0: it has not begun.
    thread: AtomicI32,
}

impl Interruptible {
    /// The calling thread is the one.
    pub(super) fn begin(&self) {
        static INSTALLED: OnceLock<()> = OnceLock::new();
        INSTALLED.get_or_init(install);
        self.thread.store(gettid().as_raw_nonzero().get(), Ordering::Release);
    }

    /// Ends the wait that the thread is in, if it is in one.
    pub(super) fn interrupt(&self) {
        let thread = self.thread.load(Ordering::Acquire);
        if thread != 0 {
            // SAFETY: tgkill takes three integers and touches no memory. If the thread has ended, its number names nothing, or
            // another thread of this process, in which the handler does nothing either.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL) };
        }
    }
}

extern "C" fn do_nothing(_signal: libc::c_int) {}

/// Without `SA_RESTART`: the call that was interrupted returns.
fn install() {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = do_nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: `action` outlives the call, its handler is a function of the right type that does nothing, which is safe in any
    // thread at any moment. The old action is not asked for.
    let result = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!(
            "a client that makes a thread hang in its descriptor cannot be let go: sigaction: {error}"
        );
    }
}
