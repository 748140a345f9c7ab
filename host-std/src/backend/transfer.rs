//! Reads and writes: whole or failed.

use std::os::fd::AsFd;

use blk_core::storage::{IoError, IoErrorKind};
use blk_core::units::{Extent, Lba, SECTOR_BYTES};
use rustix::io::Errno;

use super::bounce::Source;
use super::counters::add;
use super::engine::{Shared, Worker};
use super::host::Host;
use super::iovecs::IoVecs;
use super::latch::{Durable, LatchCause};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    Read,
    Write { fua: bool },
}

impl<H: Host> Shared<H> {
    /// What one call of a transfer came to, whoever made it. `None`: the transfer goes on, with what is `left`, at byte `at`.
    /// One that stopped short goes on; one that moved nothing, as at the end of the file, is an error. If a write was to be
    /// stable and failed, the backend latches.
    #[inline]
    pub(super) fn moved(
        &self,
        transfer: Transfer,
        left: &mut IoVecs,
        at: &mut u64,
        result: rustix::io::Result<usize>,
    ) -> Option<Result<(), IoError>> {
        let errno = match result {
            Ok(0) => None,
            Ok(bytes) => {
                left.advance(bytes);
                *at += bytes as u64;
                let counter = match transfer {
                    Transfer::Read => &self.counters.bytes_read,
                    Transfer::Write { .. } => &self.counters.bytes_written,
                };
                add(counter, bytes as u64);
                return (left.count() == 0).then_some(Ok(()));
            }
            Err(Errno::INTR) => return None,
            Err(errno) => Some(errno),
        };
        let lba = Some(sector(*at));
        if let Transfer::Write { fua } = transfer
            && self.is_durable(fua)
        {
            self.latch.set(LatchCause { what: Durable::Write, errno, lba });
        }
        Some(Err(IoError { kind: errno.map_or(IoErrorKind::Medium, kind), lba }))
    }

    /// Whether a write is stable when it is done.
    pub(super) fn is_durable(&self, fua: bool) -> bool {
        fua || self.image.dsync
    }

    /// To be called before a write is issued, and after it has completed: see [`Latch::dirty`](super::latch::Latch::dirty).
    pub(super) fn dirty(&self, start: Lba, fua: bool) {
        if !self.is_durable(fua) {
            self.latch.dirty(start);
        }
    }

    pub(super) fn count_write_call(&self, fua: bool) {
        if self.image.dsync {
            add(&self.counters.dsync_writes, 1);
        }
        if fua {
            add(&self.counters.fua_writes, 1);
        }
    }

    /// Whether direct I/O would refuse this transfer as it is.
    pub(super) fn needs_bounce(&self, iovecs: &IoVecs, at: u64) -> bool {
        self.image.direct.is_some_and(|direct| {
            let unit = u64::from(direct.offset);
            (at | iovecs.bytes() as u64) & (unit - 1) != 0
                || !iovecs.aligned(direct.memory as usize, direct.offset as usize)
        })
    }
}

impl<H: Host> Worker<H> {
    pub(super) fn read(&self, into: &mut IoVecs, at: u64) -> Result<(), IoError> {
        if self.shared.needs_bounce(into, at) {
            add(&self.shared.counters.bounced, 1);
            return self.bounce_read(at..at + into.bytes() as u64, into);
        }
        self.read_all(into, at)
    }

    /// Writes what is left, from byte `at` on, of a write that begins at `start`.
    pub(super) fn write(&self, start: Lba, from: &mut IoVecs, at: u64, fua: bool) -> Result<(), IoError> {
        let shared = &self.shared;
        let hold = |ranges| self.hold(ranges, at..at + from.bytes() as u64);
        let _held = shared.ranges.as_ref().map(hold);
        shared.dirty(start, fua);
        let result = if shared.needs_bounce(from, at) {
            add(&shared.counters.bounced, 1);
            self.bounce_write(at..at + from.bytes() as u64, Source::Memory(from), fua)
        } else {
            self.write_all(from, at, fua)
        };
        shared.dirty(start, fua);
        result
    }

    /// Fills `into` from byte `offset` on.
    pub(super) fn read_all(&self, into: &mut IoVecs, offset: u64) -> Result<(), IoError> {
        let mut at = offset;
        while into.count() != 0 {
            let result = self.shared.host.read(self.file.as_fd(), into, at);
            if let Some(result) = self.shared.moved(Transfer::Read, into, &mut at, result) {
                return result;
            }
        }
        Ok(())
    }

    /// Writes all of `from` at byte `offset`.
    pub(super) fn write_all(&self, from: &mut IoVecs, offset: u64, fua: bool) -> Result<(), IoError> {
        let mut at = offset;
        while from.count() != 0 {
            self.shared.count_write_call(fua);
            let result = self.shared.host.write(self.file.as_fd(), from, at, fua);
            if let Some(result) = self.shared.moved(Transfer::Write { fua }, from, &mut at, result) {
                return result;
            }
        }
        Ok(())
    }
}

/// Offset and length in bytes of an extent that was checked against the capacity.
pub(super) fn bytes_of(extent: Extent) -> Result<(u64, u64), IoError> {
    let outside = IoError::new(IoErrorKind::OutOfRange);
    Ok((extent.offset_bytes().ok_or(outside)?, extent.bytes().ok_or(outside)?))
}

pub(super) const fn sector(offset: u64) -> Lba {
    Lba(offset / SECTOR_BYTES as u64)
}

/// What an error of the kernel is to the models.
pub(super) fn kind(errno: Errno) -> IoErrorKind {
    match errno {
        Errno::NOSPC | Errno::DQUOT => IoErrorKind::NoSpace,
        Errno::ROFS => IoErrorKind::ReadOnly,
        Errno::FAULT => IoErrorKind::Memory,
        Errno::OPNOTSUPP => IoErrorKind::Unsupported,
        _ => IoErrorKind::Medium,
    }
}
