//! An AHCI function with one drive: configuration space, command lists, queued commands and others, errors, resets, hot plugging.

use ata_model::drive::DriveConfig;
use ata_model::front::{Hba, PciAhci};
use ata_model::sim::hba::{ABAR, CR, FRE, ST, TFES, command_fis, control_fis, prepare};
use ata_model::wire::ahci::{PORTS_AT, host, port};
use blk_core::bus::{Device as _, IrqChange, Quiet as _, Region, Width};
use blk_core::pci::{Command as Pci, MsixOwner, PciFunction};
use blk_core::storage::{Cache, Storage as _};
use blk_core::units::Extent;

use crate::contents::{extent, stamps};
use crate::disk::{Disk, Event, Handle, Kind};
use crate::memory::Memory;
use crate::oracle::{Act, End, Oracle, Ticket};
use crate::program::{join, parse, seed};
use crate::{choices, record};

const SECTORS: u64 = 16;
const MEMORY_BYTES: u64 = 0x8000;
const LIST: u64 = 0;
const RECEIVED: u64 = 0x400;
const TABLES: u64 = 0x800;
const TABLE_BYTES: u64 = 0x100;
/// Where the data of slot 0 is, and how far that of the next slot.
const DATA: u64 = 0x3000;
const DATA_BYTES: u64 = 0x800;
/// IDENTIFY data and logs.
const PAGE: u64 = 0x7000;
/// Slots that the driver uses.
const SLOTS: usize = 8;

const BSY: u32 = 0x80;

record! {
    /// The disk.
    pub struct Setup { pub kind: Kind, }
}

choices! {
    /// What happens.
    pub enum Action {
        /// A command in the next free slot, if it may be issued now: which (see [`Rig::command`]); first sector and length; where the
        /// PRD table cuts the data, and in the top bit whether it is issued although it must not be mixed.
        Command { what: u8, at: u8, cut: u8 },
        /// SET FEATURES: the write cache, if nothing is outstanding.
        WriteCache { on: bool },
        /// The HBA is polled until it rests, and the driver goes on.
        Poll,
        /// The disk does something.
        Disk { event: Event },
        /// Bus mastering is switched in the PCI command register.
        BusMastering { on: bool },
        /// A reset: see [`Way`].
        Reset { way: u8 },
        /// Any register is read; those of BAR 4 are behind the HBA's, and then comes configuration space.
        Read { offset: u16, width: u8 },
        /// Any register is written.
        Write { offset: u16, width: u8, value: u32 },
        /// The guest writes anything over its memory.
        Scribble { at: u16, value: u32 },
    }
}

/// How a driver resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stop,
    Software,
    Comreset,
    Host,
    Replug,
    Machine,
}

/// A command that has not ended.
#[derive(Clone, Copy, Debug)]
struct Running {
    act: Option<(Act, Ticket)>,
    queued: bool,
    stable: bool,
    latched: bool,
    /// Turns the cache off, begun at this time; or on.
    cache: Option<(bool, u64)>,
    /// It was issued beside commands that it must not be mixed with.
    mixed: bool,
}

struct Rig {
    memory: Memory,
    disks: Vec<Handle>,
    function: PciFunction<PciAhci<1>, 1>,
    oracle: Oracle,
    /// Whether completed writes are stable, as IDENTIFY says.
    through: bool,
    running: [Option<Running>; SLOTS],
    /// A reset that has not ended, and whether the second half of it has begun.
    resetting: Option<(Way, bool)>,
    line: bool,
    honest: bool,
    bus_mastering: bool,
}

