//! virtio-blk behind virtio-mmio or virtio-pci: registers and rings, against a driver that keeps an account and one that lies.

use blk_core::bus::{Progress, Region, Width, WriteStatus};
use blk_core::storage::{Cache, Storage as _};
use blk_core::units::{Extent, GuestAddr};
use blk_core::virtq::Buffer;
use virtio_blk_model::device::{Blk, Config, Interface};
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::wire::{ConfigSpace, DeviceStatus, Features};

use crate::disk::{Disk, Event, Handle, Kind, stamp, value};
use crate::front::{Front, Way, World};
use crate::history::{Act, History, Ticket};
use crate::memory::Memory;
use crate::program::{parse, seed};
use crate::ring::{Layout, Ring};
use crate::{choices, record};

const QUEUES: usize = 2;
/// Fewer slots than a ring has chains, so that requests have to wait.
const SLOTS: usize = 3;
const SECTORS: u64 = 16;
const RING_ENTRIES: u16 = 16;
/// From page 1 on the rings, a page each (page 0 stops a legacy queue); then a page for each request.
const RING_BYTES: u64 = 0x1000;
const REQUESTS: u64 = RING_BYTES * (1 + QUEUES as u64);
const REQUEST_BYTES: u64 = 0x1000;
const OUTSTANDING: usize = 8;
const MEMORY_BYTES: u64 = REQUESTS + REQUEST_BYTES * OUTSTANDING as u64;
/// Within a request's page.
const STATUS: u64 = 0x40;
const DATA: u64 = 0x100;
const DATA_SECTORS: u64 = 4;
const SERIAL: [u8; 20] = *b"a serial of 20 bytes";

record! {
    /// The device and its driver.
    pub struct Setup {
        /// The disk.
        pub kind: Kind,
        /// Modern, legacy, legacy with BARRIER; two queues; experimental FUA; if modern on PCI, and there with MSI-X.
        pub device: u8,
        /// Features that the driver turns down.
        pub declined: u64,
    }
}

choices! {
    /// What happens.
    pub enum Action {
        /// The driver makes a request.
        Request {
            /// Type, FUA or barrier, queue: see [`Rig::request`].
            what: u8,
            /// First sector and length.
            at: u8,
            /// How it is cut into buffers.
            cut: u8,
        },
        /// The device is polled until it rests, and the driver takes what ended.
        Poll,
        /// The disk does something.
        Disk { event: Event },
        /// The driver writes `writeback`.
        Writeback { on: bool },
        /// The driver resets the device, and brings it up again when it may.
        Reset,
        /// The driver resets a queue.
        ResetQueue { queue: u8 },
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

/// A request that the driver has not got back.
struct Outstanding {
    queue: usize,
    head: u16,
    page: u64,
    act: Act,
    ticket: Ticket,
    /// Of the write: stable by itself.
    fua: bool,
    through: bool,
    latched: bool,
    /// The most that the device may write.
    writable: u32,
}

/// What the vCPU that wrote a register waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    No,
    Reset,
    CacheOff { begun: u64 },
    Queue { queue: usize },
}

struct Rig {
    setup: Setup,
    memory: Memory,
    disks: Vec<Handle>,
    device: Front<Blk<QUEUES, SLOTS>>,
    rings: Vec<Ring>,
    features: Features,
    outstanding: Vec<Outstanding>,
    history: History,
    waiting: Waiting,
    /// Whether the driver has kept to the rules since the device was brought up.
    honest: bool,
    busy: bool,
    /// What the device may not change without bus mastering: used indices and status bytes.
    frozen: Option<Vec<u16>>,
}

/// Runs a program of [`Setup`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((setup, actions)) = parse::<Setup, Action>(data) else { return };
    let queues = 1 + u16::from(setup.device >> 2 & 1);
    let interface = match setup.device % 4 {
        0 | 1 => Interface::Modern,
        2 => Interface::Legacy { barrier: false },
        _ => Interface::Legacy { barrier: true },
    };
    let way = match (setup.device % 4 < 2, setup.device >> 4 & 3) {
        (true, 1) => Way::Pin,
        (true, 2 | 3) => Way::Messages,
        _ => Way::Mmio,
    };
    let config = Config {
        serial: SERIAL,
        queues,
        queue_size_max: RING_ENTRIES,
        interface,
        experimental_fua: setup.device >> 3 & 1 != 0,
        ..Config::default()
    };
    let mut rig = Rig {
        setup,
        memory: Memory::new(MEMORY_BYTES as usize),
        disks: Disk::open(setup.kind, SECTORS, queues),
        device: Front::new(Blk::new(config), way),
        rings: Vec::new(),
        features: Features::empty(),
        outstanding: Vec::new(),
        history: History::default(),
        waiting: Waiting::No,
        honest: true,
        busy: false,
        frozen: None,
    };
    rig.device.enable(World { memory: &rig.memory, disks: &mut rig.disks });
    rig.bring_up();
    for action in actions {
        rig.act(action);
        rig.check();
    }
    rig.busy = false;
    rig.set_bus_master(true);
    rig.disks[0].settle(&rig.memory);
    rig.poll();
    rig.check();
    if rig.honest {
        assert!(rig.outstanding.is_empty() && rig.waiting == Waiting::No, "everything ends");
        rig.history.check_contents(&rig.disks[0].disk());
    }
}

