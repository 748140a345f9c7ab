//! A PCI IDE function with two drives on its first channel: configuration space, registers, PRD tables, resets.

use ata_model::drive::DriveConfig;
use ata_model::front::{PciIde, PciIdeChip, PciIdeMode};
use blk_core::bus::{Device as _, IrqChange, Region, Width};
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
const MEMORY_BYTES: u64 = 0x4000;
/// The PRD table is at 0, the data of a command here.
const DATA: u64 = 0x1000;
const DATA_SECTORS: u64 = 4;

const COMMAND: Region = Region::Bar(0);
const CONTROL: Region = Region::Bar(1);
const BUS_MASTER: Region = Region::Bar(4);
const BSY: u8 = 0x80;
const DRQ: u8 = 0x08;
/// ERR and DF.
const FAILED: u8 = 0x21;

record! {
    /// The disks, both, and the blocks of the MULTIPLE commands: log2, modulo 3.
    pub struct Setup { pub kind: Kind, pub multiple: u8, }
}

choices! {
    /// What happens.
    pub enum Action {
        /// A command, if the channel is free: which, and to which drive (see [`Rig::command`]); first sector and length; where the
        /// PRD table cuts the data.
        Command { what: u8, at: u8, cut: u8 },
        /// SET FEATURES: the write cache, if the channel is free.
        WriteCache { drive: bool, on: bool },
        /// The channel is polled until it rests, and the driver goes on.
        Poll,
        /// A disk does something.
        Disk { drive: bool, event: Event },
        /// SRST, set and cleared.
        SoftwareReset,
        /// The bus master is stopped.
        StopBusMaster,
        /// Bus mastering is switched in the PCI command register.
        BusMastering { on: bool },
        /// The machine is reset.
        Restart,
        /// Any register is read.
        Read { region: u8, offset: u8, width: u8 },
        /// Any register is written.
        Write { region: u8, offset: u8, width: u8, value: u32 },
        /// The guest writes anything over its memory.
        Scribble { at: u16, value: u32 },
    }
}

/// A command that has not ended.
#[derive(Clone, Copy, Debug)]
struct Running {
    drive: usize,
    act: Option<(Act, Ticket)>,
    protocol: Protocol,
    stable: bool,
    latched: bool,
    /// Turns the cache off, begun at this time; or on.
    cache: Option<(bool, u64)>,
    /// The driver has stopped the bus master.
    cancelled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    NonData,
    /// Sectors that are still to be moved, and the byte within the data.
    PioIn {
        at: u64,
    },
    PioOut {
        at: u64,
    },
    Dma {
        to_memory: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum State {
    Idle,
    Running(Running),
    Resetting,
}

struct Rig {
    setup: Setup,
    memory: Memory,
    disks: Vec<Handle>,
    function: PciFunction<PciIde, 1>,
    oracles: [Oracle; 2],
    /// Whether completed writes are stable, as IDENTIFY says.
    through: [bool; 2],
    state: State,
    line: bool,
    honest: bool,
    bus_mastering: bool,
}

/// Runs a program of [`Setup`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((setup, actions)) = parse::<Setup, Action>(data) else { return };
    let [first, second] = ["0", "1"].map(|serial| Some(DriveConfig::new("FUZZED DISK", serial)));
    let device = PciIde::new([first, second, None, None], PciIdeChip::Piix3, PciIdeMode::Native);
    let mut disks = Disk::open(setup.kind, SECTORS, 1);
    disks.append(&mut Disk::open(setup.kind, SECTORS, 1));
    let mut rig = Rig {
        setup,
        memory: Memory::new(MEMORY_BYTES as usize),
        disks,
        function: PciFunction::new(device, MsixOwner::Function),
        oracles: [Oracle::default(), Oracle::default()],
        through: [false; 2],
        state: State::Idle,
        line: false,
        honest: true,
        bus_mastering: false,
    };
    rig.master(true);
    rig.bring_up();
    for action in actions {
        rig.act(action);
        rig.check();
    }
    if rig.honest {
        rig.master(true);
    }
    rig.disks.iter_mut().for_each(|disk| disk.settle(&rig.memory));
    rig.poll();
    rig.check();
    if rig.honest {
        assert!(matches!(rig.state, State::Idle), "everything ends: {:?}", rig.state);
        for (oracle, disk) in rig.oracles.iter().zip(&rig.disks) {
            oracle.check_contents(&disk.disk());
        }
    }
    assert!(rig.function.device().controller().channels().iter().all(|channel| channel.strays() == 0));
}

impl Rig {
    fn act(&mut self, action: Action) {
        match action {
            Action::Command { what, at, cut } => self.command(what, at, cut),
            Action::WriteCache { drive, on } => self.write_cache(usize::from(drive), on),
            Action::Poll => self.poll(),
            Action::Disk { drive, event } => {
                self.disks[usize::from(drive)].happen(&self.memory, event);
            }
            Action::SoftwareReset => {
                self.set(CONTROL, 2, 4);
                self.set(CONTROL, 2, 0);
                self.begin_reset();
            }
            Action::StopBusMaster => {
                self.set(BUS_MASTER, 0, 0);
                if let State::Running(running) = &mut self.state
                    && matches!(running.protocol, Protocol::Dma { .. })
                {
                    running.cancelled = true;
                }
                self.go_on();
            }
            Action::BusMastering { on } if self.honest => self.master(on),
            Action::BusMastering { .. } => {}
            Action::Restart => {
                let progress = self.function.reset(&self.memory, &mut self.disks);
                self.wire(progress.irq);
                self.master(true);
                if !self.honest {
                    // Of what a lying guest had asked for, some may still be on its way.
                    self.memory.lend(0..MEMORY_BYTES);
                }
                self.honest = true;
                self.memory.guard();
                self.begin_reset();
            }
            Action::Read { region, offset, width } => {
                let (region, offset, width) = place(region, offset, width);
                // Reading takes interrupts and data away.
                self.lie();
                self.get(region, offset, width);
            }
            Action::Write { region, offset, width, value } => {
                let (region, offset, width) = place(region, offset, width);
                self.lie();
                self.put(region, offset, width, u64::from(value));
            }
            Action::Scribble { at, value } => {
                self.lie();
                self.memory.scribble(at, value);
            }
        }
    }

