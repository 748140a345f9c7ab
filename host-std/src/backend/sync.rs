//! Locks and atomics of what threads hand each other, which the model checker `loom` replaces in its models.

#[cfg(not(all(test, loom)))]
pub(super) use self::real::*;

#[cfg(not(all(test, loom)))]
mod real {
    pub(in crate::backend) use std::sync::Mutex;
    pub(in crate::backend) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

    pub(in crate::backend) use crate::mutex::lock;
}

#[cfg(all(test, loom))]
pub(super) use self::modelled::*;

#[cfg(all(test, loom))]
mod modelled {
    pub(in crate::backend) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
    pub(in crate::backend) use loom::sync::{Mutex, MutexGuard};

    pub(in crate::backend) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no thread of a model panics with it")
    }
}
