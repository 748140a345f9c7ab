//! Large writes in pieces: what is recorded is copied and logged on the queue's thread, of which a large write would take long.
//!
//! The pieces of a write follow each other; each is recorded, done and completed as a write of its own. That is no less than the
//! storage promises: until a write has completed, a power cut may leave any part of it. And another handle's hold may come between
//! two of them: what it keeps off is a piece.

use std::os::fd::BorrowedFd;

use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, Completion, Info, IoError, Storage, Submission};
use blk_core::units::{Extent, GuestAddr, SECTOR_BYTES, Tag};

use crate::backend::Handle;
use crate::memory::MappedMemory;

/// Bytes of a piece.
pub(super) const PIECE_BYTES: u64 = 1024 * 1024;

/// A handle that gives large writes to the one below in pieces.
pub(super) struct SplitHandle {
    inner: Box<dyn Handle>,
    /// In the order in which they came.
    writes: Vec<Write>,
}

struct Write {
    tag: Tag,
    extent: Extent,
    fua: bool,
    /// Guest addresses and staging offsets of what is left.
    segments: Vec<Segment>,
    /// The handle below has its next piece.
    under_way: bool,
}

impl Write {
    fn next_extent(&self) -> Extent {
        let sectors = self.extent.sectors.min(PIECE_BYTES / u64::from(SECTOR_BYTES));
        Extent::new(self.extent.start.0, sectors)
    }

    /// Gives the next piece to a handle.
    /// Gives the handle below the next pieces, until it has one in flight. Returns how the write ended, if it has.
    fn submit(
        &mut self,
        memory: &MappedMemory,
        to: &mut dyn Handle,
    ) -> Result<Option<Result<(), IoError>>, Busy> {
        loop {
            let extent = self.next_extent();
            let (segments, _) = split(&self.segments, extent.bytes().unwrap_or(0) as u32);
            match to.submit(memory, self.tag, Op::Write { extent, fua: self.fua }, &segments)? {
                Submission::Pending => {
                    self.under_way = true;
                    return Ok(None);
                }
                Submission::Done(Ok(())) if !self.advance() => {}
                Submission::Done(result) => return Ok(Some(result)),
            }
        }
    }

    /// The piece has been written. Returns whether it was the last one.
    fn advance(&mut self) -> bool {
        let done = self.next_extent();
        (_, self.segments) = split(&self.segments, done.bytes().unwrap_or(0) as u32);
        self.extent = Extent::new(self.extent.start.0 + done.sectors, self.extent.sectors - done.sectors);
        self.under_way = false;
        self.extent.sectors == 0
    }
}

/// The first `bytes` bytes of some segments, and the rest.
fn split(segments: &[Segment], bytes: u32) -> (Vec<Segment>, Vec<Segment>) {
    let (mut first, mut rest, mut left) = (Vec::new(), Vec::new(), bytes);
    for segment in segments {
        let taken = segment.len().min(left);
        left -= taken;
        let part = |from: u32, len: u32| match *segment {
            Segment::Guest { addr, .. } => Segment::Guest { addr: GuestAddr(addr.0 + u64::from(from)), len },
            Segment::Staging { offset, .. } => Segment::Staging { offset: offset + from, len },
        };
        first.extend((taken != 0).then(|| part(0, taken)));
        rest.extend((taken != segment.len()).then(|| part(taken, segment.len() - taken)));
    }
    (first, rest)
}

impl SplitHandle {
    pub(super) fn new(inner: Box<dyn Handle>) -> Self {
        Self { inner, writes: Vec::new() }
    }

    /// Begins the next piece of each write that has none under way, as long as the handle below takes them. Returns the first write
    /// that has ended.
    fn begin(&mut self, memory: &MappedMemory) -> Option<Completion> {
        for at in 0..self.writes.len() {
            if self.writes[at].under_way {
                continue;
            }
            match self.writes[at].submit(memory, &mut *self.inner) {
                Ok(None) => {}
                Ok(Some(result)) => return Some(Completion { tag: self.writes.remove(at).tag, result }),
                Err(Busy) => return None,
            }
        }
        None
    }
}

impl Storage<MappedMemory> for SplitHandle {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let info = self.inner.info();
        let bytes = total_bytes(segments).filter(|&bytes| bytes <= u64::from(info.transfer_max_bytes));
        // What makes no sense the handle below refuses. It does not split a segment whose address would wrap, either.
        let whole = |segment: &Segment| match *segment {
            Segment::Guest { addr, len } => addr.checked_add(len.into()).is_some(),
            Segment::Staging { offset, len } => offset.checked_add(len).is_some(),
        };
        match op {
            Op::Write { extent, fua }
                if extent.bytes() == bytes
                    && bytes.is_some_and(|bytes| bytes > PIECE_BYTES)
                    && extent.fits(info.sectors)
                    && segments.len() <= usize::from(info.segments_max)
                    && segments.iter().all(whole) =>
            {
                let segments = segments.to_vec();
                let mut write = Write { tag, extent, fua, segments, under_way: false };
                if let Ok(Some(result)) = write.submit(memory, &mut *self.inner) {
                    return Ok(Submission::Done(result));
                }
                self.writes.push(write);
                Ok(Submission::Pending)
            }
            _ => self.inner.submit(memory, tag, op, segments),
        }
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        loop {
            if let Some(ended) = self.begin(memory) {
                return Some(ended);
            }
            let completion = self.inner.poll(memory)?;
            let Some(at) = self.writes.iter().position(|write| write.tag == completion.tag) else {
                return Some(completion);
            };
            if completion.result.is_err() || self.writes[at].advance() {
                self.writes.remove(at);
                return Some(completion);
            }
        }
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        let staged = |segment: &Segment| matches!(segment, Segment::Staging { .. });
        if self.writes.iter().any(|write| write.tag.slot == slot && write.segments.iter().any(staged)) {
            return &mut [];
        }
        self.inner.staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.inner.release_hold(slot);
    }

    fn cancel_in_flight(&mut self) -> bool {
        let cancelled = self.inner.cancel_in_flight();
        if cancelled {
            self.writes.clear();
        }
        cancelled
    }
}

impl Handle for SplitHandle {
    fn arm(&mut self) -> bool {
        self.inner.arm()
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inner.wake_fd()
    }

    fn begin_turn(&mut self) {
        self.inner.begin_turn();
    }

    fn drain(&mut self, on: bool) {
        self.inner.drain(on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_split_where_a_piece_ends() {
        let guest = |addr, len| Segment::Guest { addr: GuestAddr(addr), len };
        let staging = |offset, len| Segment::Staging { offset, len };
        let segments = [guest(10, 3), staging(5, 4), guest(100, 2)];
        assert_eq!(split(&segments, 3), (vec![guest(10, 3)], vec![staging(5, 4), guest(100, 2)]));
        assert_eq!(
            split(&segments, 5),
            (vec![guest(10, 3), staging(5, 2)], vec![staging(7, 2), guest(100, 2)])
        );
        assert_eq!(split(&segments, 9), (segments.to_vec(), vec![]));
        assert_eq!(split(&segments, 0), (vec![], segments.to_vec()));
    }
}
