//! A SCSI logical unit under command blocks with attributes, task management and resets.

use std::collections::BTreeMap;
use std::ops::Range;

use blk_core::op::{Op, Segment};
use blk_core::storage::{Cache, Storage as _};
use blk_core::units::GuestAddr;
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Nexus, Outcome, Polled, ResetCause,
    SegmentList, Task, Transport,
};

use crate::contents::{extent, stamps};
use crate::disk::{Disk, Event, Handle, Kind};
use crate::memory::Memory;
use crate::oracle::{Act, End, Oracle, Ticket};
use crate::program::{join, parse, seed};
use crate::{choices, record};

const TASKS: usize = 4;
const SECTORS: u64 = 16;
/// Each task that may be outstanding has a page of memory for its data.
const PAGE: u64 = 0x1000;
const PAGES: u64 = 6;

record! {
    /// The disk; whether its cache is on by default, and where the transport cuts data in two.
    pub struct Setup { pub kind: Kind, pub unit: u8, }
}

choices! {
    /// What happens.
    pub enum Action {
        /// A command with an account of it: which, FUA, attribute (see [`Rig::command`]); first sector and length; the length of the
        /// command block.
        Command { what: u8, at: u8, form: u8 },
        /// MODE SELECT of the write cache.
        WriteCache { on: bool, attribute: u8 },
        /// Any command block, with any data.
        Raw { cdb: [u8; 16], len: u8, out_bytes: u16, in_bytes: u16, data: [u8; 32] },
        /// The unit is polled until it has no more to do.
        Poll,
        /// The disk does something.
        Disk { event: Event },
        /// ABORT TASK of one that is outstanding.
        Abort { which: u8 },
        /// ABORT TASK SET.
        AbortSet,
        /// A reset.
        Reset { cause: u8 },
    }
}

/// A task that has not ended.
#[derive(Debug)]
struct Known {
    act: Option<(Act, Ticket)>,
    task: Task,
    fua: bool,
    /// Whether writes were stable when it was enqueued.
    through: bool,
    latched: bool,
    /// It turns the cache off, begun at this time.
    cache_off: Option<u64>,
}

struct Pages {
    cut: u64,
}

impl Transport for Pages {
    fn segments(
        &mut self,
        tag: u64,
        _direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        // Of the tag's page; what lies beyond it is no memory that the guest gave.
        let base = tag % PAGES * PAGE;
        assert!(range.start < range.end, "an empty range is asked for");
        let cut = self.cut.clamp(range.start, range.end);
        for part in [range.start..cut, cut..range.end] {
            let len = u32::try_from(part.end - part.start).map_err(|_| DataError)?;
            if len != 0 {
                let addr = GuestAddr(base + part.start);
                list.push(Segment::Guest { addr, len }).map_err(|_| DataError)?;
            }
        }
        Ok(())
    }
}

struct Rig {
    memory: Memory,
    disk: Handle,
    unit: LogicalUnit<TASKS>,
    pages: Pages,
    outstanding: BTreeMap<u64, Known>,
    next_tag: u64,
    oracle: Oracle,
    resetting: bool,
}

/// Runs a program of [`Setup`] and [`Action`]s.
pub fn run(data: &[u8]) {
    let Some((setup, actions)) = parse::<Setup, Action>(data) else { return };
    let disk = Disk::open(setup.kind, SECTORS, 1).remove(0);
    let config = Config { write_cache: setup.unit & 1 == 0, ..Config::new("FUZZ", "fuzzed disk", "1", "S") };
    let mut rig = Rig {
        memory: Memory::new((PAGE * PAGES) as usize),
        unit: LogicalUnit::new(config, disk.info()).expect("512-byte blocks"),
        disk,
        pages: Pages { cut: u64::from(setup.unit >> 1) * 7 },
        outstanding: BTreeMap::new(),
        next_tag: 0,
        oracle: Oracle::default(),
        resetting: false,
    };
    for action in actions {
        rig.act(action);
        rig.check();
    }
    rig.disk.settle(&rig.memory);
    rig.poll();
    rig.check();
    assert!(rig.outstanding.is_empty() && rig.unit.is_idle(), "everything ends");
    rig.oracle.check_contents(&rig.disk.disk());
}

