//! Reads and writes: whole or failed.

use std::os::fd::AsFd;

use blk_core::storage::{IoError, IoErrorKind};
use blk_core::units::{Extent, Lba, SECTOR_BYTES};
use rustix::io::Errno;

use super::bounce::Source;
use super::counters::add;
use super::engine::Worker;
use super::host::Host;
use super::iovecs::IoVecs;
use super::latch::{Durable, LatchCause};

impl<H: Host> Worker<H> {
    pub(super) fn read(&mut self, extent: Extent, into: &mut IoVecs) -> Result<(), IoError> {
        let (offset, bytes) = bytes_of(extent)?;
        if self.needs_bounce(into, offset, bytes) {
            add(&self.shared.counters.bounced, 1);
            return self.bounce_read(offset..offset + bytes, into);
        }
        self.read_all(into, offset)
    }

    pub(super) fn write(&mut self, extent: Extent, fua: bool, from: &mut IoVecs) -> Result<(), IoError> {
        let (offset, bytes) = bytes_of(extent)?;
        let durable = fua || self.shared.image.dsync;
        let shared = std::sync::Arc::clone(&self.shared);
        let _held =
            shared.ranges.as_ref().map(|ranges| ranges.hold(self.id, self.blocks(offset..offset + bytes)));
        if !durable {
            shared.latch.dirty(extent.start);
        }
        let result = if self.needs_bounce(from, offset, bytes) {
            add(&shared.counters.bounced, 1);
            self.bounce_write(offset..offset + bytes, Source::Memory(from), fua)
        } else {
            self.write_all(from, offset, fua)
        };
        if !durable {
            shared.latch.dirty(extent.start);
        }
        result
    }

    /// Fills `into` from byte `offset` on. A transfer that stops short goes on; one that moves nothing, as at the end of
    /// the file, is an error.
    pub(super) fn read_all(&self, into: &mut IoVecs, offset: u64) -> Result<(), IoError> {
        let mut at = offset;
        while into.count() != 0 {
            match self.shared.host.read(self.file.as_fd(), into, at) {
                Ok(0) => return Err(IoError { kind: IoErrorKind::Medium, lba: Some(sector(at)) }),
                Ok(moved) => {
                    into.advance(moved);
                    at += moved as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(IoError { kind: kind(errno), lba: Some(sector(at)) }),
            }
        }
        add(&self.shared.counters.bytes_read, at - offset);
        Ok(())
    }

    /// Writes all of `from` at byte `offset`. If the write was to be durable and failed, the backend latches.
    pub(super) fn write_all(&self, from: &mut IoVecs, offset: u64, fua: bool) -> Result<(), IoError> {
        let shared = &self.shared;
        let mut at = offset;
        while from.count() != 0 {
            add(&shared.counters.dsync_writes, u64::from(shared.image.dsync));
            add(&shared.counters.fua_writes, u64::from(fua));
            let errno = match shared.host.write(self.file.as_fd(), from, at, fua) {
                Ok(0) => None,
                Ok(moved) => {
                    from.advance(moved);
                    at += moved as u64;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(errno) => Some(errno),
            };
            let lba = Some(sector(at));
            if fua || shared.image.dsync {
                shared.latch.set(LatchCause { what: Durable::Write, errno, lba });
            }
            return Err(IoError { kind: errno.map_or(IoErrorKind::Medium, kind), lba });
        }
        add(&shared.counters.bytes_written, at - offset);
        Ok(())
    }

    /// Whether direct I/O would refuse this transfer as it is.
    fn needs_bounce(&self, iovecs: &IoVecs, offset: u64, bytes: u64) -> bool {
        self.shared.image.direct.is_some_and(|direct| {
            let unit = u64::from(direct.offset);
            (offset | bytes) & (unit - 1) != 0
                || !iovecs.aligned(direct.memory as usize, direct.offset as usize)
        })
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
