//! A virtio device under a driver that keeps the rules, or does not: what is the same whatever the device.

use std::mem::take;

use blk_core::bus::{Progress, Region, Width};
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use blk_core::virtio::VirtioDevice;
use blk_core::virtio::mmio::register;
use blk_core::virtq::Buffer;

use crate::choices;
use crate::disk::{Event, Handle};
use crate::front::{Front, Way, World};
use crate::memory::Memory;
use crate::oracle::Oracle;
use crate::ring::{Layout, Ring};

/// Entries of each ring.
pub const RING_ENTRIES: u16 = 16;
/// Bytes of a ring, and of the page that each request has to itself.
pub const PAGE_BYTES: u64 = 0x1000;
/// Where the data is in the page of a request.
pub const DATA: u64 = 0x100;

/// VIRTIO_F_RING_RESET.
const RING_RESET: u64 = 1 << 40;

choices! {
    /// What may happen to any virtio device.
    pub enum Action {
        /// The driver resets the device, and brings it up again when it may.
        Reset,
        /// The driver resets a queue.
        ResetRing { ring: u8 },
        /// The machine is reset, and everything begins anew.
        Restart,
        /// Any register is read.
        Read { offset: u16, width: u8 },
        /// Any register is written.
        Write { offset: u16, width: u8, value: u32 },
        /// The driver writes anything over its rings and requests.
        Scribble { at: u16, value: u32 },
        /// Bus mastering is switched, on PCI.
        BusMaster { on: bool },
        /// Anything in PCI configuration space is written and read.
        Configure { offset: u8, width: u8, value: u32 },
    }
}

/// A driver of one kind of device.
pub trait Driver: Sized {
    /// The device.
    type Device: VirtioDevice<Memory, [Handle]>;
    /// What is known of a chain that is out.
    type Request;
    /// Where the first ring is. They have a page each, and then come the pages of the requests.
    const RINGS_AT: u64;
    /// Requests that the driver has out at once.
    const OUTSTANDING: u64;
    /// Where the device answers in the page of a request: up to 12 bytes.
    const ANSWER: u64;
    /// The ring that is looked at first for what came back.
    const FIRST: usize;

    /// Negotiates, and sets up every ring.
    fn bring_up(rig: &mut Rig<Self>);

    /// Enables the queue of a ring whose memory is clear.
    fn enable_queue(rig: &mut Rig<Self>, ring: usize, layout: &Layout);

    /// What the guest was told: that completed writes are stable.
    fn through(rig: &mut Rig<Self>) -> bool;

    /// A chain came back, after its page was taken back.
    fn end(rig: &mut Rig<Self>, one: Outstanding<Self::Request>, written: u32);

    /// Whether chains of this ring may wait for ever.
    fn may_wait(ring: usize) -> bool;
}

/// A chain that the driver has not got back.
pub struct Outstanding<R> {
    pub ring: usize,
    pub head: u16,
    /// The page that it has to itself.
    pub page: u64,
    /// Its place among all.
    pub number: u64,
    /// The most that the device may write.
    pub writable: u32,
    pub request: R,
}

/// What the vCPU that wrote a register waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    No,
    Reset,
    CacheOff { begun: u64 },
    Ring { ring: usize },
}

/// What the device may not change without bus mastering: used indices, and its answers to what is outstanding.
type Answers = (Vec<u16>, Vec<[u8; 12]>);

/// A device and its driver.
pub struct Rig<D: Driver> {
    pub driver: D,
    pub memory: Memory,
    pub disks: Vec<Handle>,
    pub device: Front<D::Device>,
    rings: Vec<Ring>,
    ring_count: usize,
    /// The features that were agreed.
    pub features: u64,
    pub outstanding: Vec<Outstanding<D::Request>>,
    numbers: u64,
    pub oracle: Oracle,
    pub waiting: Waiting,
    /// Whether the driver has kept to the rules since the device was brought up.
    pub honest: bool,
    frozen: Option<Answers>,
}

