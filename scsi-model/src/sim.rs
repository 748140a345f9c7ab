//! Guests for the crash explorer: small drivers that reach the disk through command blocks and parameter lists, or through
//! [`virtio_scsi`], and nothing else. They also run over real memory and real files.

// A panic in a test driver is a failed test, and no guest reaches it.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::expect_used, clippy::panic)]

pub mod virtio_scsi;

use core::ops::Range;

use blk_core::memory::GuestMemory;
use blk_core::op::Segment;
use blk_core::sim::{self, Action, Ended, Guest, Outcome, SectorRun, World, alphabet, layout, written_by};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use heapless::Vec;
use serde::Serialize;

use crate::command::Cdb;
use crate::config::Config;
use crate::disk::{self, LogicalUnit, Polled, ResetCause};
use crate::task_set::{Attribute, Nexus, Task};
use crate::transport::{DataError, Direction, SegmentList, Transport};

/// Tasks that the unit has room for: one more than the driver ever has outstanding.
const TASKS: usize = DEPTH + 1;
/// Steps outstanding at once.
const DEPTH: usize = 3;
/// Bytes of a sector, and of a logical block.
const SECTOR: u64 = 512;

/// Where parameter lists are in memory: one for each step outstanding, and one for the driver's own commands.
const LIST_BYTES: u64 = 0x20;
const OWN_LIST: u64 = DEPTH as u64;

/// Mode parameter header(6) and caching page.
const HEADER: usize = 4;
const CACHING: usize = 20;
const WCE: u8 = 0x04;

/// What kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Variant {
    /// Reads the caching page when it starts and after every change, as Linux's sd driver does. The cache is on by
    /// default where there is one.
    Sd,
    /// A firmware that turns the cache on, and then an operating system that resets the disk, never reads the caching
    /// page, and relies on the default, which on this disk is off.
    FirmwareThenOld,
}

const ALPHABET: [Action; 12] = alphabet(&[
    &Action::WRITES,
    &[Action::WriteFua(SectorRun::ZERO), Action::WriteOrdered(SectorRun::ONE)],
    &[Action::WriteZeroes(SectorRun::BOTH), Action::Discard(SectorRun::ZERO), Action::Read(SectorRun::BOTH)],
    &[Action::Flush, Action::Reset, Action::CacheOff, Action::CacheOn],
]);

/// A driver and its disk.
#[derive(Clone, Debug, Serialize)]
pub struct Driver {
    unit: LogicalUnit<TASKS>,
    variant: Variant,
    /// Steps that have not ended.
    outstanding: [Option<(u8, Action)>; DEPTH],
    /// The step whose reset is under way.
    resetting: Option<u8>,
    /// A step for which there was no room.
    refused: Option<u8>,
    /// The cache as the driver last read it.
    write_cache: bool,
}

/// Where a task's data is, told by its tag: the step's page, or a parameter list in RAM.
///
/// ```text
/// bits 7:0 step, 15:8 number of the parameter list, 16 the data is that list
/// ```
#[derive(Clone, Copy)]
struct Lanes;

const IN_LIST: u64 = 1 << 16;
const OWN_TAG: u64 = IN_LIST | OWN_LIST << 8 | 0xff;

impl Transport for Lanes {
    fn segments(
        &mut self,
        tag: u64,
        direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let id = (tag & 0xff) as u8;
        let base = match direction {
            _ if tag & IN_LIST != 0 => GuestAddr((tag >> 8 & 0xff) * LIST_BYTES),
            Direction::In => layout::sink(id),
            Direction::Out => layout::source(written_by(id)),
        };
        let len = u32::try_from(range.end - range.start).map_err(|_| DataError)?;
        let addr = base.checked_add(range.start).ok_or(DataError)?;
        list.push(Segment::Guest { addr, len }).map_err(|_| DataError)
    }
}

/// A command and the data that goes with it.
struct Order {
    cdb: Cdb,
    attribute: Attribute,
    out_bytes: u64,
    in_bytes: u64,
    /// The parameter list, where the data is not the step's page.
    list: Option<[u8; HEADER + CACHING]>,
}

impl Order {
    fn new(cdb: &[u8]) -> Self {
        Self { cdb: Cdb::new(cdb), attribute: Attribute::Simple, out_bytes: 0, in_bytes: 0, list: None }
    }

    fn block10(opcode: u8, flags: u8, run: SectorRun) -> Self {
        Self::new(&[opcode, flags, 0, 0, 0, run.first, 0, 0, run.count, 0])
    }

    fn with_list(self, list: [u8; HEADER + CACHING]) -> Self {
        Self { list: Some(list), out_bytes: list.len() as u64, ..self }
    }

