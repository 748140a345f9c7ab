//! Choice of the operations that run on a queue's own thread, and the number of their bytes at a time.

use super::options::IoEngine;
use super::shared::Shared;
use super::syscalls::Syscalls;

/// Most bytes that a handle moves on the queue's own thread between two polls: as long as that takes (some 200 us), nothing else of
/// the device goes on, a register read included. What is beyond goes to the workers, also a write that the page cache would take
/// at once: the kernel may hold it back where there are too many dirty pages.
const BYTES_MAX: u64 = 1024 * 1024;

/// Which operations are done on the queue's own thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    None,
    /// Those that the page cache takes at once.
    Cached {
        reads: bool,
        writes: bool,
    },
    /// All: the image lies in memory.
    All,
}

impl Calls {
    pub(super) fn of<S: Syscalls>(shared: &Shared<S>, engine: IoEngine) -> Self {
        let image = &shared.image;
        if engine != IoEngine::Auto || !shared.syscalls.may_run_inline() {
            Self::None
        } else if image.in_memory {
            Self::All
        } else if image.direct.is_some() {
            Self::None
        } else {
            // A write that is to be stable waits for the device.
            Self::Cached { reads: true, writes: !image.dsync }
        }
    }
}

/// What is left of [`BYTES_MAX`] until the next poll.
#[derive(Debug)]
pub(super) struct InlineBudget(u64);

impl InlineBudget {
    pub(super) const fn new() -> Self {
        Self(BYTES_MAX)
    }

    /// What is left.
    pub(super) const fn left(&self) -> u64 {
        self.0
    }

    /// Takes `bytes` off. False, and nothing is taken, if there are not so many left.
    pub(super) const fn take(&mut self, bytes: u64) -> bool {
        match self.0.checked_sub(bytes) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}
