//! Reads and writes of a worker: whole or failed.

use blk_core::storage::IoError;
use blk_core::units::Lba;

use super::bounce::Source;
use super::counters::add;
use super::iovecs::IoVecs;
use super::syscalls::Syscalls;
use super::worker::Worker;

impl<S: Syscalls> Worker<S> {
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
}