    /// From here on, until a restart, the driver's account is worth nothing.
    fn lie(&mut self) {
        self.honest = false;
        self.memory.unguard();
        self.oracles.iter_mut().for_each(Oracle::lose_track);
        self.state = State::Idle;
    }

    fn wire(&mut self, irq: IrqChange) {
        self.line = irq.line(0).unwrap_or(self.line);
    }

    fn put(&mut self, region: Region, offset: u64, width: Width, value: u64) {
        let access = self.function.write(region, offset, width, value, &self.memory, &mut self.disks);
        self.wire(access.irq);
    }

    /// As firmware does, or a driver that is about to leave.
    fn master(&mut self, on: bool) {
        self.bus_mastering = on;
        let command = if on { Pci::IO | Pci::BUS_MASTER } else { Pci::IO };
        self.put(Region::Config, 0x04, Width::Word, command.bits().into());
    }

    fn set(&mut self, region: Region, offset: u64, value: u8) {
        self.put(region, offset, Width::Byte, u64::from(value));
    }

    fn get(&mut self, region: Region, offset: u64, width: Width) -> u64 {
        let access = self.function.read(region, offset, width, &self.memory, &mut self.disks);
        self.wire(access.irq);
        access.value
    }

    /// Alternate Status: reading it changes nothing.
    fn status(&mut self) -> u8 {
        self.get(CONTROL, 2, Width::Byte) as u8
    }

    /// After power-on and each reset: SET MULTIPLE MODE and IDENTIFY, which need no disk.
    fn bring_up(&mut self) {
        for drive in [0, 1] {
            self.issue(drive, 0xc6, 0, Extent::new(0, 1 << (self.setup.multiple % 3)));
            assert_eq!(self.status() & (BSY | DRQ), 0);
            self.identify(drive);
        }
    }

    fn identify(&mut self, drive: usize) {
        self.issue(drive, 0xec, 0, Extent::new(0, 0));
        assert_eq!(self.status() & (BSY | DRQ), DRQ, "IDENTIFY needs no disk");
        let words: Vec<u64> = (0..256).map(|_| self.get(COMMAND, 0, Width::Word)).collect();
        self.get(COMMAND, 7, Width::Byte);
        assert_eq!(words[87] & 0xc000, 0x4000);
        self.through[drive] = words[85] & 1 << 5 == 0;
        assert_eq!(words[82] & 1 << 5 != 0, self.disks[drive].info().has_volatile_cache());
    }

