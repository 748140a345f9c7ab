//! What direct I/O cannot take as it is: odd addresses, and parts of blocks.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, PoisonError};

use blk_core::storage::{IoError, IoErrorKind};
use rustix::io::Errno;
use vm_memory::mmap::MmapRegion;

use super::engine::Worker;
use super::host::Host;
use super::image::Alignment;
use super::iovecs::IoVecs;
use super::queue::lock;
use crate::memory::HostRange;

/// Bytes that go through a bounce buffer at a time: a multiple of every alignment that an image may have.
const BOUNCE_BYTES: usize = 256 * 1024;

/// A worker's bounce buffer. One each, so that none waits for another's.
pub(super) struct Bounce {
    /// `BOUNCE_BYTES` of `_mapping`, aligned as direct I/O demands.
    start: NonNull<u8>,
    _mapping: MmapRegion,
    iovecs: IoVecs,
}

// SAFETY: `start` points into `_mapping`, which nobody else uses and which moves with it.
unsafe impl Send for Bounce {}

impl Bounce {
    pub(super) fn new(direct: Alignment) -> Result<Self, Errno> {
        let align = direct.memory as usize;
        let mapping = MmapRegion::new(BOUNCE_BYTES + align).map_err(|_| Errno::NOMEM)?;
        let base = mapping.as_ptr();
        let skip = base.addr().next_multiple_of(align) - base.addr();
        let start = NonNull::new(base.wrapping_add(skip)).ok_or(Errno::NOMEM)?;
        Ok(Self { start, _mapping: mapping, iovecs: IoVecs::new() })
    }

    fn bytes(&mut self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= BOUNCE_BYTES, "a part of the bounce buffer");
        // SAFETY: within the `BOUNCE_BYTES` that are mapped from `start` on. `self` is borrowed as long as the slice lives, so
        // that there is no other, and the kernel uses the buffer only inside `transfer`.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(range.start), range.len()) }
    }

    /// Hands a part of the buffer to `f` as iovecs.
    fn transfer<R>(&mut self, range: Range<usize>, f: impl FnOnce(&mut IoVecs) -> R) -> R {
        let part = NonNull::from(self.bytes(range.clone())).cast::<u8>();
        self.iovecs.clear();
        // SAFETY: the part is mapped as long as `self` lives, and borrowed until the list is cleared below. An empty list has room.
        let pushed = unsafe { self.iovecs.push(HostRange { start: part, len: range.len() }) };
        debug_assert!(pushed.is_ok());
        let result = f(&mut self.iovecs);
        self.iovecs.clear();
        result
    }
}

/// Where the bytes of a write come from.
pub(super) enum Source<'a> {
    Memory(&'a mut IoVecs),
    Zeroes,
}

/// A part of a transfer that fits in the buffer: the bytes wanted, and the whole blocks around them.
struct Piece {
    wanted: Range<u64>,
    blocks: Range<u64>,
}

impl Piece {
    /// The piece of `range` that begins at `at`.
    fn of(range: &Range<u64>, at: u64, unit: u64) -> Self {
        let start = at - at % unit;
        let end = range.end.next_multiple_of(unit).min(start + BOUNCE_BYTES as u64);
        Self { wanted: at..range.end.min(end), blocks: start..end }
    }

    /// Where `range` of the file lies in the buffer.
    fn in_buffer(&self, range: &Range<u64>) -> Range<usize> {
        // Differences of at most BOUNCE_BYTES.
        (range.start - self.blocks.start) as usize..(range.end - self.blocks.start) as usize
    }

    /// The blocks that are written only in part: they have to be read first.
    fn partial(&self, unit: u64) -> [Option<Range<u64>>; 2] {
        let first = self.blocks.start..self.blocks.start + unit;
        let last = self.blocks.end - unit..self.blocks.end;
        let head = self.wanted.start != self.blocks.start;
        let tail = self.wanted.end != self.blocks.end;
        [head.then(|| first.clone()), (tail && !(head && first == last)).then_some(last)]
    }
}

impl<H: Host> Worker<H> {
    /// The blocks of direct I/O that bytes of the file touch.
    pub(super) fn blocks(&self, range: Range<u64>) -> Range<u64> {
        let unit = self.unit();
        range.start - range.start % unit..range.end.next_multiple_of(unit)
    }

