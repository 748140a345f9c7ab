//! Locking.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. No code of ours panics while it holds a lock half-way through a change, so poisoning is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