    /// Writes a 48-bit task file and a command.
    fn issue(&mut self, drive: usize, opcode: u8, features: u8, extent: Extent) {
        self.set(COMMAND, 6, 0xe0 | (drive as u8) << 4);
        let (count, lba) = (extent.sectors as u8, extent.start.0 as u8);
        for (offset, current) in [(1, features), (2, count), (3, lba), (4, 0), (5, 0)] {
            self.set(COMMAND, offset, 0);
            self.set(COMMAND, offset, current);
        }
        self.set(COMMAND, 7, opcode);
    }

    fn command(&mut self, what: u8, at: u8, cut: u8) {
        if !self.honest || !matches!(self.state, State::Idle) {
            return;
        }
        let drive = usize::from(what >> 7);
        let extent = extent(at, 4, DATA_SECTORS, SECTORS);
        let written = self.oracles[drive].next_value();
        let (write, read) = (Act::Write(extent, written), Act::Read(extent));
        let (pio_in, pio_out) = (Protocol::PioIn { at: 0 }, Protocol::PioOut { at: 0 });
        let dma = |to_memory| Protocol::Dma { to_memory };
        let (opcode, features, act, protocol, fua) = match what % 16 {
            0 => (0x30, 0, Some(write), pio_out, false),
            1 => (0x34, 0, Some(write), pio_out, false),
            2 => (0x39, 0, Some(write), pio_out, false),
            3 => (0xce, 0, Some(write), pio_out, true),
            4 => (0xca, 0, Some(write), dma(false), false),
            5 => (0x35, 0, Some(write), dma(false), false),
            6 => (0x3d, 0, Some(write), dma(false), true),
            7 => (0x20, 0, Some(read), pio_in, false),
            8 => (0x29, 0, Some(read), pio_in, false),
            9 => (0xc8, 0, Some(read), dma(true), false),
            10 => (0x25, 0, Some(read), dma(true), false),
            11 => (0xe7, 0, Some(Act::Flush), Protocol::NonData, false),
            12 => (0xea, 0, Some(Act::Flush), Protocol::NonData, false),
            // STANDBY IMMEDIATE writes the cache first.
            13 => (0xe0, 0, Some(Act::Flush), Protocol::NonData, false),
            14 => (0x06, 1, Some(Act::Discard(extent)), dma(false), false),
            _ => (0x42, 0, None, Protocol::NonData, false),
        };
        let trim = matches!(act, Some(Act::Discard(_)));
        if let Some(Act::Write(..)) = act {
            self.memory.put(DATA, &stamps(extent, written));
        } else if trim {
            let entry = extent.start.0 | extent.sectors << 48;
            self.memory.put(DATA, &[0; 512]);
            self.memory.put(DATA, &entry.to_le_bytes());
        }
        let moved = if trim { Extent::new(0, 1) } else { extent };
        if let Protocol::Dma { to_memory } = protocol {
            self.prepare_dma(moved.sectors * 512, to_memory, cut);
        }
        let stable = fua || self.through[drive] && !matches!(act, Some(Act::Read(_)));
        let latched = self.disks[drive].disk().is_latched();
        let act = act.map(|act| (act, self.oracles[drive].submit(act)));
        self.state =
            State::Running(Running { drive, act, protocol, stable, latched, cache: None, cancelled: false });
        self.issue(drive, opcode, features, moved);
        if let Protocol::Dma { to_memory } = protocol {
            self.set(BUS_MASTER, 0, if to_memory { 0x09 } else { 0x01 });
        }
        self.go_on();
    }

    /// A PRD table of one to three regions.
    fn prepare_dma(&mut self, bytes: u64, to_memory: bool, cut: u8) {
        let first = u64::from(cut >> 2) * 8 % bytes;
        let cuts = match cut % 3 {
            0 => vec![0, bytes],
            1 if first != 0 => vec![0, first, bytes],
            _ if first > 2 => vec![0, 2, first, bytes],
            _ => vec![0, bytes],
        };
        let regions = cuts.len() as u64 - 1;
        for (index, pair) in (0..).zip(cuts.windows(2)) {
            let end = if index + 1 == regions { 0x8000_0000_u64 } else { 0 };
            self.memory.put(8 * index, &((DATA + pair[0]) as u32).to_le_bytes());
            self.memory.put(8 * index + 4, &(((pair[1] - pair[0]) | end) as u32).to_le_bytes());
        }
        if to_memory {
            self.memory.lend(DATA..DATA + bytes);
        }
        self.put(BUS_MASTER, 4, Width::Dword, 0);
        self.set(BUS_MASTER, 0, if to_memory { 0x08 } else { 0 });
        self.set(BUS_MASTER, 2, 0x06);
    }