impl Rig {
    fn act(&mut self, action: Action) {
        match action {
            Action::Request { what, at, cut } => self.request(what, at, cut),
            Action::Poll => self.poll(),
            Action::Disk { event } => {
                if let Event::Busy { on } = event {
                    self.busy = on;
                }
                self.disks[0].happen(&self.memory, event);
            }
            Action::Writeback { on } => self.write_writeback(on),
            Action::Reset if self.waiting == Waiting::No && self.honest => {
                self.take_back();
                self.waiting = Waiting::Reset;
                self.set(register::STATUS, 0);
                self.resume();
            }
            Action::ResetQueue { queue } => self.reset_queue(usize::from(queue) % self.disks.len()),
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
                self.memory.put(u64::from(at) % MEMORY_BYTES, &value.to_le_bytes());
            }
            Action::BusMaster { on } => self.set_bus_master(on),
            Action::Configure { offset, width, value } => {
                self.lie();
                let mut world = World { memory: &self.memory, disks: &mut self.disks };
                self.device.configure(&mut world, offset, width, value);
            }
        }
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

    /// The used indices, and the status bytes of what is outstanding.
    fn answers(&self) -> Vec<u16> {
        let used = self.rings.iter().map(|ring| ring.used_index(&self.memory));
        let status = |request: &Outstanding| u16::from(self.memory.get::<1>(request.page + STATUS)[0]);
        used.chain(self.outstanding.iter().map(status)).collect()
    }

    /// From here on, until a restart, the driver's account is worth nothing.
    fn lie(&mut self) {
        self.honest = false;
        self.frozen = None;
        self.memory.unguard();
        self.history.lose_track();
    }

    fn is_modern(&self) -> bool {
        self.setup.device % 4 < 2
    }

    /// Whatever has to wait is waited for by [`Self::resume`].
    fn set(&mut self, register: u64, value: u32) {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        let _ = self.device.write(&mut world, register, Width::Dword, value.into());
    }

    fn get(&mut self, register: u64, width: Width) -> u64 {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        self.device.read(&mut world, register, width)
    }

    fn poll_once(&mut self) -> Progress {
        self.device.poll(World { memory: &self.memory, disks: &mut self.disks })
    }

    /// VIRTIO 1.3, 3.1.1 and 4.2.3.1; legacy 4.2.4.
    fn bring_up(&mut self) {
        assert_eq!(self.get(register::STATUS, Width::Dword), 0);
        self.rings.clear();
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        self.set(register::STATUS, u32::from(status.bits()));
        let mut offered = 0;
        for half in [1, 0] {
            self.set(register::DEVICE_FEATURES_SEL, half);
            offered = offered << 32 | self.get(register::DEVICE_FEATURES, Width::Dword);
        }
        let wanted = !self.setup.declined | Features::VERSION_1.bits();
        self.features = Features::from_bits_truncate(offered & wanted);
        for half in [0, 1] {
            self.set(register::DRIVER_FEATURES_SEL, half);
            self.set(register::DRIVER_FEATURES, (self.features.bits() >> (32 * half)) as u32);
        }
        if self.is_modern() {
            status |= DeviceStatus::FEATURES_OK;
            self.set(register::STATUS, u32::from(status.bits()));
        }
        for queue in 0..self.disks.len() {
            self.bring_up_queue(queue);
        }
        status |= DeviceStatus::DRIVER_OK;
        self.set(register::STATUS, u32::from(status.bits()));
        assert_eq!(self.get(register::STATUS, Width::Dword), u64::from(status.bits()));
    }

