//! Current `Info` of an image, whose size may change while it is served.

use std::sync::atomic::Ordering;

use blk_core::storage::Info;

use super::sync::{AtomicU64, Mutex, lock};

/// An image's [`Info`], which a live resize replaces. Every handle keeps a copy, and takes a new one over when it polls.
#[derive(Debug)]
pub(super) struct SharedInfo {
    info: Mutex<Info>,
    /// `info.sectors`, for the check of every operation: no handle may go on by an end that has moved down.
    sectors: AtomicU64,
    epoch: AtomicU64,
}

impl SharedInfo {
    pub(super) fn new(info: Info) -> Self {
        let sectors = AtomicU64::new(info.sectors);
        Self { info: Mutex::new(info), sectors, epoch: AtomicU64::new(0) }
    }

    pub(super) fn get(&self) -> Info {
        *lock(&self.info)
    }

    /// The capacity now.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Counts the changes.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Before there are handles: records may be so long.
    pub(super) fn set_state_bytes(&self, bytes: u32) {
        lock(&self.info).state_bytes = bytes;
    }

    /// Changes the capacity, and returns what the image is then.
    pub(super) fn resize(&self, sectors: u64) -> Info {
        let mut info = lock(&self.info);
        if info.sectors != sectors {
            info.sectors = sectors;
            self.sectors.store(sectors, Ordering::Release);
            self.epoch.fetch_add(1, Ordering::AcqRel);
        }
        *info
    }
}