    fn of(action: Action) -> Self {
        match action {
            Action::Write(run) => Self { out_bytes: bytes(run), ..Self::block10(0x2a, 0, run) },
            Action::WriteFua(run) => Self { out_bytes: bytes(run), ..Self::block10(0x2a, 0x08, run) },
            Action::WriteOrdered(run) => {
                Self { attribute: Attribute::Ordered, ..Self::of(Action::Write(run)) }
            }
            Action::Read(run) => Self { in_bytes: bytes(run), ..Self::block10(0x28, 0, run) },
            // WRITE SAME(16) with NDOB: no data, zeroes.
            Action::WriteZeroes(run) => {
                Self::new(&[0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, run.first, 0, 0, 0, run.count, 0, 0])
            }
            Action::Discard(run) => {
                let mut list = [0; HEADER + CACHING];
                (list[1], list[3]) = (22, 16);
                (list[15], list[19]) = (run.first, run.count);
                Self::new(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]).with_list(list)
            }
            Action::Flush => Self::new(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Action::CacheOff => Self::mode_select(0),
            Action::CacheOn => Self::mode_select(WCE),
            Action::Reset => panic!("a reset is no command"),
        }
    }

    fn mode_select(flags: u8) -> Self {
        let mut list = [0; HEADER + CACHING];
        (list[HEADER], list[HEADER + 1], list[HEADER + 2]) = (0x08, 0x12, flags);
        Self::new(&[0x15, 0x10, 0, 0, list.len() as u8, 0]).with_list(list)
    }

    fn task(&self, tag: u64) -> Task {
        Task {
            tag,
            nexus: Nexus::default(),
            attribute: self.attribute,
            cdb: self.cdb,
            data_out_bytes: self.out_bytes,
            data_in_bytes: self.in_bytes,
        }
    }
}

impl Driver {
    /// Brings a disk up for a guest of this kind. `storage` has one handle.
    ///
    /// # Panics
    /// If the disk does not come up.
    pub fn boot<M: GuestMemory, H: Storage<M>>(variant: Variant, memory: &M, storage: &mut [H]) -> Self {
        let storage = storage.first_mut().expect("a disk has a storage");
        let write_cache = variant == Variant::Sd;
        let config = Config { write_cache, ..Config::new("BLK", "crash test disk", "1", "0") };
        let unit = LogicalUnit::new(config, storage.info()).expect("a geometry that SCSI has");
        let mut driver = Self {
            unit,
            variant,
            outstanding: [None; DEPTH],
            resetting: None,
            refused: None,
            write_cache: false,
        };
        let world = &mut World { memory, storage };
        if variant == Variant::FirmwareThenOld {
            driver.clear_attention(world);
            // Refused where the host has no volatile cache.
            driver.execute(&Order::mode_select(WCE), world, &mut Vec::new());
            driver.unit.reset(ResetCause::Hard);
        }
        driver.bring_up(world);
        driver
    }

    /// The disk.
    #[must_use]
    pub const fn unit(&self) -> &LogicalUnit<TASKS> {
        &self.unit
    }