    fn bring_up_queue(&mut self, queue: usize) {
        let base = ring_base(queue);
        self.memory.put(base, &[0; RING_BYTES as usize]);
        let layout = Layout::compact(base, RING_ENTRIES);
        assert!(layout.end() <= base + RING_BYTES);
        self.memory.lend(layout.device_area());
        if self.is_modern() {
            let mut world = World { memory: &self.memory, disks: &mut self.disks };
            self.device.bring_up_queue(&mut world, queue, &layout, RING_ENTRIES);
        } else {
            self.set(register::QUEUE_SEL, queue as u32);
            self.set(register::QUEUE_SIZE, u32::from(RING_ENTRIES));
            self.set(register::GUEST_PAGE_SIZE, RING_BYTES as u32);
            self.set(register::QUEUE_ALIGN, 4);
            self.set(register::QUEUE_PFN, (base / RING_BYTES) as u32);
        }
        match self.rings.get_mut(queue) {
            Some(ring) => *ring = Ring::new(layout),
            None => self.rings.push(Ring::new(layout)),
        }
    }

    /// What the guest was told: that completed writes are stable.
    fn through(&mut self) -> bool {
        // 5.2.6.2: with CONFIG_WCE the field says so; without, FLUSH does.
        if self.features.contains(Features::CONFIG_WCE) {
            self.get(register::CONFIG + ConfigSpace::WRITEBACK, Width::Byte) == 0
        } else {
            !self.features.contains(Features::FLUSH)
        }
    }

    /// Offers a request, well-formed unless the driver has lied.
    fn request(&mut self, what: u8, at: u8, cut: u8) {
        let queue = usize::from(what >> 6) % self.disks.len();
        let used: Vec<u64> = self.outstanding.iter().map(|request| request.page).collect();
        let mut pages = (0..OUTSTANDING as u64).map(|page| REQUESTS + page * REQUEST_BYTES);
        let Some(page) = pages.find(|page| !used.contains(page)) else { return };
        if matches!(self.waiting, Waiting::Reset | Waiting::Queue { .. }) {
            return;
        }
        let start = u64::from(at) % SECTORS;
        let extent = Extent::new(start, (1 + u64::from(at >> 5) % DATA_SECTORS).min(SECTORS - start));
        let written = self.history.next_value();
        let (kind, act) = match what % 8 {
            0..=2 => (1, Act::Write(extent, written)),
            3 => (0, Act::Read(extent)),
            4 => (4, Act::Flush),
            5 => (8, Act::Read(Extent::new(0, 0))),
            6 => (13, Act::Zero(extent)),
            _ => (11, Act::Discard(extent)),
        };
        let barrier = self.features.contains(Features::BARRIER) && what & 0x18 == 0x18;
        let flagged = Features::REQ_FLAGS | Features::REQ_FLAGS_OUT_FUA;
        let fua = self.features.contains(flagged) && what & 0x28 == 0x28 && kind == 1;
        let sector = if kind < 2 { start } else { 0 };
        self.memory.put(page, &(kind | u32::from(barrier) << 31).to_le_bytes());
        self.memory.put(page + 4, &u32::from(fua).to_le_bytes());
        self.memory.put(page + 8, &sector.to_le_bytes());
        let data = self.put_data(page, act, kind);
        let readable = matches!(act, Act::Write(..) | Act::Zero(_) | Act::Discard(_));
        let buffers = buffers(page, data, readable, cut);
        let table = if self.features.contains(Features::INDIRECT_DESC) { usize::from(cut >> 5) } else { 0 };
        let Some(head) = self.rings[queue].offer(&self.memory, &buffers, table) else { return };
        let writable = 1 + if readable { 0 } else { data };
        if self.honest {
            self.memory.lend(page + STATUS..page + STATUS + 1);
            self.memory.lend(page + DATA..page + DATA + u64::from(writable - 1));
        }
        let through = self.through();
        let latched = self.disks[0].disk().is_latched();
        let ticket = if barrier { self.history.submit_barrier(act) } else { self.history.submit(act) };
        let fua = fua || barrier;
        let request = Outstanding { queue, head, page, act, ticket, fua, through, latched, writable };
        self.outstanding.push(request);
    }