impl<D: Driver> Rig<D> {
    /// A device that is up, with `rings` rings.
    pub fn new(driver: D, device: D::Device, way: Way, disks: Vec<Handle>, rings: usize) -> Self {
        let memory = Memory::new((page(D::RINGS_AT, rings as u64 + D::OUTSTANDING)) as usize);
        let mut rig = Self {
            driver,
            memory,
            disks,
            device: Front::new(device, way),
            rings: Vec::new(),
            ring_count: rings,
            features: 0,
            outstanding: Vec::new(),
            numbers: 0,
            oracle: Oracle::default(),
            waiting: Waiting::No,
            honest: true,
            frozen: None,
        };
        rig.device.enable(World { memory: &rig.memory, disks: &mut rig.disks });
        D::bring_up(&mut rig);
        rig
    }

    /// Runs a program, and ends what is left.
    pub fn run<A>(mut self, actions: Vec<A>, act: impl Fn(&mut Self, A)) {
        for action in actions {
            act(&mut self, action);
            self.check();
        }
        self.set_bus_master(true);
        self.settle();
        self.poll();
        self.check();
        if self.honest {
            assert!(self.is_quiet() && self.waiting == Waiting::No, "everything ends");
            self.oracle.check_contents(&self.disks[0].disk());
        }
    }

    /// Lets something happen that may happen to any device.
    pub fn act(&mut self, action: Action) {
        match action {
            Action::Reset if self.waiting == Waiting::No && self.honest => {
                (0..self.ring_count).for_each(|ring| self.take_back_of(ring));
                self.waiting = Waiting::Reset;
                self.set(register::STATUS, 0);
                self.resume();
            }
            Action::ResetRing { ring } => self.reset_ring(usize::from(ring) % self.ring_count),
            Action::Reset | Action::Restart => self.restart(),
            Action::Read { offset, width } => {
                let at = self.device.anywhere(offset, width);
                let mut world = World { memory: &self.memory, disks: &mut self.disks };
                self.device.read_at(&mut world, Region::Bar(0), at);
            }
            Action::Write { offset, width, value } => {
                self.lie();
                let at = self.device.anywhere(offset, width);
                let mut world = World { memory: &self.memory, disks: &mut self.disks };
                let _ = self.device.write_at(&mut world, Region::Bar(0), at, value.into());
            }
            Action::Scribble { at, value } => {
                self.lie();
                self.memory.scribble(at, value);
            }
            Action::BusMaster { on } => self.set_bus_master(on),
            Action::Configure { offset, width, value } => {
                self.lie();
                let mut world = World { memory: &self.memory, disks: &mut self.disks };
                self.device.configure(&mut world, offset, width, value);
            }
        }
    }

    /// The first disk does something.
    pub fn happen(&mut self, event: Event) {
        self.disks[0].happen(&self.memory, event);
    }

    /// Without bus mastering the device takes nothing and answers nothing, until it is allowed to again.
    fn set_bus_master(&mut self, on: bool) {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        self.device.set_bus_master(&mut world, on);
        self.freeze();
    }

    /// What the driver has now is the measure, where the device may not change it.
    fn freeze(&mut self) {
        self.frozen = (!self.device.is_bus_master() && self.honest).then(|| self.answers());
    }

    fn answers(&self) -> Answers {
        let used = self.rings.iter().map(|ring| ring.used_index(&self.memory));
        let answers = self.outstanding.iter().map(|one| self.memory.get(one.page + D::ANSWER));
        (used.collect(), answers.collect())
    }

    /// From here on, until a restart, the driver's account is worth nothing.
    pub fn lie(&mut self) {
        self.honest = false;
        self.frozen = None;
        self.memory.unguard();
        self.oracle.lose_track();
    }

    /// Whatever has to wait is waited for by [`Self::resume`].
    pub fn set(&mut self, register: u64, value: u32) {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        let _ = self.device.write(&mut world, register, Width::Dword, value.into());
    }

    /// Reads a register, or configuration space.
    pub fn get(&mut self, register: u64, width: Width) -> u64 {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        self.device.read(&mut world, register, width)
    }

