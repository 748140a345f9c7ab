//! A virtio-scsi controller behind virtio-mmio or virtio-pci, under a driver that keeps the rules, or does not: commands, task
//! management, resets, hotplug.

use blk_core::bus::{Progress, Region, Width};
use blk_core::storage::Cache;
use blk_core::units::{Extent, GuestAddr};
use blk_core::virtio::mmio::register;
use blk_core::virtq::Buffer;
use scsi_model::Config as Identity;
use scsi_model::front::virtio_scsi::wire::Features;
use scsi_model::front::virtio_scsi::{Address, CONTROL, Config, EVENT, REQUEST, Scsi};

use crate::disk::{Disk, Event, Handle, Kind, stamp, value};
use crate::front::{Front, Way, World};
use crate::history::{Act, History, Ticket};
use crate::memory::Memory;
use crate::program::{parse, seed};
use crate::ring::{Layout, Ring};
use crate::{choices, record};

const QUEUES: usize = 2;
const RINGS: usize = QUEUES + 2;
const UNITS: usize = 2;
const TASKS: usize = 4;
const SECTORS: u64 = 16;
const RING_ENTRIES: u16 = 16;
const RING_BYTES: u64 = 0x1000;
/// Chains that the driver has out at once, each with a page of its own.
const OUTSTANDING: u64 = 6;
const PAGES: u64 = RINGS as u64 * RING_BYTES;
const PAGE_BYTES: u64 = 0x1000;
const MEMORY_BYTES: u64 = PAGES + OUTSTANDING * PAGE_BYTES;
/// Within a page.
const RESPONSE: u64 = 0x80;
const DATA: u64 = 0x100;

const HEAD_BYTES: u32 = 51;
const RESPONSE_BYTES: u32 = 108;
/// The unit of which an account is kept, and one that comes and goes.
const UNIT: Address = Address { target: 0, lun: 0 };
const OTHER: Address = Address { target: 0, lun: 300 };

record! {
    /// The device.
    pub struct Setup {
        /// The disk.
        pub kind: Kind,
        /// On PCI, and there with MSI-X.
        pub way: u8,
        /// Features that the driver declines.
        pub declined: u64,
    }
}