    /// The data of a request, and its length.
    fn put_data(&self, page: u64, act: Act, kind: u32) -> u32 {
        match act {
            Act::Write(extent, value) => {
                for index in 0..extent.sectors {
                    self.memory.put(page + DATA + 512 * index, &stamp(value));
                }
                extent.sectors as u32 * 512
            }
            Act::Zero(extent) | Act::Discard(extent) => {
                // Two segments if it has two sectors or more.
                let first = extent.sectors.div_ceil(2);
                let segments = [(extent.start.0, first), (extent.start.0 + first, extent.sectors - first)];
                let count = if segments[1].1 == 0 { 1 } else { 2 };
                for (index, (sector, sectors)) in segments.iter().take(count).enumerate() {
                    let at = page + DATA + 16 * index as u64;
                    self.memory.put(at, &sector.to_le_bytes());
                    self.memory.put(at + 8, &sectors.to_le_bytes());
                }
                16 * count as u32
            }
            Act::Read(_) if kind == 8 => 20,
            Act::Read(extent) => extent.sectors as u32 * 512,
            Act::Flush => 0,
        }
    }

    /// Polls until the device rests, and takes what ended.
    fn poll(&mut self) {
        for round in 0.. {
            assert!(round < 64, "the device never rests");
            let progress = self.poll_once();
            self.collect();
            self.resume();
            if !progress.again {
                break;
            }
        }
        let all_done = self.disks[0].disk().is_idle() && !self.busy && self.device.is_bus_master();
        if all_done && self.honest && self.waiting == Waiting::No {
            assert!(self.outstanding.is_empty(), "the disk is idle, and {} wait", self.outstanding.len());
        }
    }

