//! The storage under a model: its contract, and the truth about its cache.

use core::fmt;

use crate::op::{Op, Segment};
use crate::units::{Lba, Tag};

/// Durability of a completed plain write on this storage. The truth about the host, not the guest's wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Cache {
    /// A completed write is stable (`O_DSYNC`, or a disk without a volatile cache).
    WriteThrough,
    /// A completed write may be lost until a flush that was submitted after its completion has completed.
    WriteBack,
    /// Nothing is ever stable and a flush does nothing: declared, never silently assumed.
    Unsafe,
}

/// Properties and capabilities of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Info {
    /// Capacity in 512-byte sectors, a multiple of the logical block.
    pub sectors: u64,
    /// Smallest addressable unit in bytes: a power of two, 512 at least.
    pub logical_block_bytes: u32,
    /// Unit that is written without a read-modify-write: a power of two, at least the logical block.
    pub physical_block_bytes: u32,
    /// Preferred transfer in bytes; 0 where nothing is known.
    pub optimal_io_bytes: u32,
    /// Writes are refused with [`IoErrorKind::ReadOnly`]. A flush is not.
    pub read_only: bool,
    /// Whether seeks cost time.
    pub rotational: bool,
    /// What a completed plain write is worth.
    pub cache: Cache,
    /// Whether `Op::Write { fua: true }` is honoured natively. Never set by a storage that might ignore it.
    pub fua: bool,
    /// Whether write-zeroes and discard are stable on completion. `O_DSYNC` does not make them so.
    pub range_stable: bool,
    /// Whether `Op::Discard` releases space; elsewhere it succeeds and leaves the data.
    pub discard: bool,
    /// Bytes of the staging buffer of each slot, a multiple of 512; 0 where there is none.
    pub staging_bytes: u32,
    /// Most segments that one operation may have.
    pub segments_max: u16,
    /// Most bytes that one read or write may move.
    pub transfer_max_bytes: u32,
    /// Whether `Op::Hold` keeps every other writer of the storage out. Where it does not, commands that compare and then write are
    /// not offered.
    pub holds: bool,
    /// Most bytes of a record that survives a loss of power beside the disk's contents; 0 where there is no place for one, and
    /// then what would need one is not offered.
    pub state_bytes: u32,
}

impl Info {
    /// A disk that is not there: no sectors, and nothing that could be done to them.
    pub const ABSENT: Self = Self {
        sectors: 0,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        optimal_io_bytes: 0,
        read_only: true,
        rotational: false,
        cache: Cache::WriteThrough,
        fua: false,
        range_stable: false,
        discard: false,
        staging_bytes: 0,
        segments_max: 1,
        transfer_max_bytes: 1 << 20,
        holds: false,
        state_bytes: 0,
    };

    /// Sectors in a logical block: 1 at least.
    #[must_use]
    pub const fn sectors_per_block(&self) -> u64 {
        let sectors = (self.logical_block_bytes >> 9) as u64;
        if sectors == 0 { 1 } else { sectors }
    }

    /// Whether a guest must be shown a volatile write cache: exactly where completed writes are not stable.
    #[must_use]
    pub const fn has_volatile_cache(&self) -> bool {
        !matches!(self.cache, Cache::WriteThrough)
    }
}

/// Cache mode: how a host file or device is opened, and so how durable its completed writes are.
///
/// The names are those of the leading emulator's `cache=` option. The table below is the only place where a mode is
/// given its meaning: the file backend opens by it, and the crash explorer's disk is built from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CacheMode {
    /// Page cache, every write `O_DSYNC`.
    WriteThrough,
    /// Page cache, stable after fdatasync.
    WriteBack,
    /// `O_DIRECT`; the disk's own cache is volatile until fdatasync.
    None,
    /// `O_DIRECT` and `O_DSYNC`.
    DirectSync,
    /// Page cache, flushes ignored: nothing is stable.
    Unsafe,
}

impl CacheMode {
    /// Every mode, in the order of the integrity table.
    pub const ALL: [Self; 5] =
        [Self::WriteThrough, Self::WriteBack, Self::None, Self::DirectSync, Self::Unsafe];

    /// The name by which an operator gives the mode.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteThrough => "writethrough",
            Self::WriteBack => "writeback",
            Self::None => "none",
            Self::DirectSync => "directsync",
            Self::Unsafe => "unsafe",
        }
    }

    /// Whether the image is opened `O_DIRECT`.
    #[must_use]
    pub const fn direct(self) -> bool {
        matches!(self, Self::None | Self::DirectSync)
    }

    /// Whether the image is opened `O_DSYNC`.
    #[must_use]
    pub fn dsync(self) -> bool {
        let dropped = crate::mutant::active(crate::mutant::Mutant::DsyncDropped);
        matches!(self, Self::WriteThrough | Self::DirectSync) && !dropped
    }

    /// Durability of a completed plain write in this mode.
    #[must_use]
    pub fn cache(self) -> Cache {
        match self {
            Self::WriteThrough | Self::DirectSync => Cache::WriteThrough,
            Self::None if crate::mutant::active(crate::mutant::Mutant::DirectTakenAsDurable) => {
                Cache::WriteThrough
            }
            Self::WriteBack | Self::None => Cache::WriteBack,
            Self::Unsafe => Cache::Unsafe,
        }
    }
}

