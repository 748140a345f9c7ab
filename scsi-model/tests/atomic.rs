//! COMPARE AND WRITE and ORWRITE against another unit over the same disk: every order in which the host and the two units can act.

#![cfg(feature = "sim")]
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::panic)]

use std::collections::HashSet;
use std::ops::Range;

use blk_core::bus::Quiet as _;
use blk_core::op::{Op, Segment};
use blk_core::sim::{AtOnce, DiskConfig, Fate, INITIAL, SAFE_MODES, SimDisk, SimHandle, SimMemory, layout};
use blk_core::storage::{Busy, CacheMode, Completion, Info, Storage, Submission};
use blk_core::units::{GuestAddr, Tag};
use scsi_model::{
    Attribute, Cdb, Config, DataError, Direction, LogicalUnit, Nexus, Outcome, Polled, ResetCause,
    SegmentList, Task, Transport,
};

const UNITS: usize = 2;

/// What a unit is to do: a command, and the value that each block of its data-out buffer is full of.
#[derive(Clone, Copy, Debug)]
struct Job {
    cdb: [u8; 16],
    blocks: [u8; 2],
}

impl Job {
    /// Sector 0 from `old` to `new`.
    const fn compare_and_write(old: u8, new: u8) -> Self {
        Self { cdb: [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], blocks: [old, new] }
    }

    const fn or_write(bits: u8) -> Self {
        Self { cdb: [0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], blocks: [bits, bits] }
    }

    const fn write(value: u8) -> Self {
        Self { cdb: [0x8a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], blocks: [value, value] }
    }
}

impl Transport for Job {
    fn segments(
        &mut self,
        _tag: u64,
        _direction: Direction,
        range: Range<u64>,
        list: &mut SegmentList,
    ) -> Result<(), DataError> {
        let (block, within) = (range.start / 512, range.start % 512);
        let addr = GuestAddr(layout::source(self.blocks[block as usize]).0 + within);
        let len = (512 - within).min(range.end - range.start) as u32;
        list.push(Segment::Guest { addr, len }).map_err(|_| DataError)
    }
}

/// A handle as the test has it: the disk's own, or one that grants a hold and does not hold.
struct Handle<'a> {
    inner: &'a mut SimHandle,
    holds: bool,
}

impl Storage<SimMemory> for Handle<'_> {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn submit(
        &mut self,
        memory: &SimMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        match op {
            Op::Hold { .. } if !self.holds => Ok(Submission::Done(Ok(()))),
            _ => self.inner.submit(memory, tag, op, segments),
        }
    }

    fn poll(&mut self, memory: &SimMemory) -> Option<Completion> {
        self.inner.poll(memory)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.inner.staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.inner.release_hold(slot);
    }
}

/// What is done to the first unit while its command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disturbance {
    None,
    Reset,
    Abort,
}

#[derive(Clone, Debug)]
struct World {
    units: [LogicalUnit<2>; UNITS],
    disk: SimDisk,
    outcomes: [Option<Outcome>; UNITS],
    disturbance: Disturbance,
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A unit is polled, and what it submits then is done at once as far as the mask says.
    Poll(usize, u8),
    Complete(usize, usize),
    Disturb,
}

/// All worlds that can come of two commands.
struct Search {
    jobs: [Job; UNITS],
    holds: bool,
    memory: SimMemory,
    seen: HashSet<String>,
    /// How both ended, and what sector 0 holds.
    ends: HashSet<([&'static str; UNITS], u8)>,
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Good => "good",
        Outcome::CheckCondition(sense) if sense[2] & 0xf == 0xe => "miscompare",
        Outcome::Aborted => "aborted",
        other => panic!("{other:?}"),
    }
}

impl Search {
    /// Every end of `jobs`, one for each unit, on a disk whose sectors hold `old`.
    fn ends(jobs: [Job; UNITS], old: u8, mode: CacheMode, disturbance: Disturbance, holds: bool) -> Self {
        let mut disk = SimDisk::new(&DiskConfig { handles: UNITS, ..DiskConfig::new(mode) });
        disk.fill([old; 2]);
        let memory = SimMemory::new();
        let units = [0, 1].map(|unit| {
            let info = *disk.handles()[unit].info();
            let mut made = LogicalUnit::new(Config::new("BLK", "disk", "1", "0"), &info).unwrap();
            let task = |tag, cdb: &[u8], bytes| Task {
                tag,
                nexus: Nexus::default(),
                attribute: Attribute::Simple,
                cdb: Cdb::new(cdb),
                data_out_bytes: bytes,
                data_in_bytes: 0,
            };
            // The unit attention of power-on.
            made.enqueue(task(1, &[0; 6], 0)).unwrap();
            let heard = made.poll(&memory, &mut disk.handles()[unit], &mut jobs[unit].clone());
            assert!(matches!(heard, Polled::Ended(_)));
            made.enqueue(task(0, &jobs[unit].cdb, 1024)).unwrap();
            made
        });
        let world = World { units, disk, outcomes: [None, None], disturbance };
        let mut search = Self { jobs, holds, memory, seen: HashSet::new(), ends: HashSet::new() };
        search.explore(world);
        search
    }

