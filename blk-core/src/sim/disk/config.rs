//! Configuration of a simulated disk.

use crate::storage::{CacheMode, Info};
use crate::units::SECTOR_BYTES;

/// Most segments of an operation on the disk.
pub(in crate::sim) const SEGMENTS_MAX: usize = 4;

/// Configuration of a simulated disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// How the host opened it: decides both the physics and what the disk says about itself.
    pub mode: CacheMode,
    /// Whether `fua: true` is honoured, and advertised.
    pub native_fua: bool,
    /// Storage handles: one for each queue or drive of the front.
    pub handles: usize,
    /// Operations that a handle takes before it is busy.
    pub depth: usize,
    /// Capacity in 512-byte sectors.
    pub sectors: u64,
    /// Bytes of each staging buffer.
    pub staging_bytes: u32,
    /// Whether `cancels` drops what is in flight and promises that it does not land; elsewhere it promises nothing.
    pub cancels: bool,
}

impl DiskConfig {
    /// A disk of 64 KiB with one handle, room for 8 operations and no native FUA.
    #[must_use]
    pub const fn new(mode: CacheMode) -> Self {
        Self {
            mode,
            native_fua: false,
            handles: 1,
            depth: 8,
            sectors: 128,
            staging_bytes: 1024,
            cancels: false,
        }
    }

    pub(super) fn info(&self) -> Info {
        Info {
            sectors: self.sectors,
            logical_block_bytes: SECTOR_BYTES,
            physical_block_bytes: SECTOR_BYTES,
            optimal_io_bytes: 0,
            read_only: false,
            rotational: false,
            cache: self.mode.cache(),
            fua: self.native_fua,
            range_stable: false,
            discard: true,
            staging_bytes: self.staging_bytes,
            segments_max: SEGMENTS_MAX as u16,
            transfer_max_bytes: 1 << 16,
            holds: true,
            state_bytes: SECTOR_BYTES,
        }
    }
}
