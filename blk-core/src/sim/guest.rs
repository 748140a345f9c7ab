//! Actions of a guest program, and the driver that puts them into a front's own bytes.

use heapless::Vec;
use serde::{Deserialize, Serialize};

/// Where drivers keep things in guest memory. The explorer's memory keeps only what can differ between states; a host
/// that runs the same drivers maps [`layout::BYTES`] bytes and fills the source pages.
pub mod layout {
    use crate::units::GuestAddr;

    /// Rings, PRD tables, headers and status bytes: `RAM_BYTES` from address 0 on.
    pub const RAM_BYTES: u64 = 0x2000;
    /// First source page.
    pub const SOURCES: u64 = 0x10_0000;
    /// First sink page.
    pub const SINKS: u64 = 0x20_0000;
    /// All of it.
    pub const BYTES: u64 = 0x30_0000;
    /// Bytes of a source or sink page.
    pub const PAGE_BYTES: u64 = 0x1000;

    /// A page in which every byte is `value`: the data of a write. Nothing writes to it.
    #[must_use]
    pub const fn source(value: u8) -> GuestAddr {
        GuestAddr(SOURCES.wrapping_add((value as u64).wrapping_mul(PAGE_BYTES)))
    }

    /// The page where the read of program step `id` lands.
    #[must_use]
    pub const fn sink(id: u8) -> GuestAddr {
        GuestAddr(SINKS.wrapping_add((id as u64).wrapping_mul(PAGE_BYTES)))
    }
}

/// One or two of the two sectors that a program uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SectorRun {
    /// First sector: 0 or 1.
    pub first: u8,
    /// 1 or 2 sectors.
    pub count: u8,
}

impl SectorRun {
    /// Sector 0.
    pub const ZERO: Self = Self { first: 0, count: 1 };
    /// Sector 1.
    pub const ONE: Self = Self { first: 1, count: 1 };
    /// Both.
    pub const BOTH: Self = Self { first: 0, count: 2 };

    /// The sectors of the run.
    pub fn sectors(self) -> core::ops::Range<usize> {
        let first = usize::from(self.first);
        first..first.saturating_add(usize::from(self.count))
    }
}

/// One step of a guest program. The data that step `id` writes is `id + 1` in every byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A plain write.
    Write(SectorRun),
    /// A write with Force Unit Access.
    WriteFua(SectorRun),
    /// A write that is a barrier: virtio's legacy BARRIER, SCSI's ORDERED.
    WriteOrdered(SectorRun),
    /// Write zeroes (a WRITE SAME of zeroes).
    WriteZeroes(SectorRun),
    /// Discard (UNMAP, TRIM).
    Discard(SectorRun),
    /// Read.
    Read(SectorRun),
    /// FLUSH, SYNCHRONIZE CACHE, FLUSH CACHE.
    Flush,
    /// Turn the write cache off.
    CacheOff,
    /// Turn the write cache on.
    CacheOn,
    /// Reset the device, with requests in flight or without, and bring it up again.
    Reset,
}

impl Action {
    /// Plain writes: of each sector, and of both.
    pub const WRITES: [Self; 3] =
        [Self::Write(SectorRun::ZERO), Self::Write(SectorRun::ONE), Self::Write(SectorRun::BOTH)];

    /// The sectors that it is about.
    #[must_use]
    pub const fn run(self) -> Option<SectorRun> {
        match self {
            Self::Write(run)
            | Self::WriteFua(run)
            | Self::WriteOrdered(run)
            | Self::WriteZeroes(run)
            | Self::Discard(run)
            | Self::Read(run) => Some(run),
            Self::Flush | Self::CacheOff | Self::CacheOn | Self::Reset => None,
        }
    }
}

/// The steps of all `parts`, which are `N`, in order.
#[must_use]
pub const fn alphabet<const N: usize>(parts: &[&[Action]]) -> [Action; N] {
    let mut all = [Action::Flush; N];
    let (mut part, mut len) = (0, 0);
    while part < parts.len() {
        let mut index = 0;
        while index < parts[part].len() {
            all[len] = parts[part][index];
            (index, len) = (index + 1, len + 1);
        }
        part += 1;
    }
    assert!(len == N);
    all
}

/// End of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Outcome {
    /// Success. For a read: the values of the sectors read, in order, `None` for a sector that was torn.
    Ok {
        /// Values read; empty for anything but a read.
        read: [Option<u8>; 2],
    },
    /// The device reported an error.
    Failed,
    /// A reset took it away.
    Aborted,
}

impl Outcome {
    /// Success of anything but a read.
    pub const DONE: Self = Self::Ok { read: [None; 2] };
}

/// A step has ended, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Ended {
    /// Which step.
    pub id: u8,
    /// How.
    pub outcome: Outcome,
}

/// A driver together with the device that it drives: plain data, so that the explorer can clone, hash and compare it.
///
/// `M` is the memory and `S` the storage, which come in with each call: as for [`Device`](crate::bus::Device), `S` is a slice
/// of handles, one for each queue or drive. The `Serialize` implementation is the state that
/// the explorer hashes: everything that can make two futures differ, and nothing else.
pub trait Guest<M: ?Sized, S: ?Sized>: Clone + Serialize {
    /// The steps that this front can express.
    fn alphabet(&self) -> &'static [Action];

    /// Steps that may be outstanding at once.
    fn depth(&self) -> usize;

    /// Whether `action` can be issued now: a vCPU that waits for a pending register write issues nothing, and a front
    /// without a queue nothing but a reset while it is busy.
    fn accepts(&self, action: Action) -> bool;

    /// Issues program step `id` through registers, rings or command blocks, and lets the device look at it.
    fn issue(&mut self, id: u8, action: Action, memory: &M, storage: &mut S);

    /// Polls the device until it waits for the storage, serves its interrupts, and returns the steps that ended, in order.
    fn poll(&mut self, memory: &M, storage: &mut S) -> Vec<Ended, 16>;

    /// Whether the bus advertises a volatile write cache at this moment, as the guest would read it.
    fn write_cache(&self) -> bool;

    /// Whether, for what is issued at this moment, a barrier is promised to hold across a power cut too: neither it nor
    /// anything after it is on the medium without everything before it. By default exactly while no volatile write
    /// cache is advertised, as for SCSI's ORDERED. A front whose barrier flushes, as virtio's does, always promises it.
    fn ordered_crash(&self) -> bool {
        !self.write_cache()
    }
}
