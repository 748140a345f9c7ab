//! A driver that reaches the same disk through virtio-scsi: registers, rings, task management.

use blk_core::bus::Device;
use blk_core::memory::GuestMemory;
use blk_core::sim::virtio::{DriverRing, Piece, RingLayout, WRITE, accept};
use blk_core::sim::{Action, Ended, Guest, Outcome, World, get, layout, put, read_back, written_by};
use blk_core::storage::Storage;
use blk_core::virtio::mmio::register;
use heapless::Vec;
use serde::Serialize;
use serde_big_array::BigArray;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{ALPHABET, CACHING, DEPTH, HEADER, Order, SECTOR, TASKS, WCE, bytes};
use crate::config::Config;
use crate::front::virtio_scsi::wire::{
    Features, Management, RequestHead, Response, ResponseHead, attribute, function,
};
use crate::front::virtio_scsi::{Address, CONTROL, Config as HostConfig, Mmio, REQUEST, Scsi};
use crate::task_set::Attribute;

/// The one disk.
const ADDRESS: Address = Address { target: 0, lun: 0 };

/// Entries of a ring: room for a chain of three for each step outstanding.
const RING: u16 = 16;
/// Sizes that the driver chooses, so that there is less memory to tell states apart by.
const CDB_BYTES: usize = 16;
const SENSE_BYTES: usize = 18;

/// Where things are in memory: what requests need, what the control queue needs, and the rings.
const REQUEST_BYTES: u64 = 0x60;
/// Within a request: header, response, data that is not the step's page.
const RESPONSE: u64 = 0x24;
const DATA: u64 = 0x44;
const MANAGEMENT: u64 = REQUEST_BYTES * DEPTH as u64;
const MANAGEMENT_RESPONSE: u64 = MANAGEMENT + 0x18;
const RINGS: u64 = 0x140;
const RING_BYTES: u64 = 0x1b0;

const fn layout_of(ring: usize) -> RingLayout {
    // The event queue is not set up.
    let at = RINGS + RING_BYTES * (if ring == CONTROL { 0 } else { ring as u64 - 1 });
    RingLayout { entries: RING, descriptors: at, driver: at + 0x100, device: at + 0x128 }
}

/// What kind of guest: above all, how it resets the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Variant {
    /// By the device status.
    DeviceReset,
    /// By LOGICAL UNIT RESET.
    UnitReset,
    /// By ABORT TASK SET: what the disk has been set to stays.
    AbortTaskSet,
    /// By the device status. A firmware that turns the cache on, and then an operating system that never reads the caching
    /// page, and relies on the default, which on this disk is off.
    FirmwareThenOld,
}

impl Variant {
    /// The task management function that resets.
    const fn function(self) -> Option<u32> {
        match self {
            Self::DeviceReset | Self::FirmwareThenOld => None,
            Self::UnitReset => Some(function::LOGICAL_UNIT_RESET),
            Self::AbortTaskSet => Some(function::ABORT_TASK_SET),
        }
    }
}