impl Rig {
    fn act(&mut self, action: Action) {
        match action {
            Action::Command { what, at, form } => self.command(what, at, form),
            Action::WriteCache { on, attribute } => {
                let mut list = [0; 24];
                (list[4], list[5], list[6]) = (0x08, 0x12, if on { 0x04 } else { 0 });
                let turns_off = (!on && self.unit.write_cache()).then(|| self.oracle.now());
                let page = self.page();
                self.memory.put(page, &list);
                self.enqueue(&[0x15, 0x10, 0, 0, 24, 0], (24, 0), attribute, None, turns_off);
            }
            Action::Raw { cdb, len, out_bytes, in_bytes, data } => {
                self.oracle.lose_track();
                let page = self.page();
                self.memory.put(page, &data);
                let cdb = &cdb[..usize::from(len % 17)];
                let bound = |bytes: u16| u64::from(bytes) % (PAGE + 1);
                self.enqueue(cdb, (bound(out_bytes), bound(in_bytes)), len >> 5, None, None);
            }
            Action::Poll => self.poll(),
            Action::Disk { event } => self.disk.happen(&self.memory, event),
            Action::Abort { which } => {
                let count = self.outstanding.len().max(1);
                if let Some(tag) = self.outstanding.keys().nth(usize::from(which) % count).copied() {
                    assert!(self.unit.contains(tag), "{tag} has not ended");
                    self.unit.abort_task(tag);
                }
                assert!(!self.unit.abort_task(u64::MAX));
            }
            Action::AbortSet => self.unit.abort_task_set(Nexus::default()),
            Action::Reset { cause } => {
                let causes = [ResetCause::Hard, ResetCause::Transport, ResetCause::LogicalUnit];
                self.unit.reset(causes[usize::from(cause) % 3]);
                self.resetting = true;
            }
        }
    }

    /// The page of the next task: one that no task uses. A tag names its page.
    fn page(&mut self) -> u64 {
        while self.outstanding.keys().any(|tag| tag % PAGES == self.next_tag % PAGES) {
            self.next_tag += 1;
        }
        self.next_tag % PAGES * PAGE
    }

