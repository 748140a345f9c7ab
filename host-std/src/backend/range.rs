//! Zeroes and discards: by the file system or the device where it can, by writing zeroes where it must.

use std::ops::Range;
use std::ptr::NonNull;

use blk_core::storage::IoError;
use blk_core::units::Extent;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::bounce::Source;
use super::convert::{bytes_of, kind};
use super::image::Kind;
use super::iovecs::IoVecs;
use super::syscalls::Syscalls;
use super::worker::Worker;
use crate::memory::HostRange;

/// One way to zero a range without writing it.
#[derive(Clone, Copy)]
enum Method {
    /// Release the blocks; they read back as zeroes. On a block device: zero, by unmapping if that zeroes.
    Punch,
    /// Zero and keep the blocks.
    ZeroRange,
    /// `BLKZEROOUT`: the device zeroes and keeps the blocks, or the kernel writes them.
    BlockZero,
}

impl<S: Syscalls> Worker<S> {
    pub(super) fn write_zeroes(&self, extent: Extent, may_unmap: bool) -> Result<(), IoError> {
        let methods: &[Method] = match (self.shared.image.kind, may_unmap) {
            (Kind::File, true) => &[Method::Punch, Method::ZeroRange],
            (Kind::File, false) => &[Method::ZeroRange],
            (Kind::Block, true) => &[Method::Punch, Method::BlockZero],
            (Kind::Block, false) => &[Method::BlockZero],
        };
        self.change(extent, |worker, range| {
            if worker.in_range_units(&range) {
                for &method in methods {
                    match worker.retry(|| worker.zero_by(method, &range)) {
                        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => {}
                        result => return result.map_err(|errno| failed(errno, extent)),
                    }
                }
            }
            worker.write_zero_bytes(range)
        })
    }

    /// Releases the blocks of a file, and lets a device discard. What it does not do, or not for parts of its blocks, stays:
    /// a discard may leave the data.
    pub(super) fn discard(&self, extent: Extent) -> Result<(), IoError> {
        if !self.shared.image.discards {
            return Ok(());
        }
        self.change(extent, |worker, range| {
            let unit = worker.shared.image.range_unit;
            let inner = range.start.next_multiple_of(unit)..range.end - range.end % unit;
            if inner.is_empty() {
                return Ok(());
            }
            let (syscalls, file) = (&worker.shared.syscalls, worker.shared.image.exclusive());
            let result = worker.retry(|| match worker.shared.image.kind {
                Kind::File => worker.zero_by(Method::Punch, &inner),
                Kind::Block => syscalls.block_discard(file, inner.start, inner.end - inner.start),
            });
            match result {
                Err(Errno::OPNOTSUPP) => Ok(()),
                result => result.map_err(|errno| failed(errno, extent)),
            }
        })
    }

    /// Runs a change of a range: alone on its blocks, and dirty until a flush, since `O_DSYNC` does not cover it.
    fn change(
        &self,
        extent: Extent,
        f: impl FnOnce(&Self, Range<u64>) -> Result<(), IoError>,
    ) -> Result<(), IoError> {
        let (offset, bytes) = bytes_of(extent)?;
        if bytes == 0 {
            return Ok(());
        }
        let shared = &self.shared;
        let range = offset..offset + bytes;
        let _held = shared.ranges.as_ref().map(|ranges| self.hold(ranges, range.clone()));
        shared.latch.dirty(extent.start);
        let result = f(self, range);
        shared.latch.dirty(extent.start);
        result
    }

    fn in_range_units(&self, range: &Range<u64>) -> bool {
        (range.start | range.end) & (self.shared.image.range_unit - 1) == 0
    }

    fn zero_by(&self, method: Method, range: &Range<u64>) -> rustix::io::Result<()> {
        let (syscalls, file) = (&self.shared.syscalls, self.shared.image.exclusive());
        let (offset, bytes) = (range.start, range.end - range.start);
        let keep = FallocateFlags::KEEP_SIZE;
        match method {
            Method::Punch => syscalls.fallocate(file, FallocateFlags::PUNCH_HOLE | keep, offset, bytes),
            Method::ZeroRange => syscalls.fallocate(file, FallocateFlags::ZERO_RANGE | keep, offset, bytes),
            Method::BlockZero => syscalls.block_zero(file, offset, bytes),
        }
    }

    fn retry(&self, f: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
        loop {
            match f() {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    fn write_zero_bytes(&self, range: Range<u64>) -> Result<(), IoError> {
        if self.blocks(range.clone()) != range {
            return self.bounce_write(range, Source::Zeroes, false);
        }
        let mut iovecs = IoVecs::new();
        let mut at = range.start;
        while at < range.end {
            iovecs.clear();
            let mut end = at;
            while end < range.end {
                let len = (range.end - end).min(ZEROES.0.len() as u64);
                let zeroes = HostRange { start: NonNull::from(&ZEROES.0).cast(), len: len as usize };
                // SAFETY: a static is almethods mapped. The list is only written *from*, so that it need not be writable and that a
                // shared reference to the static does no harm.
                if unsafe { iovecs.push(zeroes) }.is_err() {
                    break;
                }
                end += len;
            }
            self.write_all(&mut iovecs, at, false)?;
            at = end;
        }
        Ok(())
    }
}

/// Zeroes to write, aligned for direct I/O.
#[repr(align(65536))]
struct Zeroes([u8; 65536]);
static ZEROES: Zeroes = Zeroes([0; 65536]);

fn failed(errno: Errno, extent: Extent) -> IoError {
    IoError { kind: kind(errno), lba: Some(extent.start) }
}