/// A driver and its controller, of `Q` request queues in front of one disk.
#[derive(Clone, Debug, Serialize)]
pub struct Driver<const Q: usize> {
    device: Mmio<Q, 1, TASKS>,
    variant: Variant,
    control: DriverRing,
    #[serde(with = "BigArray")]
    rings: [DriverRing; Q],
    outstanding: [Option<Outstanding>; DEPTH],
    /// The step whose reset is under way.
    resetting: Option<u8>,
    /// The cache as the driver last read it.
    write_cache: bool,
    /// The disk did not answer at once, although nothing should have been in its way.
    stuck: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Outstanding {
    id: u8,
    action: Action,
    queue: u8,
    /// The step is done but for this: the driver reads what has become of the cache.
    reading: Option<Outcome>,
}

/// What a chain that came back says.
struct Answer {
    good: bool,
    aborted: bool,
    moved_bytes: u64,
}

impl<const Q: usize> Driver<Q> {
    /// Brings a controller up. `storage` has one handle.
    ///
    /// # Panics
    /// If it does not come up.
    pub fn boot<M: GuestMemory, H: Storage<M>>(variant: Variant, memory: &M, storage: &mut [H]) -> Self {
        let config = HostConfig { queues: Q as u16, queue_size_max: RING };
        let mut device = Mmio::<Q, 1, TASKS>::new(Scsi::new(config));
        let write_cache = variant != Variant::FirmwareThenOld;
        let identity = Config { write_cache, ..Config::new("BLK", "crash test disk", "1", "0") };
        let info = storage.first().expect("a disk has a storage").info();
        let inserted = device.device_mut().controller_mut().insert(ADDRESS, identity, info);
        inserted.expect("a geometry that SCSI has");
        let mut driver = Self {
            device,
            variant,
            control: DriverRing::default(),
            rings: [DriverRing::default(); Q],
            outstanding: [None; DEPTH],
            resetting: None,
            write_cache: false,
            stuck: false,
        };
        let world = &mut World { memory, storage };
        driver.bring_up(world);
        if variant == Variant::FirmwareThenOld {
            // Refused where the host has no volatile cache.
            driver.execute(&Order::mode_select(WCE), world);
            world.set(&mut driver.device, register::STATUS, 0);
            driver.bring_up(world);
        }
        driver
    }

    /// The controller.
    #[must_use]
    pub const fn device(&self) -> &Mmio<Q, 1, TASKS> {
        &self.device
    }

    /// Initialisation (VIRTIO 1.3, 3.1.1 and 4.2.3).
    fn bring_up<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) {
        world.set(&mut self.device, register::STATUS, 1);
        world.set(&mut self.device, register::STATUS, 3);
        world.set_all(&mut self.device, &accept(Features::VERSION_1.bits()));
        world.set(&mut self.device, register::STATUS, 11);
        assert_eq!(world.get(&mut self.device, register::STATUS), 11, "the features are accepted");
        world.set(&mut self.device, register::CONFIG + 20, SENSE_BYTES as u32);
        world.set(&mut self.device, register::CONFIG + 24, CDB_BYTES as u32);
        for ring in [CONTROL].into_iter().chain((REQUEST..).take(Q)) {
            self.bring_up_ring(world, ring);
        }
        world.set(&mut self.device, register::STATUS, 15);
        self.find_disk(world);
    }

