//! Held requests of a device: their number for the operator, and the operator's word that they may be tried again.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use serde::{Deserialize, Serialize};

/// A request that the host failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The image.
    pub image: String,
    /// What was to be done: `read`, `write`, `write-zeroes`, `discard` or `flush`.
    pub operation: Cow<'static, str>,
    /// The sector concerned, in units of 512 bytes, where it is known.
    pub lba: Option<u64>,
    /// What went wrong.
    pub error: Cow<'static, str>,
    /// Whether the request is held, so that the device has to be paused; else the guest was told.
    pub held: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.image, self.operation)?;
        if let Some(lba) = self.lba {
            write!(f, " at sector {lba}")?;
        }
        write!(f, ": {}", self.error)
    }
}

/// What the handles of a device share with its operator: the images of a virtio-scsi host share one.
#[derive(Debug)]
pub struct HeldRequests {
    /// Counts the times that held requests were let go.
    epoch: AtomicU32,
    /// Requests held now, by all handles.
    held: AtomicU32,
    /// The epoch in which one was held last.
    held_in: AtomicU32,
    /// The server ends: nothing is held any more.
    ending: AtomicBool,
    failures: SyncSender<Failure>,
}

impl HeldRequests {
    /// Tells of failures by `failures`, and of none while that is full: whoever receives them asks
    /// [`Self::wants_pause`] after each.
    #[must_use]
    pub const fn new(failures: SyncSender<Failure>) -> Self {
        Self {
            epoch: AtomicU32::new(0),
            held: AtomicU32::new(0),
            held_in: AtomicU32::new(0),
            ending: AtomicBool::new(false),
            failures,
        }
    }

    /// Requests that are held.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held.load(Ordering::Acquire)
    }

    /// Whether a request has been held since [`Self::retry`] was called last, so that the device has to be paused.
    #[must_use]
    pub fn wants_pause(&self) -> bool {
        self.held() != 0 && self.held_in.load(Ordering::Acquire) == self.epoch()
    }

    /// Lets held requests be submitted again, each when its handle is polled next. Whoever polls the handles has to be woken.
    pub fn retry(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    /// Lets held requests end with their errors, and holds none from now on: the server ends. Wake the pollers, as above.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.retry();
    }

    pub(super) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn hold(&self) {
        self.held_in.store(self.epoch(), Ordering::Release);
        self.held.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn let_go(&self, requests: u32) {
        self.held.fetch_sub(requests, Ordering::AcqRel);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    pub(super) fn tell(&self, failure: Failure) {
        match self.failures.try_send(failure) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(failure)) => tracing::warn!(?failure, "a failure that nobody is told of"),
        }
    }
}