/// Runs a program of [`Setup`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((setup, actions)) = parse::<Setup, Action>(data) else { return };
    let mut rig = Rig {
        memory: Memory::new(MEMORY_BYTES as usize),
        disks: Disk::open(setup.kind, SECTORS, 1),
        function: PciFunction::new(PciAhci::new([Some(drive())]), MsixOwner::Function),
        oracle: Oracle::default(),
        through: false,
        running: [None; SLOTS],
        resetting: None,
        line: false,
        honest: true,
        bus_mastering: false,
    };
    rig.memory.lend(LIST..RECEIVED + 0x100);
    rig.bring_up();
    rig.finish_bring_up();
    for action in actions {
        rig.act(action);
        rig.check();
    }
    if rig.honest {
        rig.master(true);
    }
    rig.disks[0].settle(&rig.memory);
    rig.poll();
    rig.check();
    if rig.honest {
        assert!(rig.resetting.is_none() && rig.running.iter().all(Option::is_none), "everything ends");
        assert!(rig.hba().is_quiet());
        rig.oracle.check_contents(&rig.disks[0].disk());
    }
    assert_eq!(rig.hba().strays(), 0);
}

fn drive() -> DriveConfig {
    DriveConfig::new("FUZZED DISK", "0")
}

impl Rig {
    fn act(&mut self, action: Action) {
        match action {
            Action::Command { what, at, cut } => self.command(what, at, cut),
            Action::WriteCache { on } => self.write_cache(on),
            Action::Poll => self.poll(),
            Action::Disk { event } => self.disks[0].happen(&self.memory, event),
            Action::BusMastering { on } if self.honest => self.master(on),
            Action::BusMastering { .. } => {}
            Action::Reset { way } => {
                let ways = [Way::Stop, Way::Software, Way::Comreset, Way::Host, Way::Replug, Way::Machine];
                self.reset(ways[usize::from(way) % ways.len()]);
            }
            Action::Read { offset, width } => {
                let width = Width::from_bytes(1 << (width % 4)).expect("a width");
                let (region, offset) = place(offset);
                self.function.read(region, offset, width, &self.memory, &mut self.disks);
            }
            Action::Write { offset, width, value } => {
                self.lie();
                let width = Width::from_bytes(1 << (width % 4)).expect("a width");
                let ((region, offset), value) = (place(offset), u64::from(value));
                self.store(region, offset, width, value);
            }
            Action::Scribble { at, value } => {
                self.lie();
                self.memory.scribble(at, value);
            }
        }
    }

    /// From here on, until the machine is reset, the driver's account is worth nothing.
    fn lie(&mut self) {
        self.honest = false;
        self.memory.unguard();
        self.oracle.lose_track();
        self.running = [None; SLOTS];
        self.resetting = None;
    }

    fn wire(&mut self, irq: IrqChange) {
        self.line = irq.line(0).unwrap_or(self.line);
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.store(ABAR, PORTS_AT + offset, Width::Dword, value.into());
    }

    fn get(&mut self, offset: u64) -> u32 {
        self.get_host(PORTS_AT + offset)
    }

    fn get_host(&mut self, offset: u64) -> u32 {
        self.function.read(ABAR, offset, Width::Dword, &self.memory, &mut self.disks).value as u32
    }

    fn set_host(&mut self, offset: u64, value: u32) {
        self.store(ABAR, offset, Width::Dword, value.into());
    }

    fn store(&mut self, region: Region, offset: u64, width: Width, value: u64) {
        let access = self.function.write(region, offset, width, value, &self.memory, &mut self.disks);
        self.wire(access.irq);
    }

    fn hba(&mut self) -> &mut Hba<1> {
        self.function.device_mut().hba_mut()
    }

    /// As firmware does, or a driver that is about to leave.
    fn master(&mut self, on: bool) {
        self.bus_mastering = on;
        let command = if on { Pci::MEMORY | Pci::BUS_MASTER } else { Pci::MEMORY };
        self.store(Region::Config, 0x04, Width::Word, command.bits().into());
    }

    /// Bus mastering, addresses, FIS reception, interrupts.
    fn bring_up(&mut self) {
        self.master(true);
        self.set(port::CLB, LIST as u32);
        self.set(port::FB, RECEIVED as u32);
        self.set(port::CMD, FRE);
        self.set(port::IE, u32::MAX);
        self.set_host(host::GHC, 2);
    }

