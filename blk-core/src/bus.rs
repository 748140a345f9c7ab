//! The machine's side: the small face that every front shows, so that any machine model wires it up in a page.

/// Address range of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Region {
    /// PCI configuration space.
    Config,
    /// A base address register's range, be it ports or memory. A device that is not on PCI has its registers in `Bar(0)`;
    /// the legacy ports of a compatibility-mode IDE controller are the ranges that its BARs would have.
    Bar(u8),
}

/// Width of a register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// The width of an access of `bytes` bytes; `None` for anything but 1, 2, 4 and 8.
    #[must_use]
    pub const fn from_bytes(bytes: usize) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }

    /// Bytes moved by an access.
    #[must_use]
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Dword => 4,
            Self::Qword => 8,
        }
    }

    /// All ones, as wide as the access: what a read of nothing returns.
    #[must_use]
    pub const fn ones(self) -> u64 {
        match self {
            Self::Byte => 0xff,
            Self::Word => 0xffff,
            Self::Dword => 0xffff_ffff,
            Self::Qword => u64::MAX,
        }
    }
}

/// Changes of level on a device's interrupt lines, returned rather than called back.
///
/// Bit n stands for line n. Lines not in `changed` keep their level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IrqChange {
    /// Lines whose level changed.
    pub changed: u32,
    /// The new levels of those lines; zero elsewhere.
    pub level: u32,
}

impl IrqChange {
    /// No line changed.
    pub const NONE: Self = Self { changed: 0, level: 0 };

    /// The difference between two pictures of all lines.
    #[must_use]
    pub const fn between(before: u32, after: u32) -> Self {
        let changed = before ^ after;
        Self { changed, level: after & changed }
    }

    /// This change followed by `later`.
    ///
    /// A line that went up and down again is still `changed`, with its last level.
    #[must_use]
    pub const fn then(self, later: Self) -> Self {
        Self { changed: self.changed | later.changed, level: (self.level & !later.changed) | later.level }
    }

    /// The new level of `line`, if it changed.
    #[must_use]
    pub const fn line(self, line: u8) -> Option<bool> {
        let bit = match 1_u32.checked_shl(line as u32) {
            Some(bit) => bit,
            None => return None,
        };
        if self.changed & bit == 0 { None } else { Some(self.level & bit != 0) }
    }
}

/// Whether a register write has taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use]
pub enum WriteStatus {
    /// It has.
    Done,
    /// It has not: the embedder polls, and resumes this vCPU (or answers this message) once
    /// [`Progress::pending_write`] is false again.
    Pending,
}

/// Result of a register read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Access<T> {
    /// The value read, or whether the write is done.
    pub value: T,
    /// Interrupt lines that changed.
    pub irq: IrqChange,
}

impl<T> Access<T> {
    /// An access that changed no interrupt line.
    pub const fn quiet(value: T) -> Self {
        Self { value, irq: IrqChange::NONE }
    }
}

/// Result of a string of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Written {
    /// Units that were written, the last one included if it is pending.
    pub units: usize,
    /// Whether the last of them has taken effect.
    pub status: WriteStatus,
}

/// Result of a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Progress {
    /// Interrupt lines that changed.
    pub irq: IrqChange,
    /// Work is left that needs no completion: poll again. Otherwise poll after the next register access or when the
    /// storage has a completion.
    pub again: bool,
    /// A register write that returned [`WriteStatus::Pending`], or a reset, is still waiting.
    pub pending_write: bool,
}

/// A disk as a machine sees it. `M` is its guest memory, `S` the storage under it; both come in with each call.
///
/// A front with several queues or drives takes a slice, one [`Storage`](crate::storage::Storage) handle for each: tags are
/// per handle. A front with one implements this for a slice too, of which it uses the first.
///
/// No callbacks, no stored references, no hidden threads: `&mut self`, with any lock in the embedder's adapter.
pub trait Device<M: ?Sized, S: ?Sized> {
    /// A guest reads `width` bytes at `offset` of `region`. Reads of what is not there return zeroes or ones, as the
    /// bus has it.
    fn read(&mut self, region: Region, offset: u64, width: Width, memory: &M, storage: &mut S)
    -> Access<u64>;