    fn write_cache(&mut self, drive: usize, on: bool) {
        if !self.honest || !matches!(self.state, State::Idle) {
            return;
        }
        let was_on = !self.through[drive];
        let cache = (was_on || on).then(|| (on, self.oracles[drive].now()));
        let latched = self.disks[drive].disk().is_latched();
        let protocol = Protocol::NonData;
        self.state = State::Running(Running {
            drive,
            act: None,
            protocol,
            stable: false,
            latched,
            cache,
            cancelled: false,
        });
        self.issue(drive, 0xef, if on { 0x02 } else { 0x82 }, Extent::new(0, 0));
        self.go_on();
    }

    /// Polls until the channel rests, and lets the driver go on.
    fn poll(&mut self) {
        for round in 0.. {
            assert!(round < 256, "the channel never rests");
            let progress = self.function.poll(&self.memory, &mut self.disks);
            self.wire(progress.irq);
            self.go_on();
            if !progress.again && !self.function.poll(&self.memory, &mut self.disks).again {
                break;
            }
        }
        self.go_on();
        let idle = self.disks.iter().all(|disk| disk.disk().is_idle() && !disk.disk().is_busy());
        if idle && self.honest {
            // Without bus mastering a DMA command waits, and nothing else does.
            let waits = !self.bus_mastering
                && matches!(self.state, State::Running(Running { protocol: Protocol::Dma { .. }, .. }));
            assert!(
                waits || matches!(self.state, State::Idle),
                "the disks are idle, and the channel is not: {:?}",
                self.state
            );
        }
    }

    /// The driver serves an interrupt, or polls Status.
    fn go_on(&mut self) {
        if !self.honest {
            return;
        }
        match self.state {
            State::Idle => {}
            State::Resetting => {
                if self.status() & BSY == 0 {
                    self.memory.take_back(0..MEMORY_BYTES);
                    for (disk, oracle) in self.disks.iter().zip(&mut self.oracles) {
                        assert!(disk.has_landed(), "a reset waits for what was submitted");
                        oracle.reset();
                    }
                    self.state = State::Idle;
                    self.bring_up();
                }
            }
            State::Running(mut running) => {
                while self.status() & (BSY | DRQ) == DRQ {
                    self.move_block(&mut running);
                    self.state = State::Running(running);
                }
                if self.status() & BSY == 0 {
                    self.state = State::Idle;
                    self.end(running);
                }
            }
        }
    }

    /// Moves a block: as many sectors as DRQ stays.
    fn move_block(&mut self, running: &mut Running) {
        match &mut running.protocol {
            Protocol::PioIn { at } => {
                // Status is read before each block.
                self.get(COMMAND, 7, Width::Byte);
                for _ in 0..128 {
                    let word = self.get(COMMAND, 0, Width::Dword) as u32;
                    self.memory.put(DATA + *at, &word.to_le_bytes());
                    *at += 4;
                }
                assert!(*at <= DATA_SECTORS * 512, "more data than was asked for");
            }
            Protocol::PioOut { at } => {
                self.get(COMMAND, 7, Width::Byte);
                for _ in 0..128 {
                    let word = u32::from_le_bytes(self.memory.get(DATA + *at));
                    self.put(COMMAND, 0, Width::Dword, u64::from(word));
                    *at += 4;
                }
                assert!(*at <= DATA_SECTORS * 512, "more data than was asked for");
            }
            protocol => panic!("DRQ in {protocol:?}"),
        }
    }

