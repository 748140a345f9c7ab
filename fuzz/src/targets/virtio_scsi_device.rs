//! A virtio-scsi controller behind virtio-mmio or virtio-pci, under a driver that keeps the rules, or does not: commands, task
//! management, resets, hotplug.

use blk_core::bus::Width;
use blk_core::virtio::mmio::register;
use blk_core::virtq::Buffer;
use scsi_model::Config as Identity;
use scsi_model::front::virtio_scsi::wire::Features;
use scsi_model::front::virtio_scsi::{Address, CONTROL, Config, EVENT, REQUEST, Scsi};

use crate::contents::{extent, stamps};
use crate::disk::{Disk, Event, Handle, Kind};
use crate::front::Way;
use crate::memory::Memory;
use crate::oracle::{Act, End, Ticket};
use crate::program::{join, parse, seed};
use crate::ring::Layout;
use crate::virtio::{self, DATA, Driver, Outstanding, RING_ENTRIES, Rig, buffer};
use crate::{choices, record};

const QUEUES: usize = 2;
const UNITS: usize = 2;
const TASKS: usize = 4;
const SECTORS: u64 = 16;
/// Within a page.
const RESPONSE: u64 = 0x80;

const HEAD_BYTES: u32 = 51;
const RESPONSE_BYTES: u32 = 108;
/// The unit of which an account is kept, and one that comes and goes.
const UNIT: Address = Address { target: 0, lun: 0 };
const OTHER: Address = Address { target: 0, lun: 300 };

record! {
    /// The disk; whether it is on PCI, and there with MSI-X; features that the driver declines.
    pub struct Setup { pub kind: Kind, pub way: u8, pub declined: u64, }
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
        ..Any(virtio::Action)
    }
}

/// What a chain is for.
pub enum What {
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

/// The driver.
pub struct ScsiDriver {
    setup: Setup,
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
    Rig::new(ScsiDriver { setup }, scsi, way, disks, QUEUES + 2).run(actions, act);
}

fn insert(scsi: &mut Scsi<QUEUES, UNITS, TASKS>, address: Address, disk: &Handle) {
    let identity = Identity::new("FUZZ", "fuzzed disk", "1", "S");
    let info = blk_core::storage::Storage::<Memory>::info(disk);
    // Refused where it is already.
    let _ = scsi.controller_mut().insert(address, identity, info);
}

fn act(rig: &mut Rig<ScsiDriver>, action: Action) {
    match action {
        Action::Command { what, at, how } => command(rig, what, at, how),
        Action::WriteCache { on } => {
            let mut list = [0; 24];
            (list[4], list[5], list[6]) = (0x08, 0x12, if on { 0x04 } else { 0 });
            let cache_off = (!on && !ScsiDriver::through(rig)).then(|| rig.oracle.now());
            send(rig, (0, 0), &[0x15, 0x10, 0, 0, 24, 0], &list, 0, (None, false), cache_off);
        }
        Action::Raw { lun, attribute, cdb, out_bytes, in_bytes } => {
            rig.lie();
            let Some(page) = rig.page() else { return };
            rig.memory.put(page, &lun);
            rig.memory.put(page + 16, &[attribute]);
            rig.memory.put(page + 19, &cdb);
            let (out, room) = (u32::from(out_bytes % 0xd00), u32::from(in_bytes % 0xd00));
            rig.offer(REQUEST, page, &buffers(page, out, room, attribute), 0, |_| What::Other);
        }
        Action::Manage { subtype, which } => manage(rig, subtype % 10, which),
        Action::Control { bytes, len, answer } => {
            let Some(page) = rig.page() else { return };
            rig.memory.put(page, &bytes);
            let answer = u32::from(answer % 8).max(5);
            let buffers = [buffer(page, (len % 25).into(), false), buffer(page + RESPONSE, answer, true)];
            // It may abort anything; what comes back says so.
            rig.offer(CONTROL, page, &buffers, 0, |_| What::Other);
        }
        Action::Lend { bytes } => {
            let Some(page) = rig.page() else { return };
            let buffers = [buffer(page + RESPONSE, u32::from(bytes % 32).max(4), true)];
            rig.offer(EVENT, page, &buffers, 0, |_| What::Other);
        }
        Action::Plug { on: true } => insert(rig.device.device_mut(), OTHER, &rig.disks[1]),
        Action::Plug { on: false } => {
            rig.device.device_mut().controller_mut().remove(1);
        }
        Action::Poll => rig.poll(),
        Action::Disk { event } => rig.happen(event),
        Action::Any(action) => rig.act(action),
    }
}

impl Driver for ScsiDriver {
    type Device = Scsi<QUEUES, UNITS, TASKS>;
    type Request = What;
    const RINGS_AT: u64 = 0;
    const OUTSTANDING: u64 = 6;
    const ANSWER: u64 = RESPONSE;
    /// The control queue last, as it is written last.
    const FIRST: usize = EVENT;