    /// Starts the port of a drive that has sent its signature, and looks at the drive, which needs no disk.
    fn finish_bring_up(&mut self) {
        self.master(true);
        self.start();
        self.parameters(0xec, 0);
        let word = |memory: &Memory, n: u64| u16::from_le_bytes(memory.get(PAGE + 2 * n));
        assert_eq!(word(&self.memory, 87) & 0xc000, 0x4000);
        self.through = word(&self.memory, 85) & 1 << 5 == 0;
        let volatile = self.disks[0].info().has_volatile_cache();
        assert_eq!(word(&self.memory, 82) & 1 << 5 != 0, volatile);
        assert_eq!((word(&self.memory, 75), word(&self.memory, 76) >> 8 & 1), (31, 1));
    }

    fn start(&mut self) {
        self.acknowledge();
        self.set(port::CMD, FRE | ST);
    }

    fn acknowledge(&mut self) -> u32 {
        self.set(port::SERR, u32::MAX);
        let pending = self.get(port::IS);
        self.set(port::IS, pending);
        self.set_host(host::IS, 1);
        assert!(!self.line, "nothing is pending any more");
        pending
    }

    /// A page of parameters, by a command that needs no disk.
    fn parameters(&mut self, opcode: u8, lba: u8) {
        self.memory.lend(PAGE..PAGE + 512);
        let fis = command_fis(opcode, 0, lba.into(), 1, 0x40);
        self.prepare(0, &fis, &[(PAGE, 512)]);
        self.set(port::CI, 1);
        assert_eq!((self.get(port::CI), self.get(port::TFD)), (0, 0x50), "{opcode:#x}");
        self.acknowledge();
        self.memory.take_back(PAGE..PAGE + 512);
    }

    fn prepare(&mut self, slot: usize, fis: &[u8], regions: &[(u64, u32)]) {
        let table = TABLES + slot as u64 * TABLE_BYTES;
        for (at, bytes) in prepare(LIST, slot as u8, table, fis, regions) {
            self.memory.put(at, &bytes);
        }
    }

    fn queue_busy(&self) -> bool {
        self.running.iter().flatten().any(|running| running.queued)
    }

    fn command(&mut self, what: u8, at: u8, cut: u8) {
        if !self.honest || self.resetting.is_some() {
            return;
        }
        // Before anything else the driver looks at what the cache is now.
        if self.running.iter().flatten().any(|running| running.cache.is_some()) {
            return;
        }
        let Some(slot) = self.running.iter().position(Option::is_none) else { return };
        let extent = extent(at, 4, 4, SECTORS);
        let written = self.oracle.next_value();
        let (write, read) = (Some(Act::Write(extent, written)), Some(Act::Read(extent)));
        let (opcode, act, fua) = match what % 18 {
            0..=3 => (0x61, write, false),
            4 => (0x61, write, true),
            5 | 6 => (0x60, read, false),
            7 => (0x60, read, true),
            8 => (0x35, write, false),
            9 => (0x3d, write, true),
            10 => (0x25, read, false),
            11 => (0x34, write, false),
            12 => (0x24, read, false),
            13 => (0xea, Some(Act::Flush), false),
            14 => (0xe7, Some(Act::Flush), false),
            // STANDBY IMMEDIATE writes the cache first.
            15 => (0xe0, Some(Act::Flush), false),
            16 => (0x06, Some(Act::Discard(extent)), false),
            _ => (0x42, None, false),
        };
        let queued = matches!(opcode, 0x60 | 0x61);
        let mut others = self.running.iter().flatten();
        let mixed = !queued && self.queue_busy();
        // A queued command beside one that is not: the HBA holds it back, and then it is right. So it is with one that is not
        // before the drive has the queued ones, which it has not while bus mastering is off.
        let held = others.any(|running| !running.queued);
        if mixed && (cut < 0x80 || self.get(port::CI) != 0) || queued && held {
            return;
        }
        let data = DATA + slot as u64 * DATA_BYTES;
        let bytes = self.fill(data, act, extent);
        if let Some(Act::Read(_)) = act {
            self.memory.lend(data..data + DATA_BYTES);
        }
        let (lba, count) =
            if bytes == 512 && opcode == 0x06 { (0, 1) } else { (extent.start.0, extent.sectors as u16) };
        let device = if queued && fua { 0xc0 } else { 0x40 };
        let (features, count) = match opcode {
            0x60 | 0x61 => (count, (slot as u16) << 3),
            0x06 => (1, count),
            _ => (0, count),
        };
        let fis = command_fis(opcode, features, lba, count, device);
        self.prepare(slot, &fis, &regions(data, bytes, cut));
        let is_read = matches!(act, Some(Act::Read(_)));
        let running = Running {
            act: act.map(|act| (act, self.oracle.submit(act))),
            queued,
            stable: fua || self.through && !is_read,
            latched: self.disks[0].disk().is_latched(),
            cache: None,
            mixed,
        };
        self.issue(slot, running);
    }