    fn bring_up_ring<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>, ring: usize) {
        let layout = layout_of(ring);
        put(world.memory, layout.descriptors, &[0; RING_BYTES as usize]);
        *self.ring(ring) = DriverRing::default();
        world.set_all(&mut self.device, &layout.set_up(ring as u32));
    }

    /// TEST UNIT READY until the unit attentions are gone, and the caching page. Nothing is outstanding.
    fn find_disk<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) {
        let is_ready = (0..3).any(|_| self.execute(&Order::new(&[0; 6]), world));
        if self.stuck {
            return;
        }
        assert!(is_ready, "one unit attention at a time");
        if self.variant != Variant::FirmwareThenOld {
            assert!(self.execute(&mode_sense(), world), "the caching page is always there");
            self.write_cache = read_page(0, world.memory);
        }
        wipe(0, world.memory);
    }

    /// Executes a command of the driver's own while nothing is outstanding, and returns whether it ended with GOOD.
    fn execute<M: GuestMemory, H: Storage<M>>(
        &mut self,
        order: &Order,
        world: &mut World<'_, M, [H]>,
    ) -> bool {
        if self.stuck {
            return false;
        }
        self.send(0, 0, 0, order, world);
        self.settle(world);
        match self.reap(0, world.memory) {
            Some((slot, answer)) => slot == 0 && answer.good,
            None => {
                self.stuck = true;
                false
            }
        }
    }

    fn ring(&mut self, ring: usize) -> &mut DriverRing {
        if ring == CONTROL { &mut self.control } else { &mut self.rings[ring - REQUEST] }
    }

    /// Polls until the device rests, and returns whether it interrupts.
    fn settle<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) -> bool {
        while self.device.poll(world.memory, world.storage).again {}
        world.take_interrupt(&mut self.device)
    }

    /// Puts a command into a request queue. `id` names the page of data that is no list.
    fn send<M: GuestMemory, H: Storage<M>>(
        &mut self,
        slot: usize,
        queue: usize,
        id: u8,
        order: &Order,
        world: &mut World<'_, M, [H]>,
    ) {
        let at = REQUEST_BYTES * slot as u64;
        let head = RequestHead {
            lun: ADDRESS.encode(),
            id: (slot as u64).into(),
            task_attr: match order.attribute {
                Attribute::Simple => attribute::SIMPLE,
                Attribute::Ordered => attribute::ORDERED,
                Attribute::HeadOfQueue => attribute::HEAD,
            },
            prio: 0,
            crn: 0,
        };
        put(world.memory, at, head.as_bytes());
        let cdb: [u8; CDB_BYTES] = core::array::from_fn(|index| order.cdb.byte(index));
        put(world.memory, at + size_of::<RequestHead>() as u64, &cdb);
        put(world.memory, at + RESPONSE, &[0xff; RESPONSE_BYTES]);
        let mut chain = Vec::<Piece, 3>::new();
        let mut add = |at, bytes: usize, flags| chain.push((at, bytes as u32, flags)).expect("three at most");
        add(at, size_of::<RequestHead>() + CDB_BYTES, 0);
        if let Some(list) = order.list {
            put(world.memory, at + DATA, &list);
            add(at + DATA, list.len(), 0);
        } else if order.out_bytes != 0 {
            add(layout::source(written_by(id)).0, order.out_bytes as usize, 0);
        }
        add(at + RESPONSE, RESPONSE_BYTES, WRITE);
        if order.in_bytes != 0 {
            let page = if order.in_bytes < SECTOR { at + DATA } else { layout::sink(id).0 };
            add(page, order.in_bytes as usize, WRITE);
        }
        self.offer(REQUEST + queue, slot as u16 * 3, &chain, world);
    }

    fn offer<M: GuestMemory, H: Storage<M>>(
        &mut self,
        ring: usize,
        head: u16,
        chain: &[Piece],
        world: &mut World<'_, M, [H]>,
    ) {
        self.ring(ring).offer(world.memory, &layout_of(ring), head, chain);
        world.set(&mut self.device, register::QUEUE_NOTIFY, ring as u32);
    }

    /// The next head in a used ring, with the length that was written.
    fn used<M: GuestMemory>(&mut self, ring: usize, memory: &M) -> Option<(u32, u32)> {
        self.ring(ring).take_used(memory, &layout_of(ring))
    }

    /// The next command that came back in a request queue: its slot and answer.
    fn reap<M: GuestMemory>(&mut self, queue: usize, memory: &M) -> Option<(usize, Answer)> {
        let (head, written) = self.used(REQUEST + queue, memory)?;
        let slot = head as usize / 3;
        let response: [u8; RESPONSE_BYTES] = get(memory, REQUEST_BYTES * slot as u64 + RESPONSE);
        let (head, _) = ResponseHead::read_from_prefix(&response).expect("it is that long");
        let aborted = [Response::Aborted as u8, Response::Reset as u8].contains(&head.response);
        assert!(aborted || head.response == Response::Ok as u8, "response {}", head.response);
        let data = (written as usize).saturating_sub(RESPONSE_BYTES);
        let at = layout_of(REQUEST + queue).descriptors + 48 * slot as u64;
        put(memory, at, &[0; 48]);
        let good = !aborted && head.status == 0;
        Some((slot, Answer { good, aborted, moved_bytes: data as u64 }))
    }

    /// Takes what came back, and goes on with what is not done by that.
    fn serve<M: GuestMemory, H: Storage<M>>(
        &mut self,
        world: &mut World<'_, M, [H]>,
        ended: &mut Vec<Ended, 16>,
    ) {
        let mut back = Vec::<_, 16>::new();
        for queue in 0..Q {
            while let Some((slot, answer)) = self.reap(queue, world.memory) {
                let one = self.outstanding[slot].take().expect("a chain comes back once");
                assert_eq!(queue, usize::from(one.queue), "a chain comes back whence it came");
                back.push((one, slot, answer)).ok().expect("no more than the depth");
            }
        }
        // A ring has an order, and two rings that are seen at the same time have none: the oldest of what comes first in them.
        while let Some(next) = (0..back.len())
            .filter(|&at| back[..at].iter().all(|(one, ..)| one.queue != back[at].0.queue))
            .min_by_key(|&at| back[at].0.id)
        {
            let (one, slot, answer) = back.remove(next);
            self.finish(one, slot, &answer, world, ended);
        }
    }

    fn finish<M: GuestMemory, H: Storage<M>>(
        &mut self,
        one: Outstanding,
        slot: usize,
        answer: &Answer,
        world: &mut World<'_, M, [H]>,
        ended: &mut Vec<Ended, 16>,
    ) {
        let Outstanding { id, action, queue, reading } = one;
        // What a reset takes away it tells by its own end.
        if answer.aborted {
            return wipe(slot, world.memory);
        }
        if let Some(outcome) = reading {
            assert!(answer.good, "the caching page is always there");
            self.write_cache = read_page(slot, world.memory);
            wipe(slot, world.memory);
            return ended.push(Ended { id, outcome }).expect("no more than the depth");
        }
        wipe(slot, world.memory);
        let outcome = if answer.good {
            match action {
                Action::Read(run) => {
                    assert_eq!(answer.moved_bytes, bytes(run), "all of it was read");
                    Outcome::Ok { read: read_back(world.memory, id, run) }
                }
                _ => Outcome::DONE,
            }
        } else {
            Outcome::Failed
        };
        if matches!(action, Action::CacheOff | Action::CacheOn) {
            self.send(slot, usize::from(queue), id, &mode_sense(), world);
            self.outstanding[slot] = Some(Outstanding { reading: Some(outcome), ..one });
        } else {
            ended.push(Ended { id, outcome }).expect("no more than the depth");
        }
    }

    /// Whether the reset that is under way is over.
    fn reset_is_over<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) -> bool {
        if self.variant.function().is_none() {
            return world.get(&mut self.device, register::STATUS) == 0;
        }
        let Some((_, written)) = self.used(CONTROL, world.memory) else { return false };
        let response = get(world.memory, MANAGEMENT_RESPONSE);
        assert_eq!((written, response), (1, [0]), "FUNCTION COMPLETE");
        true
    }

    /// Ends the reset `resetting`, if it is over.
    fn end_reset<M: GuestMemory, H: Storage<M>>(
        &mut self,
        resetting: Option<u8>,
        world: &mut World<'_, M, [H]>,
        ended: &mut Vec<Ended, 16>,
    ) {
        if let Some(id) = resetting.filter(|_| self.reset_is_over(world)) {
            self.resetting = None;
            self.restart(world);
            ended.push(Ended { id, outcome: Outcome::DONE }).expect("no more than the depth and this");
        }
    }

    /// The reset is over: nothing that was outstanding comes back.
    fn restart<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, [H]>) {
        for slot in 0..DEPTH {
            if let Some(Outstanding { .. }) = self.outstanding[slot].take() {
                wipe(slot, world.memory);
            }
        }
        put(world.memory, MANAGEMENT, &[0; 0x20]);
        if self.variant.function().is_none() { self.bring_up(world) } else { self.find_disk(world) }
    }
}

