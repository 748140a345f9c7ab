//! A channel's registers as a machine accesses them: one by one, or the Data register by strings.

use blk_core::bus::{
    Access, Device, IrqChange, Progress, Region, Width, WriteStatus, Written, read_each, write_each,
};
use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;

use super::data::data_bytes;
use super::ide::{Channel, Phase};
use super::scatter::to_usize;

/// Where the Data register is, at offset 0.
const DATA: Region = Region::Bar(0);

impl<M: GuestMemory + ?Sized, H: Storage<M>> Device<M, [H]> for Channel {
    #[inline(never)]
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        memory: &M,
        storage: &mut [H],
    ) -> Access<u64> {
        if let (DATA, 0) = (region, offset)
            && let Some(value) = self.read_within_block(width, storage)
        {
            return Access::quiet(value);
        }
        self.read_any(region, offset, width, memory, storage)
    }

    #[inline(never)]
    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) -> Access<WriteStatus> {
        if let (DATA, 0) = (region, offset)
            && self.write_within_block(width, value, storage).is_some()
        {
            return Access::quiet(WriteStatus::Done);
        }
        self.write_any(region, offset, width, value, memory, storage)
    }

    fn read_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        into: &mut [u8],
        memory: &M,
        storage: &mut [H],
    ) -> Access<usize> {
        let register = (region, offset, width);
        let ((DATA, 0), Some(unit_bytes)) = ((region, offset), data_bytes(width)) else {
            return read_each(self, register, into, memory, storage);
        };
        let mut all = Access::quiet(0_usize);
        let mut left = into;
        while !left.is_empty() {
            let moved = self.read_units(unit_bytes, left, storage);
            let (_, behind) = left.split_at_mut_checked(moved).unwrap_or_default();
            // The unit that ends the block, or reads nothing.
            let (unit, behind) = behind.split_at_mut_checked(to_usize(unit_bytes)).unwrap_or_default();
            let last = read_each(self, register, unit, memory, storage);
            let units = moved.checked_div(to_usize(unit_bytes)).unwrap_or(0).saturating_add(last.value);
            all = Access { value: all.value.saturating_add(units), irq: all.irq.then(last.irq) };
            left = behind;
        }
        all
    }

    fn write_string(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        from: &[u8],
        memory: &M,
        storage: &mut [H],
    ) -> Access<Written> {
        let register = (region, offset, width);
        let ((DATA, 0), Some(unit_bytes)) = ((region, offset), data_bytes(width)) else {
            return write_each(self, register, from, memory, storage);
        };
        let mut all = Access::quiet(Written { units: 0, status: WriteStatus::Done });
        let mut left = from;
        while !left.is_empty() {
            let moved = self.write_units(unit_bytes, left, storage);
            let (_, behind) = left.split_at_checked(moved).unwrap_or_default();
            // The unit that ends the block, or goes nowhere. No write of a channel is ever pending.
            let (unit, behind) = behind.split_at_checked(to_usize(unit_bytes)).unwrap_or_default();
            let last = write_each(self, register, unit, memory, storage);
            let units = moved.checked_div(to_usize(unit_bytes)).unwrap_or(0).saturating_add(last.value.units);
            all.value.units = all.value.units.saturating_add(units);
            all.irq = all.irq.then(last.irq);
            left = behind;
        }
        all
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        let (again, irq) = self.watched(|channel| channel.advance(memory, storage));
        Progress { irq, again, pending_write: matches!(self.phase, Phase::Reset { hardware: true }) }
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        let (again, irq) = self.watched(|channel| {
            channel.begin_reset(true);
            channel.advance(memory, storage)
        });
        Progress { irq, again, pending_write: matches!(self.phase, Phase::Reset { hardware: true }) }
    }
}

impl Channel {
    /// Any read. [`Device::read`] has a shorter way for most of the Data register's, to the same effect.
    #[inline(always)]
    fn read_any<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        memory: &M,
        storage: &mut [H],
    ) -> Access<u64> {
        let (value, irq) = self.watched(|channel| match (region, offset) {
            (Region::Bar(0), 0) => channel.read_data(width, memory, storage),
            (Region::Bar(0), 1..=7) => u64::from(channel.read_register(offset)),
            (Region::Bar(1), 2) => u64::from(channel.status()),
            (Region::Bar(4), 0..=7) => match &channel.bus_master {
                Some(bus_master) => bytes_of(offset, width)
                    .rev()
                    .fold(0, |value, at| (value << 8) | u64::from(bus_master.read(at))),
                None => width.ones(),
            },
            _ => width.ones(),
        });
        Access { value, irq }
    }

    /// Any write, likewise.
    #[inline(always)]
    fn write_any<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) -> Access<WriteStatus> {
        let [low, ..] = value.to_le_bytes();
        if let (Region::Bar(0), 1..=5) = (region, offset) {
            self.latch(offset, low);
            return Access::quiet(WriteStatus::Done);
        }
        let withdrawn = match (region, offset) {
            (Region::Bar(0), 7) => self.watched(Self::withdraw_interrupt).1,
            _ => IrqChange::NONE,
        };
        let ((), irq) = self.watched(|channel| match (region, offset) {
            (Region::Bar(0), 0) => channel.write_data(width, value, memory, storage),
            (Region::Bar(0), 6..=7) => channel.write_register(offset, low, memory, storage),
            (Region::Bar(1), 2) => channel.write_control(low, memory, storage),
            (Region::Bar(4), 0..=7) => {
                for (at, byte) in bytes_of(offset, width).zip(value.to_le_bytes()) {
                    channel.write_bus_master(at, byte, memory, storage);
                }
            }
            _ => {}
        });
        Access { value: WriteStatus::Done, irq: withdrawn.then(irq) }
    }
}

/// The byte registers that an access of the bus master touches.
fn bytes_of(offset: u64, width: Width) -> core::ops::Range<u8> {
    let start = u8::try_from(offset & 7).unwrap_or(0);
    start..start.saturating_add(width.bytes()).min(8)
}

#[cfg(test)]
mod tests;
