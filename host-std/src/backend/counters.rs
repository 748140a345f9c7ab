//! Counters of a backend.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since a backend was opened, all handles together: requests taken beside system calls made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "server", derive(serde::Serialize, serde::Deserialize))]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Read requests.
    reads,
    /// Write requests, those with FUA included.
    writes,
    /// Write requests with FUA.
    fua_requests,
    /// Flush requests.
    flushes,
    /// Write-zeroes and discard requests.
    ranges,
    /// Calls of fdatasync, failed ones included.
    fdatasync_calls,
    /// Write calls on a file opened `O_DSYNC`.
    dsync_writes,
    /// Write calls with `RWF_DSYNC`.
    fua_writes,
    /// Requests that went through a bounce buffer.
    bounced,
    /// Bytes read for requests.
    bytes_read,
    /// Bytes written for requests.
    bytes_written,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