    fn bring_up(rig: &mut Rig<Self>) {
        assert_eq!(rig.get(register::STATUS, Width::Dword), 0);
        rig.set(register::STATUS, 3);
        let declined = Features::from_bits_truncate(rig.driver.setup.declined);
        rig.accept((Features::all().difference(declined) | Features::VERSION_1).bits());
        rig.set(register::STATUS, 11);
        rig.bring_up_rings();
        rig.set(register::STATUS, 15);
        assert_eq!(rig.get(register::STATUS, Width::Dword), 15);
    }

    fn enable_queue(rig: &mut Rig<Self>, ring: usize, layout: &Layout) {
        rig.enable_queue(ring, layout);
    }

    /// What the guest would read in the caching page.
    fn through(rig: &mut Rig<Self>) -> bool {
        !rig.device.device().controller().unit(0).is_some_and(scsi_model::LogicalUnit::write_cache)
    }

    fn end(rig: &mut Rig<Self>, one: Outstanding<What>, written: u32) {
        let (act, fua, was_through, latched, cache_off, data_bytes) = match one.request {
            What::Command { act, fua, through, latched, cache_off, data_bytes } => {
                (act, fua, through, latched, cache_off, data_bytes)
            }
            What::Clears => {
                let older = |other: &&Outstanding<What>| other.ring >= REQUEST && other.number < one.number;
                let left = rig.outstanding.iter().filter(older).count();
                return assert_eq!(left, 0, "a function ends after what it ends");
            }
            What::Other => return,
        };
        let response: [u8; 12] = rig.memory.get(one.page + RESPONSE);
        let residual = u32::from_le_bytes(response[4..8].try_into().expect("4 bytes"));
        let (status, response) = (response[10], response[11]);
        assert!(matches!((response, status), (0, 0 | 2 | 0x28) | (2 | 4, 0)), "{response} {status}");
        assert!(u64::from(residual) <= data_bytes);
        let ok = (response, status) == (0, 0);
        if let (true, Some(begun)) = (ok, cache_off) {
            rig.oracle.cache_switched(false, begun, latched);
        }
        let Some((act, ticket)) = act else { return };
        if let (Act::Read(_), true) = (act, ok) {
            assert_eq!((residual, written), (0, one.writable));
        }
        let stable = fua || act.mutates() && was_through && Self::through(rig);
        let sector = |index| rig.memory.get(one.page + DATA + 512 * index);
        rig.oracle.conclude(&rig.disks[0].disk(), (act, ticket), End { ok, stable, latched }, sector);
    }