    /// Puts the data of a write, or the range of a TRIM, into memory; returns how many bytes move.
    fn fill(&mut self, data: u64, act: Option<Act>, extent: Extent) -> u64 {
        match act {
            Some(Act::Write(_, written)) => {
                self.memory.put(data, &stamps(extent, written));
                extent.sectors * 512
            }
            Some(Act::Read(_)) => extent.sectors * 512,
            Some(Act::Discard(_)) => {
                self.memory.put(data, &[0; 512]);
                self.memory.put(data, &(extent.start.0 | extent.sectors << 48).to_le_bytes());
                512
            }
            _ => 0,
        }
    }

    fn issue(&mut self, slot: usize, running: Running) {
        self.running[slot] = Some(running);
        if running.queued {
            self.set(port::SACT, 1 << slot);
        }
        self.set(port::CI, 1 << slot);
        self.go_on();
    }

    fn write_cache(&mut self, on: bool) {
        if !self.honest || self.resetting.is_some() || self.running.iter().any(Option::is_some) {
            return;
        }
        let cache = Some((on, self.oracle.now()));
        let latched = self.disks[0].disk().is_latched();
        let feature = if on { 0x02 } else { 0x82 };
        self.prepare(0, &command_fis(0xef, feature, 0, 0, 0x40), &[]);
        let running = Running { act: None, queued: false, stable: false, latched, cache, mixed: false };
        self.issue(0, running);
    }

    /// Polls until the HBA rests, and lets the driver go on.
    fn poll(&mut self) {
        for round in 0.. {
            assert!(round < 256, "the HBA never rests");
            let progress = self.function.poll(&self.memory, &mut self.disks);
            self.wire(progress.irq);
            self.go_on();
            if !progress.again && !self.function.poll(&self.memory, &mut self.disks).again {
                break;
            }
        }
        self.go_on();
        let (idle, busy) = (self.disks[0].disk().is_idle(), self.disks[0].disk().is_busy());
        if idle && !busy && self.honest && self.bus_mastering {
            // An error is served in two steps.
            self.go_on();
            let idle = self.resetting.is_none() && self.running.iter().all(Option::is_none);
            assert!(idle, "the disk is idle, and the HBA is not: {:?} {:?}", self.resetting, self.running);
        }
    }

    /// The driver looks at the registers.
    fn go_on(&mut self) {
        if !self.honest {
            return;
        }
        if let Some((way, second)) = self.resetting {
            return self.go_on_resetting(way, second);
        }
        let pending = self.get(port::IS);
        let outstanding = self.get(port::SACT) | self.get(port::CI);
        let ended = (0..SLOTS).filter(|slot| outstanding >> slot & 1 == 0);
        let ended: Vec<_> = ended.filter_map(|slot| Some((slot, self.running[slot].take()?))).collect();
        if pending != 0 {
            self.acknowledge();
        }
        for (slot, running) in ended {
            self.end(slot, running, true);
        }
        if pending & TFES != 0 {
            self.recover();
        }
    }