impl<M: GuestMemory, H: Storage<M>, const Q: usize> Guest<M, [H]> for Driver<Q> {
    fn alphabet(&self) -> &'static [Action] {
        match self.variant {
            // All but the cache switch.
            Variant::FirmwareThenOld => ALPHABET.first_chunk::<10>().expect("longer than that"),
            _ => &ALPHABET,
        }
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn accepts(&self, _action: Action) -> bool {
        self.resetting.is_none()
    }

    fn issue(&mut self, id: u8, action: Action, memory: &M, storage: &mut [H]) {
        let world = &mut World { memory, storage };
        if action == Action::Reset {
            self.resetting = Some(id);
            let Some(subtype) = self.variant.function() else {
                return world.set(&mut self.device, register::STATUS, 0);
            };
            let request =
                Management { subtype: subtype.into(), lun: ADDRESS.encode(), ..Management::default() };
            put(memory, MANAGEMENT, request.as_bytes());
            put(memory, MANAGEMENT_RESPONSE, &[0xff]);
            let chain = [(MANAGEMENT, size_of::<Management>() as u32, 0), (MANAGEMENT_RESPONSE, 1, WRITE)];
            return self.offer(CONTROL, 0, &chain, world);
        }
        let slot = self.outstanding.iter().position(Option::is_none).expect("within the depth");
        let queue = usize::from(id) % Q;
        self.send(slot, queue, id, &Order::of(action), world);
        self.outstanding[slot] = Some(Outstanding { id, action, queue: queue as u8, reading: None });
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Vec<Ended, 16> {
        assert!(!self.stuck, "a command without storage does not wait when nothing is in flight");
        let world = &mut World { memory, storage };
        let mut ended = Vec::new();
        // After an interrupt only, so that one that is lost shows.
        while self.settle(world) {
            let managing = self.resetting.filter(|_| self.variant.function().is_some());
            self.serve(world, &mut ended);
            self.end_reset(managing, world, &mut ended);
        }
        if self.variant.function().is_none() {
            self.end_reset(self.resetting, world, &mut ended);
        }
        ended
    }

    /// From the moment that the driver asks for a cache it reckons with one.
    fn write_cache(&self) -> bool {
        let turning_on = |one: &Outstanding| one.action == Action::CacheOn;
        self.write_cache || self.outstanding.iter().flatten().any(turning_on)
    }
}

const RESPONSE_BYTES: usize = size_of::<ResponseHead>() + SENSE_BYTES;

/// MODE SENSE of the caching page, before everything that waits.
fn mode_sense() -> Order {
    let len = HEADER + CACHING;
    Order {
        in_bytes: len as u64,
        attribute: Attribute::HeadOfQueue,
        ..Order::new(&[0x1a, 0x08, 0x08, 0, len as u8, 0])
    }
}

/// WCE, from the page that a slot's command has read.
fn read_page<M: GuestMemory>(slot: usize, memory: &M) -> bool {
    let page: [u8; HEADER + CACHING] = get(memory, REQUEST_BYTES * slot as u64 + DATA);
    assert_eq!((page[3], page[HEADER], page[HEADER + 1]), (0, 0x08, 0x12), "no descriptor, the page");
    page[HEADER + 2] & WCE != 0
}

/// Clears what a request leaves behind, so that histories with the same future are the same state.
fn wipe<M: GuestMemory>(slot: usize, memory: &M) {
    put(memory, REQUEST_BYTES * slot as u64, &[0; REQUEST_BYTES as usize]);
}

const _: () = assert!(size_of::<RequestHead>() + CDB_BYTES <= RESPONSE as usize);
const _: () = assert!(RESPONSE as usize + RESPONSE_BYTES <= DATA as usize);
const _: () = assert!(DATA as usize + HEADER + CACHING <= REQUEST_BYTES as usize);
const _: () = assert!(MANAGEMENT_RESPONSE < RINGS);