    fn command(&mut self, what: u8, at: u8, form: u8) {
        let extent = extent(at, 4, 4, SECTORS);
        let (lba, count) = (extent.start.0 as u8, extent.sectors as u8);
        let fua = what & 0x10 != 0 && !form.is_multiple_of(4);
        let flags = if fua { 0x08 } else { 0 };
        let bytes = extent.sectors * 512;
        let written = self.oracle.next_value();
        let form = usize::from(form % 4);
        let block = |opcodes: [u8; 4], flags: u8| match form {
            0 => vec![opcodes[0], 0, 0, lba, count, 0],
            1 => vec![opcodes[1], flags, 0, 0, 0, lba, 0, 0, count, 0],
            2 => vec![opcodes[2], flags, 0, 0, 0, lba, 0, 0, 0, count, 0, 0],
            _ => vec![opcodes[3], flags, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, count, 0, 0],
        };
        let no_six = |opcode: [u8; 4]| if form == 0 { [opcode[1]; 4] } else { opcode };
        let (cdb, data, act) = match what % 16 {
            0..=3 => (block([0x0a, 0x2a, 0xaa, 0x8a], flags), (bytes, 0), Some(Act::Write(extent, written))),
            4..=6 => (block([0x08, 0x28, 0xa8, 0x88], flags), (0, bytes), Some(Act::Read(extent))),
            7 | 8 => (vec![0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], (0, 0), Some(Act::Flush)),
            // WRITE SAME(16) with NDOB; with UNMAP it has to read as zeroes all the same.
            9 => {
                let unmap = if fua { 0x08 } else { 0 };
                let cdb = [0x93, 0x01 | unmap, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, count, 0, 0];
                (cdb.to_vec(), (0, 0), Some(Act::Zero(extent)))
            }
            10 => {
                let mut list = [0; 24];
                (list[1], list[3], list[15], list[19]) = (22, 16, lba, count);
                let page = self.page();
                self.memory.put(page, &list);
                (vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], (24, 0), Some(Act::Discard(extent)))
            }
            // WRITE AND VERIFY: always stable.
            11 if form != 0 => {
                (block(no_six([0, 0x2e, 0xae, 0x8e]), 0), (bytes, 0), Some(Act::Write(extent, written)))
            }
            12 if form != 0 => (block(no_six([0, 0x2f, 0xaf, 0x8f]), 0), (0, 0), None),
            // START STOP UNIT: stop, which flushes, and start.
            13 => (vec![0x1b, 0, 0, 0, 0, 0], (0, 0), Some(Act::Flush)),
            14 => (vec![0x1b, 0, 0, 0, 1, 0], (0, 0), None),
            _ => (vec![0x1a, 0, 0x08, 0, 0xff, 0], (0, 0xff), None),
        };
        if let Some(Act::Write(..)) = act {
            let page = self.page();
            self.memory.put(page, &stamps(extent, written));
        }
        self.enqueue(&cdb, data, what >> 5, act, None);
    }

    fn enqueue(
        &mut self,
        cdb: &[u8],
        (out_bytes, in_bytes): (u64, u64),
        attribute: u8,
        act: Option<Act>,
        cache_off: Option<u64>,
    ) {
        let attribute = match attribute % 8 {
            0 | 1 => Attribute::Ordered,
            2 => Attribute::HeadOfQueue,
            _ => Attribute::Simple,
        };
        self.page();
        let tag = self.next_tag;
        let task = Task {
            tag,
            nexus: Nexus::default(),
            attribute,
            cdb: Cdb::new(cdb),
            data_out_bytes: out_bytes,
            data_in_bytes: in_bytes,
        };
        let full = self.outstanding.len() == TASKS;
        assert_eq!(self.unit.enqueue(task).is_err(), full);
        if full {
            return;
        }
        self.next_tag += 1;
        let page = tag % PAGES * PAGE;
        self.memory.lend(page..page + in_bytes);
        let opcode = cdb.first().copied().unwrap_or(0);
        let fua = matches!(opcode, 0x2e | 0xae | 0x8e) || cdb.len() > 6 && cdb[1] & 0x08 != 0;
        let fua = fua && !matches!(act, Some(Act::Zero(_)));
        let through = !self.unit.write_cache();
        let latched = self.disk.disk().is_latched();
        let act = act.map(|act| (act, self.oracle.submit(act)));
        self.outstanding.insert(tag, Known { act, task, fua, through, latched, cache_off });
    }

    /// Polls until there is no more to do.
    fn poll(&mut self) {
        for round in 0.. {
            assert!(round < 4096, "the unit never rests");
            let managing = self.unit.is_managing();
            let polled = self.unit.poll(&self.memory, &mut self.disk, &mut self.pages);
            if self.resetting && managing && !self.unit.is_managing() {
                assert!(self.disk.has_landed(), "a reset waits for what was submitted");
            }
            self.resetting &= self.unit.is_managing();
            match polled {
                Polled::Ended(ended) => self.end(ended.tag, ended.outcome, ended.transferred_bytes),
                Polled::Again => {}
                Polled::Idle => break,
            }
        }
        if self.disk.disk().is_idle() && !self.disk.disk().is_busy() {
            assert!(self.outstanding.is_empty(), "the disk is idle, and tasks wait: {:?}", self.outstanding);
            assert!(self.unit.is_idle() && !self.unit.is_managing() && !self.disk.disk().is_held());
        }
    }

    fn end(&mut self, tag: u64, outcome: Outcome, transferred: u64) {
        let known = self.outstanding.remove(&tag).expect("a task ends once");
        let task = &known.task;
        assert!(transferred <= task.data_out_bytes.max(task.data_in_bytes), "{transferred} of {task:?}");
        let page = tag % PAGES * PAGE;
        self.memory.take_back(page..page + PAGE);
        if let Outcome::CheckCondition(sense) = &outcome {
            assert!(matches!(sense[0] & 0x7f, 0x70..=0x73) && sense.len() >= 8, "{sense:?}");
        }
        let good = outcome == Outcome::Good;
        if let (true, Some(begun)) = (good, known.cache_off) {
            self.oracle.cache_switched(false, begun, known.latched);
        }
        let Some((act, ticket)) = known.act else { return };
        let through = known.through && !self.unit.write_cache();
        let stable = known.fua || act.mutates() && through;
        let end = End { ok: good, stable, latched: known.latched };
        let sector = |index| self.memory.get(page + 512 * index);
        self.oracle.conclude(&self.disk.disk(), (act, ticket), end, sector);
    }

    /// What holds after every action.
    fn check(&self) {
        let disk = self.disk.disk();
        if disk.info().cache != Cache::Unsafe {
            self.oracle.check_medium(&disk);
        }
        // An ORDERED write that no other task could be taken for, and no HEAD OF QUEUE task to overtake it.
        let tasks = self.outstanding.values();
        if tasks.clone().any(|known| known.task.attribute == Attribute::HeadOfQueue) {
            return;
        }
        for known in tasks.clone().filter(|known| known.task.attribute == Attribute::Ordered) {
            let Some((Act::Write(extent, _), _)) = known.act else { continue };
            let is_it = |op: Op| matches!(op, Op::Write { extent: at, .. } if at == extent);
            let alike = |known: &&Known| match known.act {
                Some((Act::Write(at, _), _)) => at == extent,
                Some(_) => false,
                None => true,
            };
            if tasks.clone().filter(alike).count() == 1 && disk.flying().any(|(_, _, op)| is_it(op)) {
                assert_eq!(disk.flying().count(), 1, "something runs beside an ORDERED write");
            }
        }
    }
}

