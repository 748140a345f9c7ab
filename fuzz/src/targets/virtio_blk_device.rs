//! virtio-blk behind virtio-mmio or virtio-pci: registers and rings, against a driver that keeps an account and one that lies.

use blk_core::bus::{Width, WriteStatus};
use blk_core::units::Extent;
use blk_core::virtq::Buffer;
use virtio_blk_model::device::{Blk, Config, Interface};
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::wire::{ConfigSpace, DeviceStatus, Features};

use crate::contents::{extent, stamps};
use crate::disk::{Disk, Event, Kind};
use crate::front::{Way, World};
use crate::oracle::{Act, End, Ticket};
use crate::program::{join, parse, seed};
use crate::ring::Layout;
use crate::virtio::{self, DATA, Driver, Outstanding, PAGE_BYTES, RING_ENTRIES, Rig, Waiting, buffer};
use crate::{choices, record};

const QUEUES: usize = 2;
/// Fewer slots than a ring has chains, so that requests have to wait.
const SLOTS: usize = 3;
const SECTORS: u64 = 16;
/// Within a request's page.
const STATUS: u64 = 0x40;
const DATA_SECTORS: u64 = 4;
const SERIAL: [u8; 20] = *b"a serial of 20 bytes";

record! {
    /// The disk. The device: modern, legacy, legacy with BARRIER; two queues; experimental FUA; if modern on PCI, and there with
    /// MSI-X. Features that the driver turns down.
    pub struct Setup { pub kind: Kind, pub device: u8, pub declined: u64, }
}

