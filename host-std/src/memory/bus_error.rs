//! Memory of a client that goes away while it is mapped here: its faults end nothing but that client.
//!
//! A client may cut a file of its memory short, or hand over pages that the host cannot provide: a hole on a full tmpfs, huge pages
//! of an empty pool. Whoever touches such a page gets SIGBUS, which would end the process and every guest with it. (The kernel's own
//! accesses, for a read or a write of an image, fail with `EFAULT` instead.) The handler here puts a page of zeroes in its place,
//! notes in the client's [`BusErrors`] that its memory is gone, and lets the access go on. The server sees the note and lets the
//! client go; what was read or written meanwhile is that client's own loss.
//!
//! ```text
//! access -> SIGBUS -> handler: find the mapping in the list -> mmap zeroes over the page, BusErrors = true -> access again
//!                              not found -> the handler before this one (Rust's: stack overflows; then the default)
//! ```

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Whether memory of a client has gone away.
#[derive(Debug, Default)]
pub struct BusErrors(AtomicBool);

impl BusErrors {
    /// Whether an access has met memory that was gone.
    #[inline]
    #[must_use]
    pub fn have_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Forgets it, for another client.
    pub fn forget(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A mapping in the handler's list. It leaves the list when it is dropped, which has to be before the mapping goes.
#[derive(Debug)]
pub(super) struct Watch {
    node: &'static Node,
    /// What `node` points to.
    _errors: Arc<BusErrors>,
}

/// An entry of the list. The handler reads it without a lock, in the thread that faulted, at any moment. Entries are never freed:
/// those of mappings that are gone are used again.
#[derive(Debug)]
struct Node {
    /// Odd while the other fields change: the handler passes the entry by. It never is for the mapping of an access at hand.
    version: AtomicUsize,
    start: AtomicUsize,
    /// Bytes; 0 where the entry is free.
    len: AtomicUsize,
    /// Bytes of a page of the mapping.
    page: AtomicUsize,
    errors: AtomicPtr<BusErrors>,
    next: AtomicPtr<Node>,
}

static FIRST: AtomicPtr<Node> = AtomicPtr::new(std::ptr::null_mut());

/// Entries that are free. The lock also orders changes of the list.
static FREE: Mutex<Vec<&'static Node>> = Mutex::new(Vec::new());

impl Watch {
    /// Watches `len` bytes from `start` on, a mapping of pages of `page` bytes.
    pub(super) fn new(start: *const u8, len: usize, page: usize, errors: Arc<BusErrors>) -> Self {
        assert!(page.is_power_of_two(), "the size of a page");
        install();
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let node = free.pop().unwrap_or_else(Node::append);
        node.change(start.addr(), len, page, Arc::as_ptr(&errors).cast_mut());
        Self { node, _errors: errors }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        self.node.change(0, 0, 1, std::ptr::null_mut());
        free.push(self.node);
    }
}

impl Node {
    /// A new entry, at the front of the list. The caller holds the lock.
    fn append() -> &'static Self {
        let node: &'static Self = Box::leak(Box::new(Self {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(1),
            errors: AtomicPtr::new(std::ptr::null_mut()),
            next: AtomicPtr::new(FIRST.load(Ordering::Relaxed)),
        }));
        FIRST.store(std::ptr::from_ref(node).cast_mut(), Ordering::Release);
        node
    }

    /// The caller holds the lock.
    fn change(&self, start: usize, len: usize, page: usize, errors: *mut BusErrors) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.len.store(len, Ordering::SeqCst);
        self.page.store(page, Ordering::SeqCst);
        self.errors.store(errors, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// The page around an address and whose it is, if it is of this mapping.
    fn find(&self, address: usize) -> Option<(usize, usize, *const BusErrors)> {
        let version = self.version.load(Ordering::SeqCst);
        let (start, len) = (self.start.load(Ordering::SeqCst), self.len.load(Ordering::SeqCst));
        let (page, errors) = (self.page.load(Ordering::SeqCst), self.errors.load(Ordering::SeqCst));
        let stable = version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version;
        let within = address.wrapping_sub(start) < len;
        let offset = address.wrapping_sub(start) & !(page - 1);
        (stable && within).then(|| (start + offset, page.min(len - offset), errors.cast_const()))
    }
}

/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler = handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
        action.sa_sigaction = handler as libc::sighandler_t;
        // On the alternate stack, where the thread has one, as Rust's own handler is.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: as above.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: asks for the present action alone; `before` is one to be written to.
        unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) };
        let _ = BEFORE.set(before);
        // SAFETY: `action` outlives the call. Its handler has the type that SA_SIGINFO asks for and does only what may be done in a
        // signal handler: atomic accesses, mmap and sigaction, which are bare system calls.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    });
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo_t, whose address is set for a SIGBUS of a fault.
    let address = unsafe { (*info).si_addr() }.addr();
    if !mend(address) {
        pass_on(signal, info, context);
    }
}

/// Puts zeroes in the place of the page around an address, if it is a client's.
fn mend(address: usize) -> bool {
    let mut next = FIRST.load(Ordering::Acquire);
    // SAFETY: entries are leaked, so that a pointer to one is valid for ever; each is complete before it is in the list.
    while let Some(node) = unsafe { next.as_ref() } {
        if let Some((start, bytes, errors)) = node.find(address) {
            let place = std::ptr::with_exposed_provenance_mut(start);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: errno is this thread's own. It is put back, since the code that was interrupted may be about to read it.
            let errno = unsafe { *libc::__errno_location() };
            // SAFETY: replaces whole pages of a mapping that is being accessed, and so is alive; nobody relies on what is in
            // them, as they are memory that others may change at any time. The new ones are as accessible as the old.
            let mapped = unsafe { libc::mmap(place, bytes, access, flags, -1, 0) };
            // SAFETY: as above.
            unsafe { *libc::__errno_location() = errno };
            if mapped == libc::MAP_FAILED {
                return false;
            }
            // SAFETY: the watch of the mapping keeps it, and the mapping is alive.
            if let Some(errors) = unsafe { errors.as_ref() } {
                errors.0.store(true, Ordering::Relaxed);
            }
            return true;
        }
        next = node.next.load(Ordering::Acquire);
    }
    false
}

/// Not a client's: whoever was there before handles it, or the process ends as it would have.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: all zeroes is a valid sigaction, and means the default.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    let before = BEFORE.get().copied().unwrap_or(default);
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: `default` outlives the call. The access faults again when this returns, and ends the process.
            unsafe { libc::sigaction(signal, &raw const default, std::ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: whoever installed it said by SA_SIGINFO that it is such a function.
            let handler = unsafe { std::mem::transmute::<libc::sighandler_t, Handler>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO gave a function of one argument.
            let handler =
                unsafe { std::mem::transmute::<libc::sighandler_t, extern "C" fn(libc::c_int)>(handler) };
            handler(signal);
        }
    }
}
