//! A guest for the crash explorer: a small driver that reaches the device through its registers and rings, and nothing
//! else. It also runs over real memory and real files.

// A panic in a test driver is a failed test, and no guest reaches it.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used, clippy::panic)]

use blk_core::bus::{Device, Region, Width, WriteStatus};
use blk_core::memory::GuestMemory;
use blk_core::sim::virtio::{DriverRing, Piece, RingLayout, WRITE, accept};
use blk_core::sim::{self, Action, Ended, Guest, Outcome, SectorRun, World, alphabet, layout, written_by};
use blk_core::storage::Storage;
use blk_core::units::SECTOR_BYTES;
use heapless::Vec;
use serde::Serialize;
use serde_big_array::BigArray;
use zerocopy::IntoBytes as _;

use crate::device::{Blk, Config, Interface};
use crate::front::mmio::{Mmio, register};
use crate::wire::{ConfigSpace, DeviceStatus, Features, RangeSegment, RequestHeader};

/// Requests that the device has in flight in each queue: one more than the driver ever offers.
const SLOTS: usize = DEPTH + 1;
/// Steps outstanding at once.
const DEPTH: usize = 3;
/// Entries of a ring: room for `DEPTH` chains of three.
const RING: u16 = 16;

/// Where things are in memory: requests first, then the rings, each in one piece as the legacy interface has it.
const HEADERS: u64 = 0x00;
const RANGES: u64 = 0x30;
const STATUSES: u64 = 0x60;
const RINGS: u64 = 0x80;
const RING_BYTES: u64 = 0x1b0;

const fn ring(queue: usize) -> RingLayout {
    let at = RINGS + queue as u64 * RING_BYTES;
    RingLayout { entries: RING, descriptors: at, driver: at + 0x100, device: at + 0x128 }
}

/// What kind of guest: what it negotiates and what its block layer then does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Variant {
    /// Legacy, one queue: FLUSH, CONFIG_WCE and BARRIER.
    Barrier,
    /// Modern: FLUSH, CONFIG_WCE, EVENT_IDX and, if the guest has more than one, MQ. Requests alternate between the
    /// queues, flushes go to the first.
    Modern,
    /// Modern, with neither FLUSH nor CONFIG_WCE: the device has to be write-through.
    NoFlush,
    /// Modern with the experimental FUA write.
    Fua,
    /// Of 2009: its block layer believes that the device has neither a flush nor a barrier. A flush is done at once, and a
    /// barrier a plain write that nobody drained for.
    Of2009,
}

const COMMON: [Action; 10] = alphabet(&[
    &Action::WRITES,
    &[Action::WriteZeroes(SectorRun::BOTH), Action::Discard(SectorRun::ZERO), Action::Read(SectorRun::BOTH)],
    &[Action::Flush, Action::Reset, Action::CacheOff, Action::CacheOn],
]);
const BARRIER: [Action; 11] = alphabet(&[&COMMON, &[Action::WriteOrdered(SectorRun::ONE)]]);
const FUA: [Action; 11] = alphabet(&[&COMMON, &[Action::WriteFua(SectorRun::ZERO)]]);
const OF_2009: [Action; 6] = [
    Action::Write(SectorRun::ZERO),
    Action::Write(SectorRun::BOTH),
    Action::WriteOrdered(SectorRun::ONE),
    Action::Read(SectorRun::BOTH),
    Action::Flush,
    Action::Reset,
];

