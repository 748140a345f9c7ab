//! Options with which an image is opened and served.

use std::path::PathBuf;
use std::time::Duration;

use blk_core::storage::CacheMode;

use super::limits::TRANSFER_MAX_BYTES;

/// What makes reads and writes. (Flushes, range operations and what direct I/O does not take as it is always have threads; see
/// the [module](super).)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IoEngine {
    /// The fastest that there is: on the queue's own thread what waits for no device, the rest through an io_uring where it
    /// is permitted and faster, or by worker threads.
    #[default]
    Auto,
    /// Worker threads.
    Threads,
    /// An io_uring; without one a handle is refused.
    Ring,
}

impl IoEngine {
    /// The name by which an operator gives it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Threads => "threads",
            Self::Ring => "uring",
        }
    }

    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Threads, Self::Ring];
}

/// Place of the records that devices keep beside the disk's contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StatePlace {
    /// There is none: what would need one is not offered to guests.
    #[default]
    Nowhere,
    /// The file `IMAGE.state` beside the image, made if it is not there. None beside a block device, an image that is only read, and
    /// where the folder is not to be written.
    Beside,
    /// This file, made if it is not there. An image that is only read is refused with it.
    At(PathBuf),
}

/// Far more than what keeps a disk busy: at 10 GB/s, what it moves in 25 ms.
const IN_FLIGHT_BYTES: u64 = 256 << 20;
/// Room for one operation of any size.
const PRIVATE_BYTES: u64 = TRANSFER_MAX_BYTES as u64;

/// Options with which an image is opened and served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The cache mode.
    pub mode: CacheMode,
    /// Refuse writes, and let other readers in.
    pub read_only: bool,
    /// Logical block in bytes, 512 to 65536; by default 512 for a file, and the device's own for a block device. A smaller
    /// one than a device has costs a read-modify-write with `O_DIRECT`.
    pub logical_block_bytes: Option<u32>,
    /// Make the image, for its owner alone, or extend it, to so many bytes, once it is locked. It is never made smaller. If it cannot be
    /// opened after all, it is as it was before.
    pub size: Option<u64>,
    /// Threads that read and write: the transfers that the kernel works on at a time. 1 to [`WORKERS_MAX`](Self::WORKERS_MAX).
    pub workers: u16,
    /// Operations in flight, and staging buffers, of each handle. 1 to 128.
    pub depth: u16,
    /// Bytes of reads and writes in flight, of all handles together: what is beyond waits. A larger operation is done alone.
    pub in_flight_bytes_max: u64,
    /// Memory, of all handles together, for the data of requests whose own memory is not mapped into this process; as above.
    pub private_bytes_max: u64,
    /// Lock the image against other programs.
    pub lock: bool,
    /// How long to wait for the lock, or the device, if another program has it. One that was killed gives it up when the last
    /// of its operations has ended.
    pub lock_wait: Duration,
    /// Use `RWF_DSYNC` for FUA where it is known to be honoured; if false, FUA is a write and a flush.
    pub native_fua: bool,
    /// What makes reads and writes.
    pub engine: IoEngine,
    /// Where devices keep what they remember.
    pub state: StatePlace,
}

impl FileOptions {
    /// Most threads that read and write.
    pub const WORKERS_MAX: u16 = 64;

    /// The defaults, in a cache mode: writable, locked without waiting, 4 workers, 128 operations, 256 MiB in flight and as much
    /// private memory, the fastest engine, no records.
    #[must_use]
    pub const fn new(mode: CacheMode) -> Self {
        Self {
            mode,
            read_only: false,
            logical_block_bytes: None,
            size: None,
            workers: 4,
            depth: 128,
            in_flight_bytes_max: IN_FLIGHT_BYTES,
            private_bytes_max: PRIVATE_BYTES,
            lock: true,
            lock_wait: Duration::ZERO,
            native_fua: true,
            engine: IoEngine::Auto,
            state: StatePlace::Nowhere,
        }
    }
}
