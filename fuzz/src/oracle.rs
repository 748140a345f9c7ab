//! Oracle of the fuzz targets: what a guest may find on its disk. It knows what was asked and answered, and nothing of the models.
//!
//! One value is written to a sector at a time, so that values name their writes; 0 is what zeroes leave.

use blk_core::units::Extent;

use crate::contents::{MIXED, value};
use crate::disk::Disk;

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(usize);

/// What a request does, as far as the disk's contents go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Writes this value to every sector of the run.
    Write(Extent, u64),
    /// Makes the run 0.
    Zero(Extent),
    /// Makes sectors of the run 0, or leaves them.
    Discard(Extent),
    /// Reads the run.
    Read(Extent),
    /// Makes stable what was done before it was submitted.
    Flush,
}

impl Act {
    /// Whether it changes the disk.
    pub const fn mutates(self) -> bool {
        matches!(self, Self::Write(..) | Self::Zero(_) | Self::Discard(_))
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Well.
    pub ok: bool,
    /// By what the guest was told, it then survives a power cut: see [`Oracle::end`].
    pub stable: bool,
    /// It was submitted after a durable operation had failed.
    pub latched: bool,
}

struct Entry {
    act: Act,
    submitted: u64,
    /// When it ended, and whether well.
    done: Option<(u64, bool)>,
    /// Whether it survives a power cut from now on.
    stable: bool,
}

/// Every request of a guest on one disk, in the order in which it was submitted.
#[derive(Default)]
pub struct Oracle {
    entries: Vec<Entry>,
    /// Those that are barriers.
    barriers: Vec<Ticket>,
    clock: u64,
    /// The sectors' contents are not known any more: the guest writes what it keeps no account of.
    lost: bool,
}

impl Oracle {
    /// A value for the next write.
    pub fn next_value(&self) -> u64 {
        self.entries.len() as u64 + 1
    }

    /// Gives up on contents: something unknown is written from now on.
    pub fn lose_track(&mut self) {
        self.lost = true;
    }

    /// The guest submits a request.
    pub fn submit(&mut self, act: Act) -> Ticket {
        self.clock += 1;
        self.entries.push(Entry { act, submitted: self.clock, done: None, stable: false });
        Ticket(self.entries.len() - 1)
    }

    /// The guest submits a barrier: after a crash nothing of it, or after it, is there without everything before it.
    pub fn submit_barrier(&mut self, act: Act) -> Ticket {
        let ticket = self.submit(act);
        self.barriers.push(ticket);
        ticket
    }

    /// The guest is told that it ended. `stable`: by what the guest was told, it then survives a power cut (a FUA write, a
    /// write with the cache off, a barrier).
    pub fn end(&mut self, ticket: Ticket, ok: bool, stable: bool) {
        self.clock += 1;
        let entry = &mut self.entries[ticket.0];
        assert_eq!(entry.done.replace((self.clock, ok)), None, "{:?} ended twice", entry.act);
        entry.stable |= ok && stable;
        // A read with FUA returns what is stable: it flushes first.
        if ok && (entry.act == Act::Flush || stable && matches!(entry.act, Act::Read(_))) {
            let begun = entry.submitted;
            self.make_stable(begun);
        }
    }

    /// As [`Self::end`], after a look at what no request may do. `sector` has what the sector at this index of a read brought.
    pub fn conclude(
        &mut self,
        disk: &Disk,
        (act, ticket): (Act, Ticket),
        end: End,
        sector: impl Fn(u64) -> [u8; 512],
    ) {
        let End { ok, stable, latched } = end;
        assert!(!(ok && act.mutates() && disk.info().read_only), "{act:?} on a read-only disk");
        let promises = act.mutates() || act == Act::Flush || stable;
        assert!(!(ok && promises && latched), "{act:?} ended well after a durable operation had failed");
        if let (Act::Read(extent), true) = (act, ok) {
            for index in 0..extent.sectors {
                self.check_read(ticket, extent.start.0 + index, value(&sector(index)));
            }
        }
        self.end(ticket, ok, stable);
    }

    /// The guest is told that the cache is on or off, which it asked for at the time `begun`.
    pub fn cache_switched(&mut self, on: bool, begun: u64, latched: bool) {
        assert!(on || !latched, "the cache was turned off after a durable operation had failed");
        if !on {
            self.flushed(begun);
        }
    }

    /// Something that the guest takes for a flush, submitted at the time [`Self::now`] returned, has ended well.
    pub fn flushed(&mut self, begun: u64) {
        self.make_stable(begun);
    }

    /// The time, which only goes on.
    pub fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A reset is complete: what had not ended never will, and may or may not be on the disk.
    pub fn reset(&mut self) {
        let now = self.now();
        for entry in &mut self.entries {
            entry.done.get_or_insert((now, false));
        }
    }

    fn make_stable(&mut self, begun: u64) {
        for entry in &mut self.entries {
            entry.stable |= matches!(entry.done, Some((done, true)) if done < begun);
        }
    }