/// A driver and its device, of `Q` queues.
#[derive(Clone, Debug, Serialize)]
pub struct Driver<const Q: usize> {
    device: Mmio<Q, SLOTS>,
    variant: Variant,
    #[serde(with = "BigArray")]
    rings: [DriverRing; Q],
    outstanding: [Option<Outstanding>; DEPTH],
    /// A register write that the vCPU waits for.
    waiting: Option<Waiting>,
    /// A step that ended without the device.
    at_once: Option<u8>,
    /// The cache as the driver last read it.
    write_cache: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Outstanding {
    id: u8,
    action: Action,
    queue: u8,
}

#[derive(Clone, Copy, Debug, Serialize)]
enum Waiting {
    Reset { id: u8 },
    CacheOff { id: u8 },
}

impl<const Q: usize> Driver<Q> {
    /// Brings a device up for a guest of this kind. `storage` has a handle for each queue.
    ///
    /// # Panics
    /// If the device does not come up.
    pub fn boot<M: GuestMemory, H: Storage<M>>(variant: Variant, memory: &M, storage: &mut [H]) -> Self {
        let interface = match variant {
            Variant::Barrier => Interface::Legacy { barrier: true },
            Variant::Of2009 => Interface::Legacy { barrier: false },
            Variant::Modern | Variant::NoFlush | Variant::Fua => Interface::Modern,
        };
        let config = Config {
            queues: Q as u16,
            queue_size_max: RING,
            interface,
            experimental_fua: variant == Variant::Fua,
            ..Config::default()
        };
        let mut driver = Self {
            device: Mmio::new(Blk::new(config)),
            variant,
            rings: [DriverRing::default(); Q],
            outstanding: [None; DEPTH],
            waiting: None,
            at_once: None,
            write_cache: true,
        };
        driver.bring_up(&mut World { memory, storage });
        driver
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &Mmio<Q, SLOTS> {
        &self.device
    }

    fn is_legacy(&self) -> bool {
        matches!(self.variant, Variant::Barrier | Variant::Of2009)
    }

    fn wants(&self) -> Features {
        let modern = Features::VERSION_1 | Features::EVENT_IDX | Features::DISCARD | Features::WRITE_ZEROES;
        let cache = Features::FLUSH | Features::CONFIG_WCE;
        match self.variant {
            Variant::Barrier => cache | Features::BARRIER | Features::DISCARD | Features::WRITE_ZEROES,
            Variant::Modern => modern | cache | Features::MQ,
            Variant::NoFlush => modern,
            Variant::Fua => modern | cache | Features::REQ_FLAGS | Features::REQ_FLAGS_OUT_FUA,
            // With FLUSH, since without it the device would be write-through.
            Variant::Of2009 => Features::FLUSH,
        }
    }

    /// Initialisation (VIRTIO 1.3, 3.1.1 and 4.2.3; legacy 4.2.4).
    fn bring_up<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) {
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        world.set(&mut self.device, register::STATUS, u32::from(status.bits()));
        let offered = self.features(world);
        let features = self.wants() & offered;
        let missing = self.wants().difference(offered);
        assert!((missing - Features::MQ).is_empty(), "not offered: {missing:?}");
        world.set_all(&mut self.device, &accept(features.bits()));
        if !self.is_legacy() {
            status |= DeviceStatus::FEATURES_OK;
            world.set(&mut self.device, register::STATUS, u32::from(status.bits()));
            let accepted = world.get(&mut self.device, register::STATUS);
            assert_eq!(accepted, u32::from(status.bits()), "the features are accepted");
        }
        for queue in 0..Q as u32 {
            self.bring_up_queue(world, queue);
        }
        status |= DeviceStatus::DRIVER_OK;
        world.set(&mut self.device, register::STATUS, u32::from(status.bits()));
        self.write_cache = match self.variant {
            Variant::NoFlush => false,
            Variant::Of2009 => true,
            _ => self.read_writeback(world),
        };
    }

    fn bring_up_queue<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>, queue: u32) {
        let layout = ring(queue as usize);
        sim::put(world.memory, layout.descriptors, &[0; RING_BYTES as usize]);
        self.rings[queue as usize] = DriverRing::default();
        world.set(&mut self.device, register::QUEUE_SEL, queue);
        assert_eq!(world.get(&mut self.device, register::QUEUE_SIZE_MAX), u32::from(RING));
        if !self.is_legacy() {
            return world.set_all(&mut self.device, &layout.set_up(queue));
        }
        world.set(&mut self.device, register::QUEUE_SIZE, u32::from(RING));
        world.set(&mut self.device, register::GUEST_PAGE_SIZE, RINGS as u32);
        world.set(&mut self.device, register::QUEUE_ALIGN, 4);
        world.set(&mut self.device, register::QUEUE_PFN, (layout.descriptors / RINGS) as u32);
    }