/// Nothing was taken; the same operation may be submitted again once something has completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Busy;

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the storage takes nothing until an operation has completed")
    }
}

impl core::error::Error for Busy {}

/// What became of an operation that a storage took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum Submission {
    /// It is in flight: a later [`Storage::poll`] delivers its one completion.
    Pending,
    /// It has ended, and no completion of it is delivered. A short transfer is an error, never a success.
    Done(Result<(), IoError>),
}

impl Submission {
    /// How the operation ended, if it has.
    #[must_use]
    pub const fn done(self) -> Option<Result<(), IoError>> {
        match self {
            Self::Pending => None,
            Self::Done(result) => Some(result),
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum IoErrorKind {
    /// The medium or the host failed it. A short transfer counts as this.
    Medium,
    /// The host has no space left.
    NoSpace,
    /// The storage is read-only.
    ReadOnly,
    /// The range lies outside the storage, or the segments do not add up to it.
    OutOfRange,
    /// A segment is not memory that may be accessed.
    Memory,
    /// An earlier durable operation failed: until an operator has checked the image, nothing more can be promised.
    Latched,
    /// The storage does not do this operation.
    Unsupported,
    /// There is no disk.
    Absent,
}

impl fmt::Display for IoErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Medium => "the medium or the host failed the operation",
            Self::NoSpace => "the host has no space left",
            Self::ReadOnly => "the storage is read-only",
            Self::OutOfRange => {
                "the operation goes beyond the storage, or its segments are not as long as it"
            }
            Self::Memory => "a segment is not memory that may be accessed",
            Self::Latched => "an earlier durable operation failed; check the image, then open it anew",
            Self::Unsupported => "the storage does not do this operation",
            Self::Absent => "there is no disk",
        })
    }
}

impl core::error::Error for IoErrorKind {}

/// A failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IoError {
    /// Why.
    pub kind: IoErrorKind,
    /// The first sector concerned, where it is known. A flush names the lowest sector that was dirty.
    pub lba: Option<Lba>,
}

impl IoError {
    /// An error of which no sector is known.
    #[must_use]
    pub const fn new(kind: IoErrorKind) -> Self {
        Self { kind, lba: None }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lba {
            Some(lba) => write!(f, "sector {}: {}", lba.0, self.kind),
            None => self.kind.fmt(f),
        }
    }
}

impl core::error::Error for IoError {}

impl From<IoErrorKind> for IoError {
    fn from(kind: IoErrorKind) -> Self {
        Self::new(kind)
    }
}

/// An accepted operation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Completion {
    /// The tag that it was submitted with.
    pub tag: Tag,
    /// How it ended. A short transfer is an error, never a success.
    pub result: Result<(), IoError>,
}

/// A disk's contents, behind asynchronous operations. `M` is the guest memory that its segments live in.
///
/// The contract:
/// - `submit` does not wait. `Busy` means that nothing was taken. [`Submission::Pending`] means exactly one completion, delivered
///   by a later `poll`. [`Submission::Done`] means that the operation has ended, which a storage may say of any operation that it
///   does at once, and of one and not of the next: wherever this contract says "completed" or "polled", such an operation
///   was completed, and its completion polled, just after it was submitted. It saves the storage a queue of completions, and
///   a request half of its way.
/// - Whoever counts what is in flight counts an operation before `submit`, and no longer once it is done or refused.
/// - Operations in flight may run in any order. Whoever needs an order waits for a completion first: of two operations of which
///   the first was done at once, the second is later.
/// - A flush covers the writes, write-zeroes and discards whose completions were polled before it was submitted, on
///   any handle to the same storage. A write that was done at once is covered by the next flush, not by one in flight.
/// - A write that is done at once is as stable as any other: only a native FUA, a write-through cache or a flush afterwards
///   makes it so. If that flush is refused as busy, the request stays in flight until it has been done.
/// - A reset awaits what is pending; what was done at once has landed.
/// - An [`Op::Hold`] completes when the mutations that other handles have in flight have completed, and no other slot holds any
///   of its sectors; those that wait take turns. Until [`release_hold`](Self::release_hold) the mutations of other handles that
///   overlap it wait, submitted and not begun. Its own handle's go on: their order is their owner's. Whoever drops a handle, or
///   is promised by `cancel_in_flight` that nothing lands, has let go of its holds.
/// - An [`Op::StoreState`] is durable by itself: no flush is asked for it, and a loss of power leaves the record as it was, or as
///   it was stored.
/// - A failed durable operation is sticky: from then on [whatever changes or promises something](Op::fails_when_latched) fails with
///   [`IoErrorKind::Latched`]; reads go on. A reset of the device does not clear it.
/// - Segments are read during `submit` and kept, if need be, by the storage; the caller's slice may go away.
/// - Ranges are checked against the capacity here too, although the models have checked them.
pub trait Storage<M: ?Sized> {
    /// The storage's properties. Cheap: models ask at every command.
    fn info(&self) -> &Info;

