//! A PCI IDE controller: two channels with a bus master each.

use blk_core::bus::{
    Access, Device, IrqChange, Progress, Quiet, Region, Width, WriteStatus, Written, read_each, write_each,
};
use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;

use super::ide::Channel;
use crate::drive::DriveConfig;

/// Two channels with two drives each, any of which may be missing.
///
/// | range | what |
/// |---|---|
/// | `Bar(0)`, `Bar(1)` | command and control block of the primary channel |
/// | `Bar(2)`, `Bar(3)` | the same of the secondary channel |
/// | `Bar(4)`, 16 bytes | bus master: primary, secondary |
///
/// Interrupt line n and storage handles 2n and 2n+1 are channel n's; a missing drive's handle is not used.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct IdeController {
    channels: [Channel; 2],
}

impl Quiet for IdeController {
    fn is_quiet(&self) -> bool {
        self.channels.iter().all(Channel::is_quiet)
    }
}

#[cfg(feature = "snapshot")]
impl blk_core::snapshot::Snapshot for IdeController {
    const KIND: blk_core::snapshot::Kind = blk_core::snapshot::Kind::new(*b"IDE2", 1);
}

impl IdeController {
    /// A controller after power-on; drive n is device n mod 2 of channel n / 2.
    #[must_use]
    pub const fn new(drives: [Option<DriveConfig>; 4]) -> Self {
        let [d0, d1, d2, d3] = drives;
        Self { channels: [Channel::with_bus_master([d0, d1]), Channel::with_bus_master([d2, d3])] }
    }

    /// The channels.
    #[must_use]
    pub const fn channels(&self) -> &[Channel; 2] {
        &self.channels
    }

    /// Whether the bus masters may access memory, as they may from the start.
    pub const fn set_bus_master(&mut self, may: bool) {
        let [primary, secondary] = &mut self.channels;
        primary.set_bus_master(may);
        secondary.set_bus_master(may);
    }

    /// Which channel an access is to, and where in that channel.
    #[inline(always)]
    const fn route(region: Region, offset: u64) -> Option<(usize, Region, u64)> {
        match (region, offset) {
            (Region::Bar(0 | 1), _) => Some((0, region, offset)),
            (Region::Bar(2), _) => Some((1, Region::Bar(0), offset)),
            (Region::Bar(3), _) => Some((1, Region::Bar(1), offset)),
            (Region::Bar(4), 0..=7) => Some((0, region, offset)),
            (Region::Bar(4), 8..=15) => Some((1, region, offset & 7)),
            _ => None,
        }
    }

    /// A channel with its storage handles.
    #[inline(always)]
    fn channel<'a, H>(
        &'a mut self,
        n: usize,
        storage: &'a mut [H],
    ) -> Option<(&'a mut Channel, &'a mut [H])> {
        let (primary, secondary) = storage.split_at_mut(storage.len().min(2));
        Some((self.channels.get_mut(n)?, if n == 0 { primary } else { secondary }))
    }

    fn each<H>(
        &mut self,
        storage: &mut [H],
        mut visit: impl FnMut(&mut Channel, &mut [H]) -> Progress,
    ) -> Progress {
        let mut all = Progress::default();
        for n in 0..self.channels.len() {
            let Some((channel, storage)) = self.channel(n, storage) else { continue };
            let one = visit(channel, storage);
            all.irq = all.irq.then(on_line(one.irq, n));
            all.again |= one.again;
            all.pending_write |= one.pending_write;
        }
        all
    }
}

/// A channel's interrupt change as the controller's.
const fn on_line(irq: IrqChange, n: usize) -> IrqChange {
    if n == 0 { irq } else { IrqChange { changed: irq.changed << 1, level: irq.level << 1 } }
}

impl<M: GuestMemory + ?Sized, H: Storage<M>> Device<M, [H]> for IdeController {
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        memory: &M,
        storage: &mut [H],
    ) -> Access<u64> {
        let Some((n, region, offset)) = Self::route(region, offset) else {
            return Access::quiet(width.ones());
        };
        let Some((channel, storage)) = self.channel(n, storage) else { return Access::quiet(width.ones()) };
        let access = channel.read(region, offset, width, memory, storage);
        Access { irq: on_line(access.irq, n), ..access }
    }

    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) -> Access<WriteStatus> {
        let Some((n, region, offset)) = Self::route(region, offset) else {
            return Access::quiet(WriteStatus::Done);
        };
        let Some((channel, storage)) = self.channel(n, storage) else {
            return Access::quiet(WriteStatus::Done);
        };
        let access = channel.write(region, offset, width, value, memory, storage);
        Access { irq: on_line(access.irq, n), ..access }
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
        let routed = Self::route(region, offset)
            .and_then(|(n, region, offset)| Some((n, region, offset, self.channel(n, storage)?)));
        let Some((n, region, offset, (channel, storage))) = routed else {
            return read_each(self, (region, offset, width), into, memory, storage);
        };
        let access = channel.read_string(region, offset, width, into, memory, storage);
        Access { irq: on_line(access.irq, n), ..access }
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
        let routed = Self::route(region, offset)
            .and_then(|(n, region, offset)| Some((n, region, offset, self.channel(n, storage)?)));
        let Some((n, region, offset, (channel, storage))) = routed else {
            return write_each(self, (region, offset, width), from, memory, storage);
        };
        let access = channel.write_string(region, offset, width, from, memory, storage);
        Access { irq: on_line(access.irq, n), ..access }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        self.each(storage, |channel, storage| channel.poll(memory, storage))
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        self.each(storage, |channel, storage| channel.reset(memory, storage))
    }
}