    fn features<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) -> Features {
        let bits = [1, 0].into_iter().fold(0, |bits, half| {
            world.set(&mut self.device, register::DEVICE_FEATURES_SEL, half);
            bits << 32 | u64::from(world.get(&mut self.device, register::DEVICE_FEATURES))
        });
        Features::from_bits_truncate(bits)
    }

    fn read_writeback<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) -> bool {
        let offset = register::CONFIG + ConfigSpace::WRITEBACK;
        let World { memory, storage } = world;
        self.device.read(Region::Bar(0), offset, Width::Byte, *memory, *storage).value != 0
    }

    /// Writes `writeback`. Returns whether the write is done.
    fn write_writeback<M: GuestMemory, H: Storage<M>>(
        &mut self,
        world: &mut World<'_, M, [H]>,
        on: bool,
    ) -> bool {
        let offset = register::CONFIG + ConfigSpace::WRITEBACK;
        let World { memory, storage } = world;
        let access = self.device.write(Region::Bar(0), offset, Width::Byte, u64::from(on), *memory, *storage);
        access.value == WriteStatus::Done
    }

    /// The request of a step, and whether its data is written by the device.
    fn request(&self, action: Action) -> (u32, u32, bool) {
        const OUT: u32 = 1;
        match action {
            Action::Read(_) => (0, 0, true),
            Action::Write(_) => (OUT, 0, false),
            Action::WriteFua(_) => (OUT, 1, false),
            Action::WriteOrdered(_) if self.variant == Variant::Barrier => (OUT | 1 << 31, 0, false),
            Action::WriteOrdered(_) => (OUT, 0, false),
            Action::Flush => (4, 0, false),
            Action::Discard(_) => (11, 0, false),
            Action::WriteZeroes(_) => (13, 0, false),
            Action::CacheOff | Action::CacheOn | Action::Reset => panic!("{action} is no request"),
        }
    }

    /// Puts a request into its ring, and notifies.
    fn send<M: GuestMemory, H: Storage<M>>(&mut self, id: u8, action: Action, world: &mut World<'_, M, [H]>) {
        let slot = self.outstanding.iter().position(Option::is_none).expect("within the depth");
        let queue = if action == Action::Flush { 0 } else { (usize::from(id) + 1) % Q };
        let (kind, flags, device_writes) = self.request(action);
        let at = slot as u64;
        let (header, status) = (HEADERS + 16 * at, STATUSES + at);
        let run = action.run();
        let data = match action {
            Action::Flush => None,
            Action::Discard(run) | Action::WriteZeroes(run) => {
                let range = RangeSegment {
                    sector: u64::from(run.first).into(),
                    num_sectors: u32::from(run.count).into(),
                    flags: 0.into(),
                };
                sim::put(world.memory, RANGES + 16 * at, range.as_bytes());
                Some((RANGES + 16 * at, 16))
            }
            Action::Read(run) => Some((layout::sink(id).0, u32::from(run.count) * SECTOR_BYTES)),
            _ => run.map(|run| (layout::source(written_by(id)).0, u32::from(run.count) * SECTOR_BYTES)),
        };
        let ranged = matches!(action, Action::Discard(_) | Action::WriteZeroes(_));
        let sector = run.filter(|_| !ranged).map_or(0, |run| u64::from(run.first));
        let bytes = RequestHeader { kind: kind.into(), reserved: flags.into(), sector: sector.into() };
        sim::put(world.memory, header, bytes.as_bytes());
        sim::put(world.memory, status, &[0xff]);

        let mut chain = Vec::<Piece, 3>::new();
        let data = data.map(|(at, len)| (at, len, if device_writes { WRITE } else { 0 }));
        chain.extend([Some((header, 16, 0)), data, Some((status, 1, WRITE))].into_iter().flatten());
        self.rings[queue].offer(world.memory, &ring(queue), slot as u16 * 3, &chain);
        world.set(&mut self.device, register::QUEUE_NOTIFY, queue as u32);
        self.outstanding[slot] = Some(Outstanding { id, action, queue: queue as u8 });
    }

    /// Takes what is in the used rings, as an interrupt handler does.
    fn reap<M: GuestMemory, H: Storage<M>>(
        &mut self,
        world: &mut World<'_, M, [H]>,
        ended: &mut Vec<Ended, 16>,
    ) {
        for queue in 0..Q {
            while let Some((head, written)) = self.rings[queue].take_used(world.memory, &ring(queue)) {
                let one = self.finish(queue, head, written, world.memory);
                ended.push(one).expect("no more than the depth");
                if self.wants().contains(Features::EVENT_IDX) {
                    self.rings[queue].want_interrupt(world.memory, &ring(queue));
                }
            }
        }
    }

    /// A chain has come back.
    fn finish<M: GuestMemory>(&mut self, queue: usize, head: u32, written: u32, memory: &M) -> Ended {
        let slot = head as usize / 3;
        let outstanding = self.outstanding.get_mut(slot).and_then(Option::take);
        let Outstanding { id, action, queue: asked } = outstanding.expect("a chain comes back once");
        assert_eq!((queue, head % 3), (usize::from(asked), 0), "a chain comes back whence it came");
        let mut expected = 1;
        let outcome = match sim::get(memory, STATUSES + slot as u64) {
            [0] => match action {
                Action::Read(run) => {
                    expected += u32::from(run.count) * SECTOR_BYTES;
                    Outcome::Ok { read: sim::read_back(memory, id, run) }
                }
                _ => Outcome::DONE,
            },
            [1 | 2] => Outcome::Failed,
            other => panic!("status {other:?}"),
        };
        assert_eq!(written, expected, "the used length is what was written");
        self.wipe(slot, queue, memory);
        Ended { id, outcome }
    }

    /// Clears what a request leaves behind, so that histories with the same future are the same state.
    fn wipe<M: GuestMemory>(&self, slot: usize, queue: usize, memory: &M) {
        let at = slot as u64;
        sim::put(memory, HEADERS + 16 * at, &[0; 16]);
        sim::put(memory, RANGES + 16 * at, &[0; 16]);
        sim::put(memory, STATUSES + at, &[0]);
        sim::put(memory, ring(queue).descriptors + 48 * at, &[0; 48]);
    }

    /// The register write that the vCPU waited for is done.
    fn resume<M: GuestMemory, H: Storage<M>>(
        &mut self,
        waiting: Waiting,
        world: &mut World<'_, M, [H]>,
    ) -> Ended {
        match waiting {
            Waiting::Reset { id } => {
                assert_eq!(world.get(&mut self.device, register::STATUS), 0, "the reset is done");
                for slot in 0..DEPTH {
                    if let Some(Outstanding { queue, .. }) = self.outstanding[slot].take() {
                        self.wipe(slot, usize::from(queue), world.memory);
                    }
                }
                self.bring_up(world);
                Ended { id, outcome: Outcome::DONE }
            }
            Waiting::CacheOff { id } => {
                self.write_cache = self.read_writeback(world);
                let outcome = if self.write_cache { Outcome::Failed } else { Outcome::DONE };
                Ended { id, outcome }
            }
        }
    }
}