    /// Accepts these features.
    pub fn accept(&mut self, features: u64) {
        self.features = features;
        for half in [0, 1] {
            self.set(register::DRIVER_FEATURES_SEL, half);
            self.set(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    /// Sets up every ring.
    pub fn bring_up_rings(&mut self) {
        self.rings.clear();
        (0..self.ring_count).for_each(|ring| self.bring_up_ring(ring));
    }

    fn bring_up_ring(&mut self, ring: usize) {
        let base = page(D::RINGS_AT, ring as u64);
        self.memory.put(base, &[0; PAGE_BYTES as usize]);
        let layout = Layout::compact(base, RING_ENTRIES);
        assert!(layout.end() <= base + PAGE_BYTES);
        self.memory.lend(layout.device_area());
        D::enable_queue(self, ring, &layout);
        match self.rings.get_mut(ring) {
            Some(there) => *there = Ring::new(layout),
            None => self.rings.push(Ring::new(layout)),
        }
    }

    /// Enables a queue as VIRTIO 1.3, 4.2.3.2, has it.
    pub fn enable_queue(&mut self, ring: usize, layout: &Layout) {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        self.device.bring_up_queue(&mut world, ring, layout, RING_ENTRIES);
    }

    /// A page that no chain uses.
    pub fn page(&self) -> Option<u64> {
        let may_send = !matches!(self.waiting, Waiting::Reset | Waiting::Ring { .. });
        let mut pages = (0..D::OUTSTANDING).map(|index| page(D::RINGS_AT, self.ring_count as u64 + index));
        pages.find(|page| may_send && self.outstanding.iter().all(|one| one.page != *page))
    }

    /// Makes a chain available, the last `table` buffers of it in an indirect table, if there is room.
    pub fn offer(
        &mut self,
        ring: usize,
        page: u64,
        buffers: &[Buffer],
        table: usize,
        request: impl FnOnce(&mut Oracle) -> D::Request,
    ) {
        let Some(head) = self.rings[ring].offer(&self.memory, buffers, table) else { return };
        let writable = buffers.iter().filter(|buffer| buffer.writable);
        for buffer in writable.clone().filter(|_| self.honest) {
            self.memory.lend(buffer.addr.0..buffer.addr.0 + u64::from(buffer.len));
        }
        let writable = writable.map(|buffer| buffer.len).sum();
        self.numbers += 1;
        let (number, request) = (self.numbers, request(&mut self.oracle));
        self.outstanding.push(Outstanding { ring, head, page, number, writable, request });
    }

    fn is_quiet(&self) -> bool {
        self.outstanding.iter().all(|one| D::may_wait(one.ring))
    }

    fn poll_once(&mut self) -> Progress {
        self.device.poll(World { memory: &self.memory, disks: &mut self.disks })
    }

    /// Polls until the device rests, and takes what ended.
    pub fn poll(&mut self) {
        for round in 0.. {
            assert!(round < 64, "the device never rests");
            let progress = self.poll_once();
            self.collect();
            self.resume();
            if !progress.again {
                break;
            }
        }
        let idle = self.disks.iter().all(|disk| disk.disk().is_idle());
        let all_done = idle && !self.disks[0].disk().is_busy() && self.device.is_bus_master();
        if all_done && self.honest && self.waiting == Waiting::No {
            assert!(self.is_quiet(), "the disk is idle, and {} wait", self.outstanding.len());
        }
    }

    /// The driver takes what the device returned.
    fn collect(&mut self) {
        if !self.honest {
            self.outstanding.clear();
            return;
        }
        let mut ended = Vec::new();
        for ring in (0..self.ring_count).map(|ring| (D::FIRST + ring) % self.ring_count) {
            while let Some((head, written)) = self.rings[ring].collect(&self.memory) {
                ended.push((ring, head, written));
            }
            // Interrupt at the next one.
            self.rings[ring].wish(&self.memory, self.rings[ring].used_index(&self.memory), false);
        }
        let mut raised = 0;
        if !ended.is_empty() {
            let mut world = World { memory: &self.memory, disks: &mut self.disks };
            raised = self.device.take_interrupts(&mut world);
        }
        for (ring, head, written) in ended {
            assert_ne!(raised >> ring & 1, 0, "an interrupt for what was returned");
            let found = self.outstanding.iter().position(|one| (one.ring, one.head) == (ring, head));
            let one = self.outstanding.remove(found.expect("a head that is out"));
            self.memory.take_back(one.page..one.page + PAGE_BYTES);
            assert!((1..=one.writable).contains(&written), "{written} of {}", one.writable);
            D::end(self, one, written);
        }
    }

    fn reset_ring(&mut self, ring: usize) {
        if self.features & RING_RESET == 0 || self.waiting != Waiting::No || !self.honest {
            return;
        }
        self.take_back_of(ring);
        self.waiting = Waiting::Ring { ring };
        self.set(register::QUEUE_SEL, ring as u32);
        self.set(register::QUEUE_RESET, 1);
        self.resume();
    }

    /// The vCPU that waits looks whether it may go on.
    pub fn resume(&mut self) {
        match self.waiting {
            Waiting::No => {}
            Waiting::Reset => {
                if self.get(register::STATUS, Width::Dword) == 0 {
                    let landed = self.disks.iter().all(Handle::has_landed);
                    assert!(landed, "a reset waits for what was submitted");
                    self.oracle.reset();
                    self.waiting = Waiting::No;
                    D::bring_up(self);
                    self.freeze();
                }
            }
            Waiting::CacheOff { begun } => {
                let progress = self.poll_once();
                self.collect();
                if !progress.pending_write {
                    self.waiting = Waiting::No;
                    if D::through(self) {
                        self.oracle.flushed(begun);
                    }
                }
            }
            Waiting::Ring { ring } => {
                self.set(register::QUEUE_SEL, ring as u32);
                if self.get(register::QUEUE_RESET, Width::Dword) == 0 {
                    self.waiting = Waiting::No;
                    self.bring_up_ring(ring);
                    self.freeze();
                }
            }
        }
    }

    /// A ring and its requests are the driver's again: the device has no business there. But what the storage has may still
    /// fill the data of a read; its end is not known, and never will be.
    fn take_back_of(&mut self, ring: usize) {
        let base = page(D::RINGS_AT, ring as u64);
        self.memory.take_back(base..base + PAGE_BYTES);
        let (gone, kept): (Vec<_>, Vec<_>) =
            take(&mut self.outstanding).into_iter().partition(|one| one.ring == ring);
        self.outstanding = kept;
        for one in gone {
            self.memory.take_back(one.page..one.page + DATA);
        }
        self.freeze();
    }

    fn settle(&mut self) {
        for disk in &mut self.disks {
            disk.settle(&self.memory);
        }
    }

    /// The machine is reset: whatever the driver did is over.
    fn restart(&mut self) {
        self.device.reset(World { memory: &self.memory, disks: &mut self.disks });
        self.settle();
        for _ in 0..8 {
            self.poll_once();
        }
        self.device.enable(World { memory: &self.memory, disks: &mut self.disks });
        self.disks[0].happen(&self.memory, Event::Prompt { on: false });
        self.memory.take_back(0..page(D::RINGS_AT, self.ring_count as u64 + D::OUTSTANDING));
        self.memory.guard();
        self.outstanding.clear();
        self.frozen = None;
        self.oracle.reset();
        self.waiting = Waiting::No;
        self.honest = true;
        D::bring_up(self);
    }

    /// What holds after every action.
    fn check(&mut self) {
        if let Some((used, answers)) = &self.frozen {
            let now = self.answers();
            let same = now.0 == *used && now.1.starts_with(answers);
            assert!(same, "without bus mastering nothing is answered: {:?} {now:?}", self.frozen);
        }
        let disk = self.disks[0].disk();
        if disk.info().cache != Cache::Unsafe {
            self.oracle.check_medium(&disk);
        }
    }
}

const fn page(first: u64, index: u64) -> u64 {
    first + PAGE_BYTES * index
}

/// A buffer.
pub const fn buffer(at: u64, len: u32, writable: bool) -> Buffer {
    Buffer { addr: GuestAddr(at), len, writable }
}