    /// The driver takes what the device returned.
    fn collect(&mut self) {
        if !self.honest {
            self.outstanding.clear();
            return;
        }
        let mut ended = Vec::new();
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            while let Some((head, written)) = ring.collect(&self.memory) {
                ended.push((queue, head, written));
            }
            // Interrupt at the next one.
            ring.wish(&self.memory, ring.used_index(&self.memory), false);
        }
        let mut raised = 0;
        if !ended.is_empty() {
            let mut world = World { memory: &self.memory, disks: &mut self.disks };
            raised = self.device.take_interrupts(&mut world);
        }
        for (queue, head, written) in ended {
            assert_ne!(raised >> queue & 1, 0, "an interrupt for what was returned");
            let found = self.outstanding.iter().position(|one| (one.queue, one.head) == (queue, head));
            let request = self.outstanding.remove(found.expect("a head that is out"));
            self.end(&request, written);
        }
    }

    fn end(&mut self, request: &Outstanding, written: u32) {
        let &Outstanding { page, act, ticket, .. } = request;
        self.memory.take_back(page..page + REQUEST_BYTES);
        let [status] = self.memory.get(page + STATUS);
        let ok = status == 0;
        assert!(status <= 2 && (1..=request.writable).contains(&written), "{status} {written}: {act:?}");
        let info = *self.disks[0].info();
        let mutates = matches!(act, Act::Write(..) | Act::Zero(_) | Act::Discard(_));
        assert!(!(ok && mutates && info.read_only), "{act:?} on a read-only disk");
        assert!(status != 2 || matches!(act, Act::Discard(_)) && !info.discard, "{act:?} is supported");
        assert!(
            !(ok && request.latched && (mutates || act == Act::Flush)),
            "{act:?} ended well after a durable operation had failed"
        );
        if let (Act::Read(extent), true) = (act, ok) {
            assert_eq!(written, request.writable);
            if extent.sectors == 0 {
                assert_eq!(self.memory.get::<20>(page + DATA), SERIAL);
            }
            for index in 0..extent.sectors {
                let sector: [u8; 512] = self.memory.get(page + DATA + 512 * index);
                self.history.check_read(ticket, extent.start.0 + index, value(&sector));
            }
        }
        let stable = mutates && (request.fua || request.through && self.through());
        self.history.end(ticket, ok, stable);
    }

    fn write_writeback(&mut self, on: bool) {
        if self.waiting != Waiting::No {
            return;
        }
        // Only 1 to 0 is promised to flush what a guest before a reset may have left.
        let was_on = !self.through();
        let begun = self.history.now();
        let offset = register::CONFIG + ConfigSpace::WRITEBACK;
        let value = u64::from(on);
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        let access = self.device.write(&mut world, offset, Width::Byte, value);
        if was_on && !on && self.honest && self.features.contains(Features::CONFIG_WCE) {
            self.waiting = Waiting::CacheOff { begun };
        }
        if access.value == WriteStatus::Done {
            self.resume();
        }
    }

    fn reset_queue(&mut self, queue: usize) {
        let may = self.features.contains(Features::RING_RESET);
        if !may || self.waiting != Waiting::No || !self.honest {
            return;
        }
        self.take_back_of(queue);
        self.waiting = Waiting::Queue { queue };
        self.set(register::QUEUE_SEL, queue as u32);
        self.set(register::QUEUE_RESET, 1);
        self.resume();
    }

    /// The vCPU that waits looks whether it may go on.
    fn resume(&mut self) {
        match self.waiting {
            Waiting::No => {}
            Waiting::Reset => {
                if self.get(register::STATUS, Width::Dword) == 0 {
                    assert_eq!(
                        self.disks[0].disk().flying().count(),
                        0,
                        "a reset waits for what was submitted"
                    );
                    self.history.reset();
                    self.waiting = Waiting::No;
                    self.bring_up();
                    self.freeze();
                }
            }
            Waiting::CacheOff { begun } => {
                let progress = self.poll_once();
                self.collect();
                if !progress.pending_write {
                    self.waiting = Waiting::No;
                    if self.through() {
                        self.history.flushed(begun);
                    }
                }
            }
            Waiting::Queue { queue } => {
                self.set(register::QUEUE_SEL, queue as u32);
                if self.get(register::QUEUE_RESET, Width::Dword) == 0 {
                    self.waiting = Waiting::No;
                    self.bring_up_queue(queue);
                    self.freeze();
                }
            }
        }
    }

    /// A queue's ring and requests are the driver's again: the device has no business there.
    fn take_back_of(&mut self, queue: usize) {
        let base = ring_base(queue);
        self.memory.take_back(base..base + RING_BYTES);
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.outstanding).into_iter().partition(|request| request.queue == queue);
        self.outstanding = kept;
        for request in gone {
            // What the storage has may still fill the data of a read; its end is not known, and never will be.
            self.memory.take_back(request.page + STATUS..request.page + STATUS + 1);
        }
        self.freeze();
    }

    fn take_back(&mut self) {
        for queue in 0..self.disks.len() {
            self.take_back_of(queue);
        }
    }

    /// The machine is reset: whatever the driver did is over.
    fn restart(&mut self) {
        self.device.reset(World { memory: &self.memory, disks: &mut self.disks });
        self.disks[0].settle(&self.memory);
        for _ in 0..8 {
            self.poll_once();
        }
        self.device.enable(World { memory: &self.memory, disks: &mut self.disks });
        self.disks[0].happen(&self.memory, Event::Prompt { on: false });
        self.busy = false;
        self.memory.take_back(0..MEMORY_BYTES);
        self.memory.guard();
        self.outstanding.clear();
        self.frozen = None;
        self.history.reset();
        self.waiting = Waiting::No;
        self.honest = true;
        self.bring_up();
    }

    /// What holds after every action.
    fn check(&mut self) {
        if let Some(before) = &self.frozen {
            let now = self.answers();
            assert!(now.starts_with(before), "without bus mastering nothing is answered: {before:?} {now:?}");
        }
        let disk = self.disks[0].disk();
        if disk.info().cache != Cache::Unsafe {
            self.history.check_medium(&disk);
        }
    }
}