impl<M: GuestMemory, H: Storage<M>, const Q: usize> Guest<M, [H]> for Driver<Q> {
    fn alphabet(&self) -> &'static [Action] {
        match self.variant {
            Variant::Barrier => &BARRIER,
            Variant::Modern => &COMMON,
            // All but the cache switch.
            Variant::NoFlush => COMMON.first_chunk::<8>().expect("longer than that"),
            Variant::Fua => &FUA,
            Variant::Of2009 => &OF_2009,
        }
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn accepts(&self, _action: Action) -> bool {
        self.waiting.is_none()
    }

    fn issue(&mut self, id: u8, action: Action, memory: &M, storage: &mut [H]) {
        let mut world = World { memory, storage };
        match action {
            Action::Flush if self.variant == Variant::Of2009 => self.at_once = Some(id),
            Action::Reset => {
                world.set(&mut self.device, register::STATUS, 0);
                self.waiting = Some(Waiting::Reset { id });
            }
            Action::CacheOff => {
                self.write_writeback(&mut world, false);
                self.waiting = Some(Waiting::CacheOff { id });
            }
            Action::CacheOn => {
                self.write_writeback(&mut world, true);
                self.write_cache = self.read_writeback(&mut world);
                self.at_once = Some(id);
            }
            _ => self.send(id, action, &mut world),
        }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Vec<Ended, 16> {
        let mut world = World { memory, storage };
        let mut ended = Vec::new();
        if let Some(id) = self.at_once.take() {
            ended.push(Ended { id, outcome: Outcome::DONE }).expect("it is empty");
        }
        let progress = loop {
            let progress = self.device.poll(world.memory, world.storage);
            if !progress.again {
                break progress;
            }
        };
        // After an interrupt only, so that one that is lost shows.
        if world.take_interrupt(&mut self.device) {
            self.reap(&mut world, &mut ended);
        }
        if !progress.pending_write
            && let Some(waiting) = self.waiting.take()
        {
            let one = self.resume(waiting, &mut world);
            ended.push(one).expect("no more than the depth and this");
        }
        ended
    }

    fn write_cache(&self) -> bool {
        self.write_cache
    }

    /// BARRIER flushes before and after.
    fn ordered_crash(&self) -> bool {
        !self.write_cache || self.variant == Variant::Barrier
    }
}