/// Programs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    const SIMPLE: u8 = 0x60;
    let command = |what, at| Action::Command { what, at, form: 1 };
    let simple = |what, at| command(SIMPLE | what, at);
    let disk = |event| Action::Disk { event };
    let complete = |how| disk(Event::Complete { which: 0, how });
    let [ended, poll] = [complete(2), Action::Poll];
    let raw = |cdb: &[u8], data: &[u8]| {
        let mut action = ([0; 16], [0; 32]);
        action.0[..cdb.len()].copy_from_slice(cdb);
        action.1[..data.len()].copy_from_slice(data);
        Action::Raw { cdb: action.0, len: cdb.len() as u8, out_bytes: 32, in_bytes: 255, data: action.1 }
    };
    let ready = [simple(14, 0), poll, ended, poll];
    let (wait, done) = ([poll, ended, poll], [ended, poll]);
    let off = Action::WriteCache { on: false, attribute: 3 };
    let mut programs: Vec<Vec<Action>> = vec![
        join(&[&[simple(0, 1)], &wait, &[simple(4, 1)], &wait, &[simple(7, 0)], &wait]),
        join(&[&[simple(0x10, 1)], &wait, &done, &[simple(0x14, 1)], &wait, &done]),
        join(&[&[simple(0, 1), command(0, 2), simple(0, 3)], &wait, &done, &done]),
        join(&[&[simple(0, 1), off], &wait, &done]),
        join(&[&[simple(9, 0x21), simple(10, 4), simple(11, 5), poll, ended], &done, &done, &done]),
        join(&[
            &[simple(0, 1), simple(4, 2), poll, Action::Abort { which: 0 }],
            &wait,
            &[Action::AbortSet, poll],
        ]),
        join(&[
            &[simple(0, 1), poll, simple(4, 2), Action::Reset { cause: 2 }],
            &wait,
            &[simple(4, 1), poll],
        ]),
        join(&[&[simple(13, 0)], &wait, &[simple(0, 0), poll, simple(14, 0), poll]]),
    ];
    let inquiry = |page: u8| raw(&[0x12, 1, page, 0, 0xff, 0], &[]);
    programs
        .push([0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2].iter().flat_map(|page| [inquiry(*page), poll]).collect());
    programs.push(vec![
        raw(&[0xa3, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0xff, 0, 0], &[]),
        poll,
        raw(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], &[]),
        poll,
        raw(&[0x03, 0, 0, 0, 18, 0], &[]),
        poll,
    ]);
    let setups = [
        Setup { kind: Kind::WRITE_BACK, unit: 0x80 },
        Setup { kind: Kind::AT_ONCE, unit: 0x80 },
        Setup { kind: Kind { cache: 1, flags: 1 }, unit: 1 },
        Setup { kind: Kind { cache: 0, flags: 0 }, unit: 0 },
    ];
    let programs = programs.iter().map(|program| [&ready, program.as_slice()].concat());
    let programs: Vec<Vec<Action>> = programs.collect();
    setups.iter().flat_map(|setup| programs.iter().map(move |program| seed(setup, program))).collect()
}