choices! {
    /// What happens.
    pub enum Action {
        /// The driver makes a request.
        Request {
            /// Type, FUA or barrier, queue: see [`request`].
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
        ..Any(virtio::Action)
    }
}

/// A request that the driver has not got back.
pub struct Request {
    act: Act,
    ticket: Ticket,
    /// Of the write: stable by itself.
    fua: bool,
    through: bool,
    latched: bool,
}

/// The driver.
pub struct BlkDriver {
    setup: Setup,
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
    let disks = Disk::open(setup.kind, SECTORS, queues);
    let rig = Rig::new(BlkDriver { setup }, Blk::new(config), way, disks, queues.into());
    rig.run(actions, |rig, action| match action {
        Action::Request { what, at, cut } => request(rig, what, at, cut),
        Action::Poll => rig.poll(),
        Action::Disk { event } => rig.happen(event),
        Action::Writeback { on } => write_writeback(rig, on),
        Action::Any(action) => rig.act(action),
    });
}

impl BlkDriver {
    fn is_modern(&self) -> bool {
        self.setup.device % 4 < 2
    }
}

impl Driver for BlkDriver {
    type Device = Blk<QUEUES, SLOTS>;
    type Request = Request;
    /// Page 0 stops a legacy queue.
    const RINGS_AT: u64 = PAGE_BYTES;
    const OUTSTANDING: u64 = 8;
    const ANSWER: u64 = STATUS;
    const FIRST: usize = 0;

    /// VIRTIO 1.3, 3.1.1 and 4.2.3.1; legacy 4.2.4.
    fn bring_up(rig: &mut Rig<Self>) {
        assert_eq!(rig.get(register::STATUS, Width::Dword), 0);
        let mut status = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        rig.set(register::STATUS, u32::from(status.bits()));
        let mut offered = 0;
        for half in [1, 0] {
            rig.set(register::DEVICE_FEATURES_SEL, half);
            offered = offered << 32 | rig.get(register::DEVICE_FEATURES, Width::Dword);
        }
        let wanted = !rig.driver.setup.declined | Features::VERSION_1.bits();
        rig.accept(Features::from_bits_truncate(offered & wanted).bits());
        if rig.driver.is_modern() {
            status |= DeviceStatus::FEATURES_OK;
            rig.set(register::STATUS, u32::from(status.bits()));
        }
        rig.bring_up_rings();
        status |= DeviceStatus::DRIVER_OK;
        rig.set(register::STATUS, u32::from(status.bits()));
        assert_eq!(rig.get(register::STATUS, Width::Dword), u64::from(status.bits()));
    }

    fn enable_queue(rig: &mut Rig<Self>, ring: usize, layout: &Layout) {
        if rig.driver.is_modern() {
            return rig.enable_queue(ring, layout);
        }
        rig.set(register::QUEUE_SEL, ring as u32);
        rig.set(register::QUEUE_SIZE, u32::from(RING_ENTRIES));
        rig.set(register::GUEST_PAGE_SIZE, PAGE_BYTES as u32);
        rig.set(register::QUEUE_ALIGN, 4);
        rig.set(register::QUEUE_PFN, (layout.setup().descriptors.0 / PAGE_BYTES) as u32);
    }

    fn through(rig: &mut Rig<Self>) -> bool {
        // 5.2.6.2: with CONFIG_WCE the field says so; without, FLUSH does.
        if features(rig).contains(Features::CONFIG_WCE) {
            rig.get(register::CONFIG + ConfigSpace::WRITEBACK, Width::Byte) == 0
        } else {
            !features(rig).contains(Features::FLUSH)
        }
    }

    fn end(rig: &mut Rig<Self>, one: Outstanding<Request>, written: u32) {
        let Request { act, ticket, fua, through, latched } = one.request;
        let [status] = rig.memory.get(one.page + STATUS);
        let ok = status == 0;
        let info = *rig.disks[0].disk().info();
        assert!(status <= 2, "{status}: {act:?}");
        assert!(status != 2 || matches!(act, Act::Discard(_)) && !info.discard, "{act:?} is supported");
        if let (Act::Read(extent), true) = (act, ok) {
            assert_eq!(written, one.writable);
            if extent.sectors == 0 {
                assert_eq!(rig.memory.get::<20>(one.page + DATA), SERIAL);
            }
        }
        let stable = act.mutates() && (fua || through && Self::through(rig));
        let sector = |index| rig.memory.get(one.page + DATA + 512 * index);
        rig.oracle.conclude(&rig.disks[0].disk(), (act, ticket), End { ok, stable, latched }, sector);
    }

    fn may_wait(_ring: usize) -> bool {
        false
    }
}

fn features(rig: &Rig<BlkDriver>) -> Features {
    Features::from_bits_truncate(rig.features)
}

/// Offers a request, well-formed unless the driver has lied.
fn request(rig: &mut Rig<BlkDriver>, what: u8, at: u8, cut: u8) {
    let queue = usize::from(what >> 6) % rig.disks.len();
    let Some(page) = rig.page() else { return };
    let extent = extent(at, 5, DATA_SECTORS, SECTORS);
    let written = rig.oracle.next_value();
    let (kind, act) = match what % 8 {
        0..=2 => (1, Act::Write(extent, written)),
        3 => (0, Act::Read(extent)),
        4 => (4, Act::Flush),
        5 => (8, Act::Read(Extent::new(0, 0))),
        6 => (13, Act::Zero(extent)),
        _ => (11, Act::Discard(extent)),
    };
    let features = features(rig);
    let barrier = features.contains(Features::BARRIER) && what & 0x18 == 0x18;
    let flagged = Features::REQ_FLAGS | Features::REQ_FLAGS_OUT_FUA;
    let fua = features.contains(flagged) && what & 0x28 == 0x28 && kind == 1;
    let sector = if kind < 2 { extent.start.0 } else { 0 };
    rig.memory.put(page, &(kind | u32::from(barrier) << 31).to_le_bytes());
    rig.memory.put(page + 4, &u32::from(fua).to_le_bytes());
    rig.memory.put(page + 8, &sector.to_le_bytes());
    let data = put_data(rig, page, act, kind);
    let buffers = buffers(page, data, act.mutates(), cut);
    let table = if features.contains(Features::INDIRECT_DESC) { usize::from(cut >> 5) } else { 0 };
    let through = BlkDriver::through(rig);
    let latched = rig.disks[0].disk().is_latched();
    rig.offer(queue, page, &buffers, table, |oracle| {
        let ticket = if barrier { oracle.submit_barrier(act) } else { oracle.submit(act) };
        Request { act, ticket, fua: fua || barrier, through, latched }
    });
}

/// The data of a request, and its length.
fn put_data(rig: &Rig<BlkDriver>, page: u64, act: Act, kind: u32) -> u32 {
    match act {
        Act::Write(extent, value) => {
            rig.memory.put(page + DATA, &stamps(extent, value));
            extent.sectors as u32 * 512
        }
        Act::Zero(extent) | Act::Discard(extent) => {
            // Two segments if it has two sectors or more.
            let first = extent.sectors.div_ceil(2);
            let segments = [(extent.start.0, first), (extent.start.0 + first, extent.sectors - first)];
            let count = if segments[1].1 == 0 { 1 } else { 2 };
            for (index, (sector, sectors)) in segments.iter().take(count).enumerate() {
                let at = page + DATA + 16 * index as u64;
                rig.memory.put(at, &sector.to_le_bytes());
                rig.memory.put(at + 8, &sectors.to_le_bytes());
            }
            16 * count as u32
        }
        Act::Read(_) if kind == 8 => 20,
        Act::Read(extent) => extent.sectors as u32 * 512,
        Act::Flush => 0,
    }
}

fn write_writeback(rig: &mut Rig<BlkDriver>, on: bool) {
    if rig.waiting != Waiting::No {
        return;
    }
    // Only 1 to 0 is promised to flush what a guest before a reset may have left.
    let was_on = !BlkDriver::through(rig);
    let begun = rig.oracle.now();
    let offset = register::CONFIG + ConfigSpace::WRITEBACK;
    let mut world = World { memory: &rig.memory, disks: &mut rig.disks };
    let access = rig.device.write(&mut world, offset, Width::Byte, u64::from(on));
    if was_on && !on && rig.honest && features(rig).contains(Features::CONFIG_WCE) {
        rig.waiting = Waiting::CacheOff { begun };
    }
    if access.value == WriteStatus::Done {
        rig.resume();
    }
}

/// The buffers of a request, cut as `cut` has it: header, data, status.
fn buffers(page: u64, data: u32, readable: bool, cut: u8) -> Vec<Buffer> {
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
    let (ended, poll) = ([complete(2)], [Action::Poll]);
    let done = [Action::Poll, complete(2), Action::Poll];
    let bus_master = |on| Action::Any(virtio::Action::BusMaster { on });
    let (reset, reset_ring) =
        (Action::Any(virtio::Action::Reset), |ring| Action::Any(virtio::Action::ResetRing { ring }));
    let (off, on) = ([bus_master(false)], [bus_master(true)]);
    let prompt = [disk(Event::Prompt { on: true })];
    let programs: [Vec<Action>; 11] = [
        join(&[&prompt, &[request(0, 2)], &poll, &[request(3, 2)], &poll, &[request(4, 0)], &poll]),
        join(&[&[request(0, 0x41), request(6, 0x21)], &poll, &ended, &done[1..], &[request(7, 0x20)], &done]),
        join(&[&[request(0, 1)], &done, &[Action::Writeback { on: false }], &done, &[request(0, 3)], &poll]),
        join(&[&[request(0, 1), request(0x18, 2), request(0, 3)], &done, &done[1..], &done[1..], &done[1..]]),
        join(&[&[request(0x28, 1)], &done, &done[1..], &[request(5, 0)], &poll]),
        join(&[
            &[request(0, 1), request(3, 1), poll[0], reset],
            &done[1..],
            &done[1..],
            &[request(3, 1)],
            &poll,
        ]),
        join(&[&[request(0x40, 1), poll[0], reset_ring(1)], &done[1..], &[request(0x43, 1)], &done]),
        join(&[
            &[request(0, 1)],
            &done,
            &[request(4, 0), poll[0], complete(0), poll[0], request(4, 0)],
            &poll,
        ]),
        join(&[&[request(0, 1)], &poll, &off, &[request(3, 1)], &done[1..], &on, &done]),
        join(&[&[request(0, 1)], &poll, &off, &[reset], &done, &on, &poll]),
        join(&[&[request(0, 1), poll[0], reset_ring(0)], &off, &done[1..], &on, &poll]),
    ];
    let setup = |kind, device, declined| Setup { kind, device, declined };
    let setups = [
        setup(Kind::WRITE_BACK, 0, 0),
        setup(Kind::AT_ONCE, 0, 0),
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