    /// Checks what the read `ticket` returned for the sector `lba` before it is ended.
    pub fn check_read(&self, ticket: Ticket, lba: u64, value: u64) {
        let read = &self.entries[ticket.0];
        let newer = |entry: &Entry| entry.done.is_some_and(|(done, ok)| ok && done < read.submitted);
        self.check(lba, value, "read", newer);
    }

    /// Checks that a power cut now would lose nothing that must survive it.
    pub fn check_medium(&self, disk: &Disk) {
        for (lba, value) in disk.medium().enumerate() {
            self.check(lba as u64, value, "power cut", |entry| entry.stable);
        }
        if !self.barriers.is_empty() && !self.lost {
            let medium: Vec<u64> = disk.medium().collect();
            self.barriers.iter().for_each(|barrier| self.check_barrier(*barrier, &medium));
        }
    }

    /// If anything from `barrier` on is on the medium, then so is everything before it that did not fail.
    fn check_barrier(&self, barrier: Ticket, medium: &[u64]) {
        // One that was refused orders nothing.
        if matches!(self.entries[barrier.0].done, Some((_, false))) {
            return;
        }
        let written = |value: &u64| {
            self.entries[barrier.0..].iter().any(|entry| matches!(entry.act, Act::Write(_, v) if v == *value))
        };
        if !medium.iter().any(written) {
            return;
        }
        for (lba, value) in medium.iter().enumerate() {
            let older = |entry: &Entry| {
                entry.submitted < self.entries[barrier.0].submitted && entry.done.is_none_or(|(_, ok)| ok)
            };
            self.check(lba as u64, *value, "crash after a barrier", older);
        }
    }

    /// Checks that everything that ended well would survive a power cut now, as a barrier demands.
    pub fn check_settled(&self, disk: &Disk) {
        for (lba, value) in disk.medium().enumerate() {
            self.check(lba as u64, value, "barrier", |entry| entry.done.is_some_and(|(_, ok)| ok));
        }
    }

    /// Checks the disk with everything ended.
    pub fn check_contents(&self, disk: &Disk) {
        for (lba, value) in disk.contents().enumerate() {
            self.check(lba as u64, value, "end", |entry| entry.done.is_some_and(|(_, ok)| ok));
        }
    }

    /// `value` may be in sector `lba` unless a later write `counts`: no write that counts came wholly after it.
    fn check(&self, lba: u64, value: u64, when: &str, counts: impl Fn(&Entry) -> bool) {
        if self.lost {
            return;
        }
        assert_ne!(value, MIXED, "{when}: sector {lba} is torn");
        let covers = |extent: Extent| extent.overlaps(Extent::new(lba, 1));
        let overwritten = |done: u64| {
            self.entries.iter().any(|entry| {
                let whole = matches!(entry.act, Act::Write(extent, _) | Act::Zero(extent) if covers(extent));
                whole && entry.submitted > done && counts(entry)
            })
        };
        // The zeroes that every sector begins with were written at time 0.
        let initial = value == 0 && !overwritten(0);
        let allowed = initial
            || self.entries.iter().any(|entry| {
                let writes = match entry.act {
                    Act::Write(extent, written) => covers(extent) && written == value,
                    Act::Zero(extent) | Act::Discard(extent) => covers(extent) && value == 0,
                    Act::Read(_) | Act::Flush => false,
                };
                writes && entry.done.is_none_or(|(done, _)| !overwritten(done))
            });
        assert!(allowed, "{when}: sector {lba} holds {value}, which a newer write has replaced");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: Extent = Extent::new(0, 1);

    fn written(oracle: &mut Oracle, value: u64, stable: bool) -> Ticket {
        let ticket = oracle.submit(Act::Write(SECTOR, value));
        oracle.end(ticket, true, stable);
        ticket
    }

    #[test]
    #[should_panic(expected = "read: sector 0 holds 1, which a newer write has replaced")]
    fn a_read_of_what_was_overwritten_is_caught() {
        let mut oracle = Oracle::default();
        written(&mut oracle, 1, false);
        written(&mut oracle, 2, false);
        let read = oracle.submit(Act::Read(SECTOR));
        oracle.check_read(read, 0, 2);
        oracle.check_read(read, 0, 1);
    }

    #[test]
    fn writes_in_flight_together_may_end_in_any_order() {
        let mut oracle = Oracle::default();
        let (a, b) = (oracle.submit(Act::Write(SECTOR, 1)), oracle.submit(Act::Write(SECTOR, 2)));
        oracle.end(b, true, true);
        oracle.end(a, true, true);
        let read = oracle.submit(Act::Read(SECTOR));
        oracle.check_read(read, 0, 1);
        oracle.check_read(read, 0, 2);
    }

    #[test]
    #[should_panic(expected = "holds 0, which a newer write has replaced")]
    fn a_flushed_write_that_the_medium_lacks_is_caught() {
        let mut oracle = Oracle::default();
        written(&mut oracle, 1, false);
        let check = |oracle: &Oracle| oracle.check(0, 0, "power cut", |entry| entry.stable);
        check(&oracle);
        let flush = oracle.submit(Act::Flush);
        check(&oracle);
        oracle.end(flush, true, false);
        check(&oracle);
    }
}