    fn may_wait(ring: usize) -> bool {
        ring == EVENT
    }
}

fn command(rig: &mut Rig<ScsiDriver>, what: u8, at: u8, how: u8) {
    let extent = extent(at, 5, 4, SECTORS);
    let (lba, count) = (extent.start.0 as u8, extent.sectors as u8);
    let fua = how & 0x04 != 0;
    let written = rig.oracle.next_value();
    let transfer = |opcode: u8| [opcode, if fua { 0x08 } else { 0 }, 0, 0, 0, lba, 0, 0, count, 0];
    let bytes = extent.sectors as u32 * 512;
    let mut out = Vec::new();
    let (cdb, room, act): (Vec<u8>, u32, _) = match what % 8 {
        0..=2 => {
            out = stamps(extent, written);
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
    send(rig, (what >> 7, how), &cdb, &out, room, (act, fua), None);
}

fn send(
    rig: &mut Rig<ScsiDriver>,
    (queue, how): (u8, u8),
    cdb: &[u8],
    out: &[u8],
    room: u32,
    (act, fua): (Option<Act>, bool),
    cache_off: Option<u64>,
) {
    let Some(page) = rig.page() else { return };
    rig.memory.put(page, &[0; HEAD_BYTES as usize]);
    rig.memory.put(page, &UNIT.encode());
    // The driver's name for it is its page.
    rig.memory.put(page + 8, &page.to_le_bytes());
    rig.memory.put(page + 16, &[(how & 0x03) % 3]);
    rig.memory.put(page + 19, cdb);
    rig.memory.put(page + DATA, out);
    let buffers = buffers(page, out.len() as u32, room, how);
    let indirect = rig.features & Features::INDIRECT_DESC.bits() != 0;
    let table = if indirect { usize::from(how >> 5) } else { 0 };
    let (through, latched) = (ScsiDriver::through(rig), rig.disks[0].disk().is_latched());
    let data_bytes = out.len() as u64 + u64::from(room);
    rig.offer(REQUEST + usize::from(queue), page, &buffers, table, |oracle| {
        let act = act.map(|act| (act, oracle.submit(act)));
        What::Command { act, fua, through, latched, cache_off, data_bytes }
    });
}

fn manage(rig: &mut Rig<ScsiDriver>, subtype: u8, which: u8) {
    let Some(page) = rig.page() else { return };
    let count = rig.outstanding.len().max(1);
    let id = rig.outstanding.get(usize::from(which) % count).map_or(0, |one| one.page);
    let address = [UNIT, UNIT, UNIT, OTHER, Address { target: 9, lun: 0 }][usize::from(which >> 4) % 5];
    rig.memory.put(page, &0_u32.to_le_bytes());
    rig.memory.put(page + 4, &u32::from(subtype).to_le_bytes());
    rig.memory.put(page + 8, &address.encode());
    rig.memory.put(page + 16, &id.to_le_bytes());
    let buffers = [buffer(page, 24, false), buffer(page + RESPONSE, 1, true)];
    let clears = address == UNIT && matches!(subtype, 1 | 3 | 4 | 5);
    rig.offer(CONTROL, page, &buffers, 0, |_| if clears { What::Clears } else { What::Other });
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
    use virtio::Action::{BusMaster, Configure, Reset, ResetRing, Restart, Write};
    let command = |what, at| Action::Command { what, at, how: 0 };
    let ended = Action::Disk { event: Event::Complete { which: 0, how: 2 } };
    let poll = Action::Poll;
    let done = [poll, ended, poll];
    let [off, on] = [false, true].map(|on| Action::Any(BusMaster { on }));
    let write = Action::Any(Write { offset: 0x114, width: 2, value: 18 });
    let configure = Action::Any(Configure { offset: 4, width: 1, value: 0x406 });
    let raw = |lun, cdb| Action::Raw { lun, attribute: 0, cdb, out_bytes: 0, in_bytes: 255 };
    let report_luns = [0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0];
    let mut programs = vec![
        join(&[&[command(0, 1)], &done, &[command(3, 1)], &done]),
        join(&[&[command(0, 1), command(0x80, 2), poll, ended, ended, poll, command(5, 0)], &done]),
        join(&[&[command(0, 1), poll, Action::WriteCache { on: false }], &done, &done[1..]]),
        join(&[&[command(6, 1)], &done, &done[1..]]),
        join(&[&[command(0, 1), poll, Action::Any(Reset)], &done, &[command(7, 0), poll]]),
        join(&[&[command(0, 1), command(0x80, 2), poll, Action::Any(ResetRing { ring: 2 }), poll, ended]])
            .into_iter()
            .chain(join(&[&[ended, poll, command(3, 1)], &done]))
            .collect(),
        join(&[&[command(0, 1), poll, off, ended, command(3, 1), poll, on], &done]),
        join(&[&[configure, poll, Action::Any(Restart), command(0, 1)], &done]),
        vec![Action::Lend { bytes: 16 }, Action::Plug { on: true }, poll, Action::Plug { on: false }, poll],
        join(&[
            &[Action::Command { what: 0, at: 1, how: 0x0d }, Action::Command { what: 3, at: 1, how: 0x32 }],
            &done,
            &done[1..],
        ]),
        vec![raw([1, 0, 0, 0, 0, 0, 0, 0], [0x12; 16]), poll],
        vec![raw([0xc1, 1, 0, 0, 0, 0, 0, 0], report_luns), poll],
        vec![Action::Control { bytes: [1; 24], len: 16, answer: 5 }, poll, write, poll],
    ];
    for subtype in 0..8 {
        let manage = Action::Manage { subtype, which: 0 };
        programs.push(join(&[&[command(0, 1), poll, manage], &done, &[command(7, 0), poll]]));
    }
    let setups = [
        Setup { kind: Kind::WRITE_BACK, way: 0, declined: 0 },
        Setup { kind: Kind::AT_ONCE, way: 0, declined: 0 },
        Setup { kind: Kind::WRITE_BACK, way: 1, declined: 0 },
        Setup { kind: Kind { cache: 0, flags: 1 }, way: 2, declined: u64::MAX },
    ];
    // The unit attention first.
    let ready = [command(7, 0), poll];
    let whole: Vec<_> = programs.iter().map(|program| join(&[&ready, program])).collect();
    whole.iter().flat_map(|program| setups.iter().map(move |setup| seed(setup, program))).collect()
}