const fn ring_base(queue: usize) -> u64 {
    (1 + queue as u64) * RING_BYTES
}

/// The buffers of a request, cut as `cut` has it: header, data, status.
fn buffers(page: u64, data: u32, readable: bool, cut: u8) -> Vec<Buffer> {
    let buffer = |at: u64, len: u32, writable| Buffer { addr: GuestAddr(at), len, writable };
    let mut all = match cut & 3 {
        0 => vec![buffer(page, 9, false), buffer(page + 9, 7, false)],
        _ => vec![buffer(page, 16, false)],
    };
    let at = page + DATA;
    let first = match cut >> 2 & 3 {
        0 => 0,
        1 => data.min(1),
        2 => data / 2,
        _ => data.min(512),
    };
    all.extend([buffer(at, first, !readable), buffer(at + u64::from(first), data - first, !readable)]);
    all.push(buffer(page + STATUS, 1, true));
    all
}

/// Programs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let request = |what, at| Action::Request { what, at, cut: 0x11 };
    let disk = |event| Action::Disk { event };
    let complete = |how| disk(Event::Complete { which: 0, how });
    let [ended, poll] = [complete(2), Action::Poll];
    let bus_master = |on| Action::BusMaster { on };
    let programs: [&[Action]; 11] = [
        &[disk(Event::Prompt { on: true }), request(0, 2), poll, request(3, 2), poll, request(4, 0), poll],
        &[request(0, 0x41), request(6, 0x21), poll, ended, ended, poll, request(7, 0x20), poll, ended, poll],
        &[
            request(0, 1),
            poll,
            ended,
            poll,
            Action::Writeback { on: false },
            poll,
            ended,
            poll,
            request(0, 3),
            poll,
        ],
        &[
            request(0, 1),
            request(0x18, 2),
            request(0, 3),
            poll,
            ended,
            poll,
            ended,
            poll,
            ended,
            poll,
            ended,
            poll,
        ],
        &[request(0x28, 1), poll, ended, poll, ended, poll, request(5, 0), poll],
        &[request(0, 1), request(3, 1), poll, Action::Reset, ended, poll, ended, poll, request(3, 1), poll],
        &[
            request(0x40, 1),
            poll,
            Action::ResetQueue { queue: 1 },
            ended,
            poll,
            request(0x43, 1),
            poll,
            ended,
            poll,
        ],
        &[request(0, 1), poll, ended, poll, request(4, 0), poll, complete(0), poll, request(4, 0), poll],
        &[
            request(0, 1),
            poll,
            bus_master(false),
            request(3, 1),
            ended,
            poll,
            bus_master(true),
            poll,
            ended,
            poll,
        ],
        &[request(0, 1), poll, bus_master(false), Action::Reset, poll, ended, poll, bus_master(true), poll],
        &[
            request(0, 1),
            poll,
            Action::ResetQueue { queue: 0 },
            bus_master(false),
            ended,
            poll,
            bus_master(true),
            poll,
        ],
    ];
    let setup = |kind, device, declined| Setup { kind, device, declined };
    let setups = [
        setup(Kind::WRITE_BACK, 0, 0),
        setup(Kind::WRITE_BACK, 0b1100, 0),
        setup(Kind::WRITE_BACK, 3, 0),
        setup(Kind::WRITE_BACK, 0, (Features::FLUSH | Features::CONFIG_WCE | Features::EVENT_IDX).bits()),
        setup(Kind { cache: 0, flags: 0 }, 0, Features::INDIRECT_DESC.bits()),
        setup(Kind::WRITE_BACK, 0x10, 0),
        setup(Kind::WRITE_BACK, 0x24, 0),
    ];
    let all = setups.iter().flat_map(|setup| programs.iter().map(move |program| seed(setup, program)));
    all.collect()
}