choices! {
    /// What happens.
    pub enum Action {
        /// A command with an account of it.
        Command {
            /// Which, and its queue.
            what: u8,
            /// First sector and length.
            at: u8,
            /// Attribute, FUA, and how it is cut into buffers.
            how: u8,
        },
        /// MODE SELECT of the write cache.
        WriteCache { on: bool },
        /// Any header.
        Raw { lun: [u8; 8], attribute: u8, cdb: [u8; 16], out_bytes: u16, in_bytes: u16 },
        /// Task management: which function, for which command or LUN.
        Manage { subtype: u8, which: u8 },
        /// Any request of the control queue.
        Control { bytes: [u8; 24], len: u8, answer: u8 },
        /// A buffer for an event.
        Lend { bytes: u8 },
        /// The other unit comes or goes.
        Plug { on: bool },
        /// The device is polled until it rests, and the driver takes what ended.
        Poll,
        /// The disk does something.
        Disk { event: Event },
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

/// What a chain is for.
enum What {
    Command {
        act: Option<(Act, Ticket)>,
        fua: bool,
        /// Whether writes were stable when it was sent.
        through: bool,
        latched: bool,
        /// It turns the cache off, begun at this time.
        cache_off: Option<u64>,
        data_bytes: u64,
    },
    /// Ends everything of the unit that is older.
    Clears,
    /// Nothing is known of it.
    Other,
}

/// A chain that the driver has not got back.
struct Outstanding {
    ring: usize,
    head: u16,
    page: u64,
    /// Its place among all.
    number: u64,
    writable: u32,
    what: What,
}

/// What the vCPU that wrote a register waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    No,
    Reset,
    Ring { ring: usize },
}

/// What the device may not change without bus mastering: used indices, and the responses of what is outstanding.
type Answers = (Vec<u16>, Vec<[u8; 12]>);

struct Rig {
    setup: Setup,
    memory: Memory,
    disks: Vec<Handle>,
    device: Front<Scsi<QUEUES, UNITS, TASKS>>,
    rings: Vec<Ring>,
    features: Features,
    outstanding: Vec<Outstanding>,
    numbers: u64,
    history: History,
    waiting: Waiting,
    /// Whether the driver has kept to the rules since the device was brought up.
    honest: bool,
    busy: bool,
    frozen: Option<Answers>,
}

/// Runs a program of [`Setup`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((setup, actions)) = parse::<Setup, Action>(data) else { return };
    let disks: Vec<Handle> = (0..UNITS).map(|_| Disk::open(setup.kind, SECTORS, 1).remove(0)).collect();
    let way = match setup.way % 4 {
        0 => Way::Pin,
        1 => Way::Messages,
        _ => Way::Mmio,
    };
    let mut scsi = Scsi::new(Config { queues: QUEUES as u16, queue_size_max: RING_ENTRIES });
    insert(&mut scsi, UNIT, &disks[0]);
    let mut rig = Rig {
        setup,
        memory: Memory::new(MEMORY_BYTES as usize),
        disks,
        device: Front::new(scsi, way),
        rings: Vec::new(),
        features: Features::empty(),
        outstanding: Vec::new(),
        numbers: 0,
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
    rig.settle();
    rig.poll();
    rig.check();
    if rig.honest {
        let quiet = rig.outstanding.iter().all(|one| one.ring == EVENT);
        assert!(quiet && rig.waiting == Waiting::No, "everything ends");
        rig.history.check_contents(&rig.disks[0].disk());
    }
}

fn insert(scsi: &mut Scsi<QUEUES, UNITS, TASKS>, address: Address, disk: &Handle) {
    let identity = Identity::new("FUZZ", "fuzzed disk", "1", "S");
    let info = blk_core::storage::Storage::<Memory>::info(disk);
    // Refused where it is already.
    let _ = scsi.controller_mut().insert(address, identity, info);
}

impl Rig {
    fn act(&mut self, action: Action) {
        match action {
            Action::Command { what, at, how } => self.command(what, at, how),
            Action::WriteCache { on } => {
                let mut list = [0; 24];
                (list[4], list[5], list[6]) = (0x08, 0x12, if on { 0x04 } else { 0 });
                let cache_off = (!on && !self.through()).then(|| self.history.now());
                self.send((0, 0), &[0x15, 0x10, 0, 0, 24, 0], &list, 0, (None, false), cache_off);
            }
            Action::Raw { lun, attribute, cdb, out_bytes, in_bytes } => {
                self.lie();
                let Some(page) = self.page() else { return };
                self.memory.put(page, &lun);
                self.memory.put(page + 16, &[attribute]);
                self.memory.put(page + 19, &cdb);
                let (out, room) = (u32::from(out_bytes % 0xd00), u32::from(in_bytes % 0xd00));
                let buffers = buffers(page, out, room, attribute);
                self.offer(REQUEST, page, &buffers, 0, What::Other);
            }
            Action::Manage { subtype, which } => self.manage(subtype % 10, which),
            Action::Control { bytes, len, answer } => {
                let Some(page) = self.page() else { return };
                self.memory.put(page, &bytes);
                let answer = u32::from(answer % 8).max(5);
                let buffers = [buffer(page, (len % 25).into(), false), buffer(page + RESPONSE, answer, true)];
                // It may abort anything; what comes back says so.
                self.offer(CONTROL, page, &buffers, 0, What::Other);
            }
            Action::Lend { bytes } => {
                let Some(page) = self.page() else { return };
                let buffers = [buffer(page + RESPONSE, u32::from(bytes % 32).max(4), true)];
                self.offer(EVENT, page, &buffers, 0, What::Other);
            }
            Action::Plug { on: true } => insert(self.device.device_mut(), OTHER, &self.disks[1]),
            Action::Plug { on: false } => {
                self.device.device_mut().controller_mut().remove(1);
            }
            Action::Poll => self.poll(),
            Action::Disk { event } => {
                if let Event::Busy { on } = event {
                    self.busy = on;
                }
                self.disks[0].happen(&self.memory, event);
            }
            Action::Reset if self.waiting == Waiting::No && self.honest => {
                (0..RINGS).for_each(|ring| self.take_back_of(ring));
                self.waiting = Waiting::Reset;
                self.set(register::STATUS, 0);
                self.resume();
            }
            Action::ResetRing { ring } => self.reset_ring(usize::from(ring) % RINGS),
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

    fn answers(&self) -> Answers {
        let used = self.rings.iter().map(|ring| ring.used_index(&self.memory));
        let responses = self.outstanding.iter().map(|one| self.memory.get(one.page + RESPONSE));
        (used.collect(), responses.collect())
    }

    /// From here on, until a restart, the driver's account is worth nothing.
    fn lie(&mut self) {
        self.honest = false;
        self.frozen = None;
        self.memory.unguard();
        self.history.lose_track();
    }

    fn set(&mut self, register: u64, value: u32) {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        let _ = self.device.write(&mut world, register, Width::Dword, value.into());
    }

    fn get(&mut self, register: u64) -> u32 {
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        self.device.read(&mut world, register, Width::Dword) as u32
    }

    fn poll_once(&mut self) -> Progress {
        self.device.poll(World { memory: &self.memory, disks: &mut self.disks })
    }

    fn bring_up(&mut self) {
        assert_eq!(self.get(register::STATUS), 0);
        self.set(register::STATUS, 3);
        let declined = Features::from_bits_truncate(self.setup.declined);
        self.features = Features::all().difference(declined) | Features::VERSION_1;
        for half in [0, 1] {
            self.set(register::DRIVER_FEATURES_SEL, half);
            self.set(register::DRIVER_FEATURES, (self.features.bits() >> (32 * half)) as u32);
        }
        self.set(register::STATUS, 11);
        self.rings.clear();
        (0..RINGS).for_each(|ring| self.bring_up_ring(ring));
        self.set(register::STATUS, 15);
        assert_eq!(self.get(register::STATUS), 15);
    }

    fn bring_up_ring(&mut self, ring: usize) {
        let base = ring as u64 * RING_BYTES;
        self.memory.put(base, &[0; RING_BYTES as usize]);
        let layout = Layout::compact(base, RING_ENTRIES);
        self.memory.lend(layout.device_area());
        let mut world = World { memory: &self.memory, disks: &mut self.disks };
        self.device.bring_up_queue(&mut world, ring, &layout, RING_ENTRIES);
        match self.rings.get_mut(ring) {
            Some(there) => *there = Ring::new(layout),
            None => self.rings.push(Ring::new(layout)),
        }
    }

    /// What the guest would read in the caching page: that completed writes are stable.
    fn through(&self) -> bool {
        !self.device.device().controller().unit(0).is_some_and(scsi_model::LogicalUnit::write_cache)
    }

    /// A page that no chain uses.
    fn page(&self) -> Option<u64> {
        let mut pages = (0..OUTSTANDING).map(|page| PAGES + page * PAGE_BYTES);
        pages.find(|page| self.waiting == Waiting::No && self.outstanding.iter().all(|one| one.page != *page))
    }

    fn offer(&mut self, ring: usize, page: u64, buffers: &[Buffer], table: usize, what: What) -> bool {
        let Some(head) = self.rings[ring].offer(&self.memory, buffers, table) else { return false };
        let writable = buffers.iter().filter(|buffer| buffer.writable);
        for buffer in writable.clone().filter(|_| self.honest) {
            self.memory.lend(buffer.addr.0..buffer.addr.0 + u64::from(buffer.len));
        }
        let writable = writable.map(|buffer| buffer.len).sum();
        self.numbers += 1;
        self.outstanding.push(Outstanding { ring, head, page, number: self.numbers, writable, what });
        true
    }

    fn command(&mut self, what: u8, at: u8, how: u8) {
        let start = u64::from(at) % SECTORS;
        let extent = Extent::new(start, (1 + u64::from(at >> 5) % 4).min(SECTORS - start));
        let (lba, count) = (start as u8, extent.sectors as u8);
        let fua = how & 0x04 != 0;
        let written = self.history.next_value();
        let transfer = |opcode: u8| [opcode, if fua { 0x08 } else { 0 }, 0, 0, 0, lba, 0, 0, count, 0];
        let bytes = extent.sectors as u32 * 512;
        let mut out = Vec::new();
        let (cdb, room, act): (Vec<u8>, u32, _) = match what % 8 {
            0..=2 => {
                (0..extent.sectors).for_each(|_| out.extend(stamp(written)));
                (transfer(0x2a).into(), 0, Some(Act::Write(extent, written)))
            }
            3 | 4 => (transfer(0x28).into(), bytes, Some(Act::Read(extent))),
            5 => (vec![0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, Some(Act::Flush)),
            6 => {
                let cdb = [0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, count, 0, 0];
                (cdb.into(), 0, Some(Act::Zero(extent)))
            }
            _ => (vec![0, 0, 0, 0, 0, 0], 0, None),
        };
        let fua = fua && !matches!(act, Some(Act::Zero(_) | Act::Flush) | None);
        self.send((what >> 7, how), &cdb, &out, room, (act, fua), None);
    }

    fn send(
        &mut self,
        (queue, how): (u8, u8),
        cdb: &[u8],
        out: &[u8],
        room: u32,
        (act, fua): (Option<Act>, bool),
        cache_off: Option<u64>,
    ) {
        let Some(page) = self.page() else { return };
        self.memory.put(page, &[0; HEAD_BYTES as usize]);
        self.memory.put(page, &UNIT.encode());
        // The driver's name for it is its page.
        self.memory.put(page + 8, &page.to_le_bytes());
        self.memory.put(page + 16, &[(how & 0x03) % 3]);
        self.memory.put(page + 19, cdb);
        self.memory.put(page + DATA, out);
        let buffers = buffers(page, out.len() as u32, room, how);
        let table = if self.features.contains(Features::INDIRECT_DESC) { usize::from(how >> 5) } else { 0 };
        let (through, latched) = (self.through(), self.disks[0].disk().is_latched());
        let data_bytes = out.len() as u64 + u64::from(room);
        let what = What::Command { act: None, fua, through, latched, cache_off, data_bytes };
        if !self.offer(REQUEST + usize::from(queue), page, &buffers, table, what) {
            return;
        }
        let submitted = act.map(|act| (act, self.history.submit(act)));
        if let Some(Outstanding { what: What::Command { act, .. }, .. }) = self.outstanding.last_mut() {
            *act = submitted;
        }
    }

    fn manage(&mut self, subtype: u8, which: u8) {
        let Some(page) = self.page() else { return };
        let count = self.outstanding.len().max(1);
        let id = self.outstanding.get(usize::from(which) % count).map_or(0, |one| one.page);
        let address = [UNIT, UNIT, UNIT, OTHER, Address { target: 9, lun: 0 }][usize::from(which >> 4) % 5];
        self.memory.put(page, &0_u32.to_le_bytes());
        self.memory.put(page + 4, &u32::from(subtype).to_le_bytes());
        self.memory.put(page + 8, &address.encode());
        self.memory.put(page + 16, &id.to_le_bytes());
        let buffers = [buffer(page, 24, false), buffer(page + RESPONSE, 1, true)];
        let clears = address == UNIT && matches!(subtype, 1 | 3 | 4 | 5);
        self.offer(CONTROL, page, &buffers, 0, if clears { What::Clears } else { What::Other });
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
        let idle = self.disks.iter().all(|disk| disk.disk().is_idle());
        let all_done = idle && !self.busy && self.device.is_bus_master();
        if all_done && self.honest && self.waiting == Waiting::No {
            assert!(
                self.outstanding.iter().all(|one| one.ring == EVENT),
                "the disk is idle, and a chain waits"
            );
        }
    }

    /// The driver takes what the device returned: the control queue last, as it is written last.
    fn collect(&mut self) {
        if !self.honest {
            self.outstanding.clear();
            return;
        }
        let mut ended = Vec::new();
        for ring in [EVENT, REQUEST, REQUEST + 1, CONTROL] {
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
            self.end(one, written);
        }
    }

    fn end(&mut self, one: Outstanding, written: u32) {
        let (act, fua, was_through, latched, cache_off, data_bytes) = match one.what {
            What::Command { act, fua, through, latched, cache_off, data_bytes } => {
                (act, fua, through, latched, cache_off, data_bytes)
            }
            What::Clears => {
                let older = |other: &&Outstanding| other.ring >= REQUEST && other.number < one.number;
                assert_eq!(
                    self.outstanding.iter().filter(older).count(),
                    0,
                    "a function ends after what it ends"
                );
                return;
            }
            What::Other => return,
        };
        let response: [u8; 12] = self.memory.get(one.page + RESPONSE);
        let residual = u32::from_le_bytes(response[4..8].try_into().expect("4 bytes"));
        let (status, response) = (response[10], response[11]);
        assert!(matches!((response, status), (0, 0 | 2 | 0x28) | (2 | 4, 0)), "{response} {status}");
        assert!(u64::from(residual) <= data_bytes);
        let good = (response, status) == (0, 0);
        let disk_read_only = self.disks[0].disk().info().read_only;
        if let (true, Some(begun)) = (good, cache_off) {
            assert!(!latched, "the cache was turned off after a durable operation had failed");
            self.history.flushed(begun);
        }
        let Some((act, ticket)) = act else { return };
        let mutates = matches!(act, Act::Write(..) | Act::Zero(_) | Act::Discard(_));
        assert!(!(good && mutates && disk_read_only), "{act:?} on a read-only disk");
        let promises = mutates || act == Act::Flush || fua;
        assert!(!(good && promises && latched), "{act:?} ended well after a durable operation had failed");
        if let (Act::Read(extent), true) = (act, good) {
            assert_eq!((residual, written), (0, one.writable));
            for index in 0..extent.sectors {
                let sector: [u8; 512] = self.memory.get(one.page + DATA + 512 * index);
                self.history.check_read(ticket, extent.start.0 + index, value(&sector));
            }
        }
        let stable = fua || mutates && was_through && self.through();
        self.history.end(ticket, good, stable);
    }

    fn reset_ring(&mut self, ring: usize) {
        let may = self.features.contains(Features::RING_RESET);
        if !may || self.waiting != Waiting::No || !self.honest {
            return;
        }
        self.take_back_of(ring);
        self.waiting = Waiting::Ring { ring };
        self.set(register::QUEUE_SEL, ring as u32);
        self.set(register::QUEUE_RESET, 1);
        self.resume();
    }

    /// The vCPU that waits looks whether it may go on.
    fn resume(&mut self) {
        match self.waiting {
            Waiting::No => {}
            Waiting::Reset => {
                if self.get(register::STATUS) == 0 {
                    assert!(
                        self.disks.iter().all(|disk| disk.disk().flying().count() == 0),
                        "a reset waits for what was submitted"
                    );
                    self.history.reset();
                    self.waiting = Waiting::No;
                    self.bring_up();
                    self.freeze();
                }
            }
            Waiting::Ring { ring } => {
                self.set(register::QUEUE_SEL, ring as u32);
                if self.get(register::QUEUE_RESET) == 0 {
                    self.waiting = Waiting::No;
                    self.bring_up_ring(ring);
                    self.freeze();
                }
            }
        }
    }

    /// A ring and all that is in it are the driver's again, but for what the storage may still fill.
    fn take_back_of(&mut self, ring: usize) {
        let base = ring as u64 * RING_BYTES;
        self.memory.take_back(base..base + RING_BYTES);
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.outstanding).into_iter().partition(|one| one.ring == ring);
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
        if let Some((used, responses)) = &self.frozen {
            let now = self.answers();
            let same = now.0 == *used && now.1.starts_with(responses);
            assert!(same, "without bus mastering nothing is answered: {:?} {now:?}", self.frozen);
        }
        let disk = self.disks[0].disk();
        if disk.info().cache != Cache::Unsafe {
            self.history.check_medium(&disk);
        }
    }
}

const fn buffer(at: u64, len: u32, writable: bool) -> Buffer {
    Buffer { addr: GuestAddr(at), len, writable }
}

/// The buffers of a request, cut as bits 4:3 of `how` have it.
fn buffers(page: u64, out: u32, room: u32, how: u8) -> Vec<Buffer> {
    let (head, data) = (buffer(page, HEAD_BYTES, false), page + DATA);
    let response = buffer(page + RESPONSE, RESPONSE_BYTES, true);
    let first = match how >> 3 & 3 {
        0 => 0,
        1 => 1,
        2 => 512,
        _ => 700,
    };
    let cut = |len: u32, writable: bool| {
        let first = first.min(len);
        [buffer(data, first, writable), buffer(data + u64::from(first), len - first, writable)]
    };
    let mut all = vec![head];
    all.extend(cut(out, false));
    all.push(response);
    all.extend(cut(room, true));
    all.retain(|buffer| buffer.len != 0);
    all
}

/// Programs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let command = |what, at| Action::Command { what, at, how: 0 };
    let complete = |how| Action::Disk { event: Event::Complete { which: 0, how } };
    let ended = || complete(2);
    let poll = || Action::Poll;
    // The unit attention first.
    let ready = || vec![command(7, 0), poll()];
    let manage = |subtype| Action::Manage { subtype, which: 0 };
    let mut programs = vec![
        vec![command(0, 1), poll(), ended(), poll(), command(3, 1), poll(), ended(), poll()],
        vec![
            command(0, 1),
            command(0x80, 2),
            poll(),
            ended(),
            ended(),
            poll(),
            command(5, 0),
            poll(),
            ended(),
            poll(),
        ],
        vec![
            command(0, 1),
            poll(),
            Action::WriteCache { on: false },
            poll(),
            ended(),
            poll(),
            ended(),
            poll(),
        ],
        vec![command(6, 1), poll(), ended(), poll(), ended(), poll()],
        vec![command(0, 1), poll(), Action::Reset, poll(), ended(), poll(), command(7, 0), poll()],
        vec![
            command(0, 1),
            command(0x80, 2),
            poll(),
            Action::ResetRing { ring: 2 },
            poll(),
            ended(),
            ended(),
            poll(),
            command(3, 1),
            poll(),
            ended(),
            poll(),
        ],
        vec![
            command(0, 1),
            poll(),
            Action::BusMaster { on: false },
            ended(),
            command(3, 1),
            poll(),
            Action::BusMaster { on: true },
            poll(),
            ended(),
            poll(),
        ],
        vec![
            Action::Configure { offset: 4, width: 1, value: 0x406 },
            poll(),
            Action::Restart,
            command(0, 1),
            poll(),
            ended(),
            poll(),
        ],
        vec![
            Action::Lend { bytes: 16 },
            Action::Plug { on: true },
            poll(),
            Action::Plug { on: false },
            poll(),
        ],
        vec![
            Action::Command { what: 0, at: 1, how: 0x0d },
            Action::Command { what: 3, at: 1, how: 0x32 },
            poll(),
            ended(),
            poll(),
            ended(),
            poll(),
        ],
        vec![
            Action::Raw {
                lun: [1, 0, 0, 0, 0, 0, 0, 0],
                attribute: 0,
                cdb: [0x12; 16],
                out_bytes: 0,
                in_bytes: 255,
            },
            poll(),
        ],
        vec![
            Action::Raw {
                lun: [0xc1, 1, 0, 0, 0, 0, 0, 0],
                attribute: 0,
                cdb: [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0],
                out_bytes: 0,
                in_bytes: 255,
            },
            poll(),
        ],
        vec![
            Action::Control { bytes: [1; 24], len: 16, answer: 5 },
            poll(),
            Action::Write { offset: 0x114, width: 2, value: 18 },
            poll(),
        ],
    ];
    for subtype in 0..8 {
        programs.push(vec![
            command(0, 1),
            poll(),
            manage(subtype),
            poll(),
            ended(),
            poll(),
            command(7, 0),
            poll(),
        ]);
    }
    let setups = [
        Setup { kind: Kind::WRITE_BACK, way: 0, declined: 0 },
        Setup { kind: Kind::WRITE_BACK, way: 1, declined: 0 },
        Setup { kind: Kind { cache: 0, flags: 1 }, way: 2, declined: u64::MAX },
    ];
    let with = |setup: &Setup, mut program: Vec<Action>| {
        let mut whole = ready();
        whole.append(&mut program);
        seed(setup, &whole)
    };
    let mut seeds = Vec::new();
    for program in programs {
        // Each setup sees each program: actions are not cloned but encoded, so the others are cut from the first.
        let bytes = with(&setups[0], program);
        let head = seed::<Setup, Action>(&setups[0], &[]).len();
        seeds.extend(setups.iter().map(|setup| {
            let mut whole = seed::<Setup, Action>(setup, &[]);
            whole.extend_from_slice(&bytes[head..]);
            whole
        }));
    }
    seeds
}