    fn end(&mut self, running: Running) {
        let Running { drive, act, protocol, .. } = running;
        let announced = !matches!(protocol, Protocol::PioIn { .. }) && !running.cancelled;
        assert!(self.line || !announced, "an interrupt at the end of {running:?}");
        let status = self.get(COMMAND, 7, Width::Byte) as u8;
        assert!(!self.line, "Status takes the interrupt back");
        let ok = status & FAILED == 0 && !running.cancelled;
        if let Protocol::Dma { .. } = protocol {
            let bus_master = self.get(BUS_MASTER, 2, Width::Byte);
            assert!(!ok || bus_master & 7 == 4, "interrupt, no error, not active: {bus_master:#x}");
            self.set(BUS_MASTER, 0, 0);
        }
        self.memory.take_back(DATA..DATA + DATA_SECTORS * 512);
        if running.cancelled {
            assert!(self.disks[drive].has_landed(), "a stopped command is drained");
        }
        if let Some((on, begun)) = running.cache.filter(|_| ok) {
            self.oracles[drive].cache_switched(on, begun, running.latched);
            self.identify(drive);
            assert_eq!(self.through[drive], !on, "IDENTIFY says what was done");
        }
        let Some((act, ticket)) = act else { return };
        if let (Act::Read(extent), true, Protocol::PioIn { at }) = (act, ok, protocol) {
            assert_eq!(at, extent.sectors * 512);
        }
        let end = End { ok, stable: running.stable, latched: running.latched };
        let sector = |index| self.memory.get(DATA + 512 * index);
        self.oracles[drive].conclude(&self.disks[drive].disk(), (act, ticket), end, sector);
    }

    fn begin_reset(&mut self) {
        if self.honest {
            // What the storage has may still fill the memory of a read, until the reset is over.
            self.state = State::Resetting;
            self.go_on();
        }
    }

    /// What holds after every action.
    fn check(&self) {
        for (oracle, disk) in self.oracles.iter().zip(&self.disks) {
            let disk = disk.disk();
            if disk.info().cache != Cache::Unsafe {
                oracle.check_medium(&disk);
            }
        }
    }
}

fn place(region: u8, offset: u8, width: u8) -> (Region, u64, Width) {
    let width = Width::from_bytes(1 << (width % 4)).expect("a width");
    let region = [COMMAND, CONTROL, BUS_MASTER, Region::Config][usize::from(region % 4)];
    (region, if region == Region::Config { offset.into() } else { u64::from(offset) % 16 }, width)
}

/// Programs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let command = |what, at| Action::Command { what, at, cut: 41 };
    let disk = |event| Action::Disk { drive: false, event };
    let complete = |how| disk(Event::Complete { which: 0, how });
    let prompt = [false, true].map(|drive| Action::Disk { drive, event: Event::Prompt { on: true } });
    let [ended, poll] = [complete(2), Action::Poll];
    let (wait, done) = ([poll, ended, poll], [ended, poll]);
    let cache_off = Action::WriteCache { drive: false, on: false };
    let write = |region, offset, width, value| Action::Write { region, offset, width, value };
    let [off, on] = [false, true].map(|on| Action::BusMastering { on });
    let mut programs: Vec<Vec<Action>> =
        (0..16).map(|what| join(&[&prompt, &[command(5, 0x30), poll, command(what, 0x31), poll]])).collect();
    programs.extend([
        join(&[&prompt, &[command(0x85, 1), poll, command(0x8b, 0), poll, command(0x87, 1), poll]]),
        join(&[&[command(5, 1)], &done, &[cache_off], &wait]),
        join(&[&[command(6, 1)], &wait, &done, &[command(11, 0), poll, complete(0), poll]]),
        join(&[&[command(5, 0x31), poll, Action::SoftwareReset], &wait, &[command(7, 1)], &done]),
        join(&[&[command(9, 0x31), poll, Action::StopBusMaster], &wait, &[command(7, 1)], &done]),
        join(&[&[command(5, 1), poll, Action::Restart], &done]),
        join(&[&[command(10, 0x31), poll, off], &done, &[command(5, 1), on], &wait]),
        join(&[&[command(5, 0x31), off, Action::SoftwareReset], &wait, &[on, command(9, 1), ended]]),
        vec![write(3, 4, 1, 0), poll, Action::Restart, poll],
        join(&[
            &[write(0, 7, 0, 0xc8), Action::Scribble { at: 4, value: 0x8000_0200 }, write(2, 0, 0, 9)],
            &wait,
            &[Action::Restart, poll, command(5, 1)],
            &done,
        ]),
    ]);
    let setups = [Kind::WRITE_BACK, Kind::AT_ONCE, Kind { cache: 1, flags: 1 }, Kind { cache: 0, flags: 0 }]
        .map(|kind| Setup { kind, multiple: 1 });
    setups.iter().flat_map(|setup| programs.iter().map(move |program| seed(setup, program))).collect()
}