    /// After an error: the port is stopped and started, and of a queue the log is read.
    fn recover(&mut self) {
        assert!(self.disks[0].has_landed(), "what is reported as aborted has landed");
        let queue = self.queue_busy() || self.running.iter().flatten().any(|running| running.mixed);
        self.set(port::CMD, FRE);
        assert_eq!(self.get(port::CMD) & CR, 0);
        let failed = self.running.map(|running| running.is_some());
        for slot in 0..SLOTS {
            if let Some(running) = self.running[slot].take() {
                self.end(slot, running, false);
            }
        }
        self.start();
        if queue {
            self.parameters(0x2f, 0x10);
            let [tag] = self.memory.get(PAGE);
            assert!(tag == 0x80 || failed[usize::from(tag)], "log 10h names tag {tag:#x}");
        }
    }

    fn end(&mut self, slot: usize, running: Running, ok: bool) {
        let data = DATA + slot as u64 * DATA_BYTES;
        self.memory.take_back(data..data + DATA_BYTES);
        assert!(!(ok && running.mixed), "{running:?} was executed");
        if let Some((on, begun)) = running.cache.filter(|_| ok) {
            self.oracle.cache_switched(on, begun, running.latched);
            self.finish_bring_up();
            assert_eq!(self.through, !on, "IDENTIFY says what was done");
        }
        let Some((act, ticket)) = running.act else { return };
        let end = End { ok, stable: running.stable, latched: running.latched };
        let sector = |index| self.memory.get(data + 512 * index);
        self.oracle.conclude(&self.disks[0].disk(), (act, ticket), end, sector);
    }

    fn reset(&mut self, way: Way) {
        if way == Way::Machine {
            if !self.honest {
                // Of what a lying guest had asked for, some may still be on its way.
                self.memory.lend(0..MEMORY_BYTES);
            }
            let progress = self.function.reset(&self.memory, &mut self.disks);
            self.wire(progress.irq);
            self.master(true);
            self.honest = true;
            self.memory.guard();
        } else if !self.honest || self.resetting.is_some() {
            return;
        }
        match way {
            Way::Stop | Way::Software => self.set(port::CMD, FRE),
            Way::Comreset => {
                self.set(port::CMD, FRE);
                self.set(port::SCTL, 0x301);
                self.set(port::SCTL, 0x300);
            }
            Way::Host => self.set_host(host::GHC, 1),
            Way::Replug => {
                self.hba().unplug(0);
                self.set(port::CMD, FRE);
            }
            Way::Machine => {}
        }
        self.running = [None; SLOTS];
        self.resetting = Some((way, false));
        self.go_on();
    }

    fn go_on_resetting(&mut self, way: Way, second: bool) {
        if !second {
            if self.get_host(host::GHC) & 1 != 0 || self.get(port::CMD) & CR != 0 {
                return;
            }
            if way == Way::Replug && !self.hba().is_empty(0) {
                return;
            }
            // Also a reset of the machine may come while the drive is out.
            if self.hba().is_empty(0) {
                assert!(self.hba().plug(0, drive()));
                self.function.poll(&self.memory, &mut self.disks);
            }
            self.bring_up();
            if way == Way::Software {
                self.start();
                for control in [4, 0] {
                    self.prepare(0, &control_fis(0, control), &[]);
                    self.set(port::CI, 1);
                }
            }
            self.resetting = Some((way, true));
        }
        if self.get(port::TFD) & BSY != 0 {
            return;
        }
        assert!(self.disks[0].has_landed(), "a reset waits for what was submitted");
        self.resetting = None;
        self.memory.take_back(0..MEMORY_BYTES);
        self.memory.lend(LIST..RECEIVED + 0x100);
        self.oracle.reset();
        if way == Way::Stop {
            // It does not reach the drive, whose queue may have ended before.
            self.start();
            self.parameters(0x2f, 0x10);
        }
        self.finish_bring_up();
    }