    /// Starts an operation.
    ///
    /// # Errors
    /// [`Busy`] if it cannot be taken now.
    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy>;

    /// The next completion, if there is one.
    fn poll(&mut self, memory: &M) -> Option<Completion>;

    /// The staging buffer of `slot`: [`Info::staging_bytes`] long, or empty if there is no such buffer or an operation
    /// that uses it is in flight. Its contents stay until the next operation that uses it: the ranges of a TRIM wait in one
    /// while they are discarded.
    fn staging(&mut self, slot: u16) -> &mut [u8];

    /// Ends the hold of `slot`, which has completed; without effect where it has none.
    fn release_hold(&mut self, slot: u16) {
        let _ = slot;
    }

    /// Promises, if it returns true, that nothing submitted before lands any more, in memory or on the disk, and that
    /// no completion of it will be delivered. A storage that cannot promise this returns false.
    fn cancel_in_flight(&mut self) -> bool {
        false
    }
}

impl<M: ?Sized, S: Storage<M> + ?Sized> Storage<M> for &mut S {
    fn info(&self) -> &Info {
        (**self).info()
    }

    #[inline]
    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        (**self).submit(memory, tag, op, segments)
    }

    fn poll(&mut self, memory: &M) -> Option<Completion> {
        (**self).poll(memory)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        (**self).staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        (**self).release_hold(slot);
    }

    fn cancel_in_flight(&mut self) -> bool {
        (**self).cancel_in_flight()
    }
}

/// A place for a disk: `None` is one that is not there, [`Info::ABSENT`], and every operation on it ends with
/// [`IoErrorKind::Absent`]. Once something is in flight on a disk it may not be taken away before that has completed.
impl<M: ?Sized, S: Storage<M>> Storage<M> for Option<S> {
    fn info(&self) -> &Info {
        self.as_ref().map_or(&Info::ABSENT, S::info)
    }

    #[inline]
    fn submit(&mut self, memory: &M, tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        match self {
            Some(storage) => storage.submit(memory, tag, op, segments),
            None => Ok(Submission::Done(Err(IoErrorKind::Absent.into()))),
        }
    }

    #[inline]
    fn poll(&mut self, memory: &M) -> Option<Completion> {
        self.as_mut()?.poll(memory)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.as_mut().map_or(&mut [], |storage| storage.staging(slot))
    }

    fn release_hold(&mut self, slot: u16) {
        if let Some(storage) = self {
            storage.release_hold(slot);
        }
    }

    /// Where there is no disk, nothing is in flight.
    fn cancel_in_flight(&mut self) -> bool {
        self.as_mut().is_none_or(S::cancel_in_flight)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn an_error_says_where_and_what() {
        let full = IoError { kind: IoErrorKind::NoSpace, lba: Some(Lba(7)) };
        assert_eq!(full.to_string(), "sector 7: the host has no space left");
        assert_eq!(IoError::new(IoErrorKind::ReadOnly).to_string(), "the storage is read-only");
    }

    #[test]
    fn a_disk_that_is_not_there_ends_everything_at_once() {
        use crate::memory::CellMemory;
        use crate::ram::{Ram, RamDisk};
        use crate::units::GuestAddr;
        let (mut ram, mut image) = ([0; 512], [0; 1024]);
        let memory = CellMemory::new(GuestAddr(0), &mut ram);
        let mut places = [None, Some(RamDisk::<1>::new(Ram::new(&mut image), &mut []))];
        let ends = places.each_mut().map(|place| {
            assert!(Storage::<CellMemory<'_>>::staging(place, 0).is_empty());
            place.submit(&memory, Tag::default(), Op::Flush, &[])
        });
        let absent = Submission::Done(Err(IoErrorKind::Absent.into()));
        assert_eq!(ends, [Ok(absent), Ok(Submission::Done(Ok(())))]);
        let sectors = places.each_ref().map(|place| Storage::<CellMemory<'_>>::info(place).sectors);
        assert_eq!(sectors, [0, 2]);
    }
}