    fn bring_up<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, H>) {
        self.clear_attention(world);
        if self.variant == Variant::Sd {
            self.write_cache = self.read_cache(world, &mut Vec::new());
        }
    }

    /// TEST UNIT READY until the unit attention is gone.
    fn clear_attention<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, H>) {
        let ready = Order::new(&[0; 6]);
        let is_ready = (0..3).any(|_| self.execute(&ready, world, &mut Vec::new()));
        assert!(is_ready, "one unit attention at a time");
    }

    /// Reads WCE from the caching page.
    fn read_cache<M: GuestMemory, H: Storage<M>>(
        &mut self,
        world: &mut World<'_, M, H>,
        ended: &mut Vec<Ended, 16>,
    ) -> bool {
        let len = HEADER + CACHING;
        let sense = Order {
            in_bytes: len as u64,
            attribute: Attribute::HeadOfQueue,
            ..Order::new(&[0x1a, 0x08, 0x08, 0, len as u8, 0])
        };
        assert!(self.execute(&sense, world, ended), "the caching page is always there");
        let page: [u8; HEADER + CACHING] = sim::get(world.memory, OWN_LIST * LIST_BYTES);
        sim::put(world.memory, OWN_LIST * LIST_BYTES, &[0; HEADER + CACHING]);
        assert_eq!((page[3], page[HEADER], page[HEADER + 1]), (0, 0x08, 0x12), "no descriptor, the page");
        page[HEADER + 2] & WCE != 0
    }

    /// Executes a command of the driver's own, which needs no storage, and returns whether it ended with GOOD. What else
    /// ends meanwhile goes to `ended`.
    fn execute<M: GuestMemory, H: Storage<M>>(
        &mut self,
        order: &Order,
        world: &mut World<'_, M, H>,
        ended: &mut Vec<Ended, 16>,
    ) -> bool {
        self.put_list(OWN_LIST, order, world);
        self.unit.enqueue(order.task(OWN_TAG)).expect("one more than the depth");
        loop {
            match self.unit.poll(world.memory, world.storage, &mut Lanes) {
                Polled::Ended(one) if one.tag == OWN_TAG => return one.outcome == disk::Outcome::Good,
                Polled::Ended(one) => self.finish(&one, world, ended),
                Polled::Again => {}
                Polled::Idle => panic!("a command without storage does not wait"),
            }
        }
    }

    fn put_list<M: GuestMemory, H>(&self, number: u64, order: &Order, world: &mut World<'_, M, H>) {
        if let Some(list) = order.list {
            sim::put(world.memory, number * LIST_BYTES, &list);
        }
    }

    /// A task has ended.
    fn finish<M: GuestMemory, H: Storage<M>>(
        &mut self,
        one: &disk::Ended,
        world: &mut World<'_, M, H>,
        ended: &mut Vec<Ended, 16>,
    ) {
        let id = (one.tag & 0xff) as u8;
        let slot = self.outstanding.iter().position(|o| o.is_some_and(|(step, _)| step == id));
        // Tasks that a reset took away are not waited for.
        let Some(slot) = slot else { return };
        let Some((_, action)) = self.outstanding[slot].take() else { return };
        self.wipe(slot, action, world.memory);
        let outcome = match &one.outcome {
            disk::Outcome::Good => {
                if let Action::Read(run) = action {
                    assert_eq!(one.transferred_bytes, bytes(run), "all of it was read");
                    Outcome::Ok { read: sim::read_back(world.memory, id, run) }
                } else {
                    Outcome::DONE
                }
            }
            disk::Outcome::CheckCondition(sense) => {
                assert!(matches!(sense.first(), Some(0x70 | 0x71 | 0xf0 | 0xf1)), "fixed format");
                Outcome::Failed
            }
            disk::Outcome::Aborted => Outcome::Aborted,
            disk::Outcome::Overrun => panic!("every command has room for its data"),
        };
        if matches!(action, Action::CacheOff | Action::CacheOn) && outcome != Outcome::Aborted {
            self.write_cache = self.read_cache(world, ended);
        }
        ended.push(Ended { id, outcome }).expect("no more than the depth");
    }

    /// Clears what a task leaves behind, so that histories with the same future are the same state.
    fn wipe<M: GuestMemory>(&self, slot: usize, action: Action, memory: &M) {
        if matches!(action, Action::Discard(_) | Action::CacheOff | Action::CacheOn) {
            sim::put(memory, slot as u64 * LIST_BYTES, &[0; HEADER + CACHING]);
        }
    }

    /// The reset is over: nothing that was outstanding comes back.
    fn restart<M: GuestMemory, H: Storage<M>>(&mut self, world: &mut World<'_, M, H>) {
        for slot in 0..DEPTH {
            if let Some((_, action)) = self.outstanding[slot].take() {
                self.wipe(slot, action, world.memory);
            }
        }
        self.bring_up(world);
    }
}

impl<M: GuestMemory, H: Storage<M>> Guest<M, [H]> for Driver {
    fn alphabet(&self) -> &'static [Action] {
        match self.variant {
            Variant::Sd => &ALPHABET,
            // All but the cache switch.
            Variant::FirmwareThenOld => ALPHABET.first_chunk::<10>().expect("longer than that"),
        }
    }

    fn depth(&self) -> usize {
        DEPTH
    }

    fn accepts(&self, _action: Action) -> bool {
        self.resetting.is_none()
    }

    fn issue(&mut self, id: u8, action: Action, memory: &M, storage: &mut [H]) {
        if action == Action::Reset {
            self.unit.reset(ResetCause::LogicalUnit);
            self.resetting = Some(id);
            return;
        }
        let world = &mut World { memory, storage: storage.first_mut().expect("a disk has a storage") };
        let slot = self.outstanding.iter().position(Option::is_none).expect("within the depth");
        let order = Order::of(action);
        self.put_list(slot as u64, &order, world);
        let in_list = if order.list.is_some() { IN_LIST } else { 0 };
        match self.unit.enqueue(order.task(u64::from(id) | (slot as u64) << 8 | in_list)) {
            Ok(()) => self.outstanding[slot] = Some((id, action)),
            // Only where a mutant runs tasks that a reset should have dropped.
            Err(_) => self.refused = Some(id),
        }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Vec<Ended, 16> {
        let world = &mut World { memory, storage: storage.first_mut().expect("a disk has a storage") };
        let mut ended = Vec::new();
        if let Some(id) = self.refused.take() {
            ended.push(Ended { id, outcome: Outcome::Failed }).expect("it is empty");
        }
        loop {
            match self.unit.poll(world.memory, world.storage, &mut Lanes) {
                // A reset tells the guest what it took away by its own end.
                Polled::Ended(one) if one.outcome == disk::Outcome::Aborted => {}
                Polled::Ended(one) => self.finish(&one, world, &mut ended),
                Polled::Again => {}
                Polled::Idle => break,
            }
        }
        if !self.unit.is_managing()
            && let Some(id) = self.resetting.take()
        {
            self.restart(world);
            ended.push(Ended { id, outcome: Outcome::DONE }).expect("no more than the depth and this");
        }
        ended
    }

    fn write_cache(&self) -> bool {
        self.write_cache
    }
}

const fn bytes(run: SectorRun) -> u64 {
    run.count as u64 * SECTOR
}
