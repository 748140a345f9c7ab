//! Bounce buffers for requests that direct I/O cannot take: odd addresses, and parts of blocks.

use std::ops::Range;

use blk_core::storage::{IoError, IoErrorKind};

use super::bounce_buffer::{BOUNCE_BYTES, Bounce};
use super::iovecs::IoVecs;
use super::syscalls::Syscalls;
use super::worker::Worker;

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

impl<S: Syscalls> Worker<S> {
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