    /// What holds after every action.
    fn check(&self) {
        let disk = self.disks[0].disk();
        if disk.info().cache != Cache::Unsafe {
            self.oracle.check_medium(&disk);
        }
    }
}

/// Where an access goes.
fn place(offset: u16) -> (Region, u64) {
    match u64::from(offset) % 0x320 {
        at @ 0..0x200 => (ABAR, at),
        at @ 0x200..0x220 => (Region::Bar(4), at - 0x200),
        at => (Region::Config, at - 0x220),
    }
}

/// One to three regions.
fn regions(data: u64, bytes: u64, cut: u8) -> Vec<(u64, u32)> {
    if bytes == 0 {
        return Vec::new();
    }
    let first = u64::from(cut >> 2 & 0x1f) * 8 % bytes;
    let cuts = match cut % 3 {
        1 if first != 0 => vec![0, first, bytes],
        2 if first > 2 => vec![0, 2, first, bytes],
        _ => vec![0, bytes],
    };
    cuts.windows(2).map(|pair| (data + pair[0], (pair[1] - pair[0]) as u32)).collect()
}

/// Programs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let command = |what, at| Action::Command { what, at, cut: 41 };
    let mixed = |what, at| Action::Command { what, at, cut: 0x80 };
    let disk = |event| Action::Disk { event };
    let complete = |which, how| disk(Event::Complete { which, how });
    let (ended, poll) = (complete(0, 2), Action::Poll);
    let prompt = disk(Event::Prompt { on: true });
    let (wait, done) = ([poll, ended, poll], [ended, poll]);
    let write = |offset, width, value| Action::Write { offset, width, value };
    let reset = |way| Action::Reset { way };
    let [off, on] = [false, true].map(|on| Action::BusMastering { on });
    let queue = [command(0, 0x10), command(1, 0x12), command(4, 0x14), command(5, 0x16), poll];
    let mut programs: Vec<Vec<Action>> = (0..18)
        .map(|what| vec![prompt, command(8, 0x30), poll, command(what, 0x31), poll, command(10, 0x31), poll])
        .collect();
    programs.extend((0..6).map(|way| {
        join(&[
            &[command(0, 0x31), command(4, 0x35), poll, reset(way)],
            &wait,
            &done,
            &[command(5, 0x31)],
            &done,
        ])
    }));
    programs.extend([
        join(&[&queue, &[complete(3, 2), complete(2, 2), complete(1, 2)], &done, &done]),
        join(&[&queue, &[complete(1, 0), poll, ended, ended], &done, &[command(13, 0)], &done]),
        join(&[&queue, &[mixed(13, 0), poll, ended, ended], &done, &done]),
        join(&[
            &[command(0, 1)],
            &done,
            &[Action::WriteCache { on: false }],
            &wait,
            &[command(0, 1)],
            &wait,
            &[ended],
        ]),
        join(&[&[command(7, 1)], &wait, &done]),
        join(&[&queue, &[off, ended], &done, &[on, poll, ended], &done]),
        join(&[&[command(8, 0x31), poll, off, reset(0)], &wait, &[on, poll]]),
        vec![write(0x224, 1, 6), write(0x210, 2, 0x138), write(0x214, 2, 1), poll],
        join(&[
            &[
                write(0x138, 2, 0xff),
                Action::Scribble { at: 0x800, value: 0x0060_8027 },
                write(0x134, 2, 0xff),
            ],
            &wait,
            &[reset(5), poll, command(0, 1)],
            &done,
        ]),
    ]);
    let setups = [Kind::WRITE_BACK, Kind::AT_ONCE, Kind { cache: 1, flags: 1 }, Kind { cache: 0, flags: 0 }];
    setups
        .iter()
        .flat_map(|&kind| programs.iter().map(move |program| seed(&Setup { kind }, program)))
        .collect()
}