    /// A guest writes the low `width` bytes of `value` at `offset` of `region`. Writes to what is not there are ignored.
    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut S,
    ) -> Access<WriteStatus>;

    /// A guest fills `into` by reads of `width` bytes at `offset` of `region`, one after the other (REP INS): as if each were a
    /// [`Self::read`], interrupt changes joined. Returns how many there were: as many as `into` has room for as a whole.
    ///
    /// A device overrides it where it can move many units at once.
    fn read_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        into: &mut [u8],
        memory: &M,
        storage: &mut S,
    ) -> Access<usize> {
        read_each(self, (region, offset, width), into, memory, storage)
    }

    /// A guest writes `from` by writes of `width` bytes at `offset` of `region`, one after the other (REP OUTS): as if each were
    /// a [`Self::write`], interrupt changes joined. It ends with a write that is [`WriteStatus::Pending`], or where no whole unit
    /// is left.
    ///
    /// A device overrides it where it can move many units at once.
    fn write_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        from: &[u8],
        memory: &M,
        storage: &mut S,
    ) -> Access<Written> {
        write_each(self, (region, offset, width), from, memory, storage)
    }

    /// Makes bounded progress: takes requests and completions, returns what changed.
    fn poll(&mut self, memory: &M, storage: &mut S) -> Progress;

    /// The machine's reset line: held-back requests are dropped, submitted ones awaited, and then the device is as
    /// after power-on, with nothing left that could land later. While [`Progress::pending_write`] is true it is still
    /// waiting.
    fn reset(&mut self, memory: &M, storage: &mut S) -> Progress;
}

/// A device that knows whether anything of it is under way.
pub trait Quiet {
    /// Whether no request is in execution and no reset or change of a setting waits: whatever the guest has asked for and was not
    /// answered is in the guest's memory or the device's registers. Then a saved state is whole, and the storage may be exchanged.
    fn is_quiet(&self) -> bool;
}

/// [`Device::read_string`] as it is by itself: for a device that overrides it, and has no shorter way for this register.
pub fn read_each<M: ?Sized, S: ?Sized>(
    device: &mut (impl Device<M, S> + ?Sized),
    (region, offset, width): (Region, u64, Width),
    into: &mut [u8],
    memory: &M,
    storage: &mut S,
) -> Access<usize> {
    let mut all = Access::quiet(0_usize);
    for unit in into.chunks_exact_mut(width.bytes().into()) {
        let Access { value, irq } = device.read(region, offset, width, memory, storage);
        unit.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        all = Access { value: all.value.wrapping_add(1), irq: all.irq.then(irq) };
    }
    all
}

/// [`Device::write_string`] as it is by itself: for a device that overrides it, and has no shorter way for this register.
pub fn write_each<M: ?Sized, S: ?Sized>(
    device: &mut (impl Device<M, S> + ?Sized),
    (region, offset, width): (Region, u64, Width),
    from: &[u8],
    memory: &M,
    storage: &mut S,
) -> Access<Written> {
    let mut all = Access::quiet(Written { units: 0, status: WriteStatus::Done });
    for unit in from.chunks_exact(width.bytes().into()) {
        let value = unit.iter().rev().fold(0, |value, &byte| (value << 8) | u64::from(byte));
        let Access { value: status, irq } = device.write(region, offset, width, value, memory, storage);
        let units = all.value.units.wrapping_add(1);
        all = Access { value: Written { units, status }, irq: all.irq.then(irq) };
        if status == WriteStatus::Pending {
            break;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads count up; the write of 3 is pending.
    struct Counter(u64);

    impl Device<(), ()> for Counter {
        fn read(&mut self, _: Region, _: u64, width: Width, _: &(), _: &mut ()) -> Access<u64> {
            self.0 += 1;
            Access { value: self.0 & width.ones(), irq: IrqChange::between(0, 1 << self.0) }
        }

        fn write(
            &mut self,
            _: Region,
            _: u64,
            _: Width,
            value: u64,
            _: &(),
            _: &mut (),
        ) -> Access<WriteStatus> {
            self.0 = value;
            Access::quiet(if value == 3 { WriteStatus::Pending } else { WriteStatus::Done })
        }

        fn poll(&mut self, _: &(), _: &mut ()) -> Progress {
            Progress::default()
        }

        fn reset(&mut self, _: &(), _: &mut ()) -> Progress {
            Progress::default()
        }
    }

    #[test]
    fn a_string_is_of_whole_units_and_ends_with_what_is_pending() {
        let (mut counter, at) = (Counter(0), Region::Bar(0));
        let mut into = [0xff; 5];
        let read = counter.read_string(at, 0, Width::Word, &mut into, &(), &mut ());
        assert_eq!((read.value, read.irq.changed, into), (2, 0b110, [1, 0, 2, 0, 0xff]));
        let from = [1, 0, 3, 0, 9, 0];
        let written = counter.write_string(at, 0, Width::Word, &from, &(), &mut ());
        assert_eq!(written.value, Written { units: 2, status: WriteStatus::Pending });
        assert_eq!(counter.0, 3);
        let written = counter.write_string(at, 0, Width::Qword, &from, &(), &mut ());
        assert_eq!(written.value, Written { units: 0, status: WriteStatus::Done });
    }

    #[test]
    fn a_change_followed_by_another_keeps_the_last_level() {
        let up = IrqChange::between(0, 0b11);
        let down = IrqChange::between(0b11, 0b01);
        assert_eq!(up.then(down), IrqChange { changed: 0b11, level: 0b01 });
        assert_eq!(up.then(down).line(1), Some(false));
        assert_eq!(up.line(2), None);
        assert_eq!(up.line(32), None);
    }
}