    /// Holds the blocks of direct I/O that bytes of the file touch.
    pub(super) fn hold<'a>(&self, ranges: &'a RangeLock, range: Range<u64>) -> HeldRange<'a> {
        ranges.hold(self.id, self.blocks(range))
    }

    pub(super) fn bounce_read(&self, range: Range<u64>, into: &mut IoVecs) -> Result<(), IoError> {
        self.with_bounce(|worker, bounce| {
            let mut at = range.start;
            while at < range.end {
                let piece = Piece::of(&range, at, worker.unit());
                worker.bounce_fill(bounce, &piece, &piece.blocks)?;
                into.scatter(bounce.bytes(piece.in_buffer(&piece.wanted)));
                at = piece.wanted.end;
            }
            Ok(())
        })
    }

    /// Writes through the buffer, reading blocks that are written in part first. The caller holds the range.
    pub(super) fn bounce_write(
        &self,
        range: Range<u64>,
        mut source: Source<'_>,
        fua: bool,
    ) -> Result<(), IoError> {
        self.with_bounce(|worker, bounce| {
            let mut at = range.start;
            while at < range.end {
                let piece = Piece::of(&range, at, worker.unit());
                for block in piece.partial(worker.unit()).iter().flatten() {
                    worker.bounce_fill(bounce, &piece, block)?;
                }
                let wanted = bounce.bytes(piece.in_buffer(&piece.wanted));
                match &mut source {
                    Source::Memory(iovecs) => iovecs.gather(wanted),
                    Source::Zeroes => wanted.fill(0),
                }
                let all = piece.in_buffer(&piece.blocks);
                bounce.transfer(all, |iovecs| worker.write_all(iovecs, piece.blocks.start, fua))?;
                at = piece.wanted.end;
            }
            Ok(())
        })
    }

    /// Reads whole blocks of a piece into their place in the buffer.
    fn bounce_fill(&self, bounce: &mut Bounce, piece: &Piece, blocks: &Range<u64>) -> Result<(), IoError> {
        bounce.transfer(piece.in_buffer(blocks), |iovecs| self.read_all(iovecs, blocks.start))
    }

    /// Lends the worker's buffer out beside the worker.
    fn with_bounce(&self, f: impl FnOnce(&Self, &mut Bounce) -> Result<(), IoError>) -> Result<(), IoError> {
        let mut bounce = self.bounce.take().ok_or(IoErrorKind::Unsupported)?;
        let result = f(self, &mut bounce);
        self.bounce.set(Some(bounce));
        result
    }

    fn unit(&self) -> u64 {
        self.shared.image.direct.map_or(1, |direct| u64::from(direct.offset))
    }
}

/// Ranges of the file that workers change, each one for itself: while a block is read, changed and written back, no write
/// to it, not even to another part of it, may come in between, or it would be undone.
pub(super) struct RangeLock {
    held: Mutex<Held>,
    released: Condvar,
}

struct Held {
    /// One place for each worker, which holds one range at a time: so nobody waits in a circle.
    ranges: Box<[Range<u64>]>,
    waiting: usize,
}

/// A range that is held.
pub(super) struct HeldRange<'a> {
    lock: &'a RangeLock,
    worker: usize,
}

impl RangeLock {
    pub(super) fn new(workers: usize) -> Self {
        let held = Held { ranges: vec![0..0; workers].into(), waiting: 0 };
        Self { held: Mutex::new(held), released: Condvar::new() }
    }

    /// Waits until no other worker holds a part of `range`, and holds it.
    pub(super) fn hold(&self, worker: usize, range: Range<u64>) -> HeldRange<'_> {
        let mut held = lock(&self.held);
        while held.ranges.iter().any(|other| other.start < range.end && range.start < other.end) {
            held.waiting += 1;
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        held.ranges[worker] = range;
        HeldRange { lock: self, worker }
    }
}

impl Drop for HeldRange<'_> {
    fn drop(&mut self) {
        let mut held = lock(&self.lock.held);
        held.ranges[self.worker] = 0..0;
        let wake = held.waiting != 0;
        drop(held);
        if wake {
            self.lock.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_and_read_only_the_blocks_that_they_split() {
        let (unit, big) = (4096, BOUNCE_BYTES as u64);
        let range = 512..big + 1024;
        let first = Piece::of(&range, 512, unit);
        assert_eq!((first.wanted.clone(), first.blocks.clone()), (512..big, 0..big));
        assert_eq!(first.partial(unit), [Some(0..4096), None]);
        let second = Piece::of(&range, big, unit);
        assert_eq!((second.wanted.clone(), second.blocks.clone()), (big..big + 1024, big..big + 4096));
        assert_eq!(second.partial(unit), [None, Some(big..big + 4096)]);
        let inside = Piece::of(&(512..1024), 512, unit);
        assert_eq!(inside.partial(unit), [Some(0..4096), None], "one block is read once");
        let both = Piece::of(&(512..5000), 512, unit);
        assert_eq!(both.partial(unit), [Some(0..4096), Some(4096..8192)]);
        assert_eq!(Piece::of(&(4096..8192), 4096, unit).partial(unit), [None, None]);
    }
}