    fn explore(&mut self, first: World) {
        let mut open = vec![first];
        while let Some(world) = open.pop() {
            if !self.seen.insert(format!("{world:?}")) {
                continue;
            }
            let before = open.len();
            for event in events(&world) {
                let mut next = world.clone();
                if self.happen(&mut next, event) && format!("{next:?}") != format!("{world:?}") {
                    open.push(next);
                }
            }
            if let [Some(a), Some(b)] = &world.outcomes
                && world.disk.is_idle()
                && world.units.iter().all(|unit| unit.is_quiet())
            {
                self.ends.insert(([name(a), name(b)], world.disk.live(0)));
            } else {
                assert!(open.len() > before, "nothing can go on: {world:#?}");
            }
        }
    }

    /// Whether the event could be.
    fn happen(&self, world: &mut World, event: Event) -> bool {
        match event {
            Event::Complete(handle, index) => {
                world.disk.complete(&self.memory, handle, index, Fate::Succeeds);
                true
            }
            Event::Disturb => {
                match std::mem::replace(&mut world.disturbance, Disturbance::None) {
                    Disturbance::Reset => world.units[0].reset(ResetCause::LogicalUnit),
                    _ => world.units[0].abort_task_set(Nexus::default()),
                }
                true
            }
            Event::Poll(unit, mask) => {
                world.disk.choose(AtOnce { mask, fails: false });
                let handle = &mut Handle { inner: &mut world.disk.handles()[unit], holds: self.holds };
                let mut job = self.jobs[unit];
                while let polled @ (Polled::Again | Polled::Ended(_)) =
                    world.units[unit].poll(&self.memory, handle, &mut job)
                {
                    if let Polled::Ended(ended) = polled {
                        assert!(world.outcomes[unit].replace(ended.outcome).is_none(), "it ends once");
                    }
                }
                let choices = world.disk.take_choices();
                // A bit for which nothing was submitted says nothing new.
                !choices.void && mask >> choices.asked.min(7) == 0
            }
        }
    }
}

fn events(world: &World) -> Vec<Event> {
    let mut events: Vec<_> =
        (0..UNITS).flat_map(|unit| (0..4).map(move |mask| Event::Poll(unit, mask))).collect();
    let in_flight = world.disk.in_flight().into_iter();
    let free = in_flight.filter(|&(handle, index, _)| world.disk.can_complete(handle, index));
    events.extend(free.map(|(handle, index, _)| Event::Complete(handle, index)));
    if world.disturbance != Disturbance::None && world.outcomes[0].is_none() {
        events.push(Event::Disturb);
    }
    events
}

fn sorted(search: &Search) -> Vec<([&'static str; UNITS], u8)> {
    let mut ends: Vec<_> = search.ends.iter().copied().collect();
    ends.sort_unstable();
    ends
}

const RACE: [Job; UNITS] = [Job::compare_and_write(INITIAL, 1), Job::compare_and_write(INITIAL, 2)];
const OVERWRITE: [Job; UNITS] = [Job::compare_and_write(INITIAL, 1), Job::write(2)];
const BITS: [Job; UNITS] = [Job::or_write(1), Job::or_write(2)];

#[test]
fn of_two_that_compare_with_the_same_one_writes() {
    for mode in SAFE_MODES.into_iter().chain([CacheMode::Unsafe]) {
        let search = Search::ends(RACE, INITIAL, mode, Disturbance::None, true);
        println!("{}: {} states", mode.name(), search.seen.len());
        assert_eq!(sorted(&search), [(["good", "miscompare"], 1), (["miscompare", "good"], 2)]);
    }
}

#[test]
fn no_write_of_another_unit_comes_between_compare_and_write() {
    let search = Search::ends(OVERWRITE, INITIAL, CacheMode::None, Disturbance::None, true);
    assert_eq!(sorted(&search), [(["good", "good"], 2), (["miscompare", "good"], 2)]);
}

#[test]
fn no_bit_is_lost() {
    let search = Search::ends(BITS, 0, CacheMode::None, Disturbance::None, true);
    assert_eq!(sorted(&search), [(["good", "good"], 3)]);
}

#[test]
fn a_reset_and_an_abort_let_the_other_unit_go_on() {
    for disturbance in [Disturbance::Reset, Disturbance::Abort] {
        let search = Search::ends(RACE, INITIAL, CacheMode::None, disturbance, true);
        let ends = sorted(&search);
        assert!(ends.contains(&(["aborted", "good"], 2)), "{disturbance:?}: {ends:?}");
        // Aborted, it may have written.
        assert!(
            ends.iter().all(|&(names, live)| match names {
                ["good" | "aborted", "miscompare"] => live == 1,
                ["miscompare" | "aborted", "good"] => live == 2,
                _ => false,
            }),
            "{disturbance:?}: {ends:?}"
        );
    }
}

/// The mutant: a storage that grants holds and does not hold.
#[test]
fn without_holds_both_write_and_bits_are_lost() {
    let both = (["good", "good"], 1);
    let ends = |jobs, old| sorted(&Search::ends(jobs, old, CacheMode::None, Disturbance::None, false));
    assert!(ends(RACE, INITIAL).contains(&both));
    assert!(ends(OVERWRITE, INITIAL).contains(&both), "a write is undone");
    assert!(ends(BITS, 0).contains(&both), "a bit is lost");
}
