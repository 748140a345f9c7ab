//! The crash explorer on the reference front: safe in every mode but `unsafe`, and every mutant caught.

#![cfg(feature = "sim")]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unreachable
)]

mod direct;

use std::ops::ControlFlow;

use blk_core::memory::GuestMemory;
use blk_core::sim::{
    Action, Cell, Contents, Ended, Guest, INITIAL, Outcome, Party, Report, SAFE_MODES, SectorRun, Verdict,
    Violation, explore, explore_all, sample,
};
use blk_core::storage::{CacheMode, Storage};
use direct::{Direct, Driver};

/// Longest programs of the exhaustive tests: an unoptimized build is ten times slower.
const LENGTH: u8 = if cfg!(debug_assertions) { 2 } else { 3 };

fn run<const Q: usize>(cell: &Cell, driver: Driver) -> Report {
    let mut cell = *cell;
    cell.disk.handles = Q;
    let report = explore_all(&|memory, storage| Direct::<Q>::boot(driver, memory, storage), &cell);
    println!("{:?} fua={} {:?} {:?}", cell.disk.mode, cell.disk.native_fua, report.explored, report.elapsed);
    report
}

#[test]
fn every_mode_but_unsafe_is_safe() {
    for mode in SAFE_MODES {
        for native_fua in [false, true] {
            let mut cell = Cell::new(mode, LENGTH);
            cell.disk.native_fua = native_fua;
            run::<1>(&cell, Driver::Whole).assert_safe();
        }
    }
}

#[test]
fn two_queues_are_safe() {
    for mode in SAFE_MODES {
        run::<2>(&Cell::new(mode, LENGTH), Driver::Whole).assert_safe();
    }
}

#[test]
fn a_driver_that_knows_no_flush_is_safe_because_the_device_is_write_through() {
    for mode in SAFE_MODES {
        run::<1>(&Cell::new(mode, LENGTH), Driver::Old).assert_safe();
        run::<1>(&Cell::new(mode, LENGTH), Driver::FirmwareThenOld).assert_safe();
    }
}

#[test]
fn a_full_disk_queue_delays_and_breaks_nothing() {
    for depth in [1, 2] {
        let mut cell = Cell::new(CacheMode::WriteBack, LENGTH);
        cell.disk.depth = depth;
        run::<1>(&cell, Driver::Whole).assert_safe();
    }
}

#[test]
fn a_reset_that_fences_instead_of_waiting_is_safe() {
    let mut cell = Cell::new(CacheMode::WriteBack, LENGTH);
    cell.disk.cancels = true;
    run::<2>(&cell, Driver::Whole).assert_safe();
}

#[test]
fn unsafe_loses_a_flushed_write() {
    let report = run::<1>(&Cell::new(CacheMode::Unsafe, LENGTH), Driver::Whole);
    let counterexample = report.counterexample().expect("nothing is stable");
    println!("{counterexample}");
    // Nothing shorter loses anything: one FUA write is enough.
    assert_eq!(counterexample.program.len(), 1);
    assert_eq!(counterexample.history.sentences().len(), 4, "issued, completed, seen, lost");
    assert!(matches!(counterexample.violation, Violation::Lost { .. }));
    let history = &counterexample.history;
    assert_eq!(history.violation(), Some(counterexample.violation));
    let parties: Vec<_> = history.events.iter().map(|event| (event.from, event.to)).collect();
    use Party::{Device, Guest, Host, Medium};
    let expected = [(Guest, Device), (Device, Host), (Host, Device), (Device, Guest), (Medium, Medium)];
    assert_eq!(parties, expected);
    let last = history.events.last().expect("events");
    let written = Contents::Step(0);
    assert!(last.reachable.contains(&vec![written, Contents::Old]), "{last:?}");
    assert!(last.allowed.contains(&vec![written]), "{last:?}");
}

/// IDE in 2009: the guest trusts a cleared "write cache enabled" and never flushes.
#[test]
fn a_guest_that_is_told_of_no_cache_where_there_is_one_loses_data() {
    for (mode, safe) in
        [(CacheMode::WriteThrough, true), (CacheMode::WriteBack, false), (CacheMode::None, false)]
    {
        let report = run::<1>(&Cell::new(mode, LENGTH), Driver::Misled);
        assert_eq!(report.is_safe(), safe, "{mode:?}");
    }
}

/// virtio-blk in 2009: no flush, no barrier, and nobody drains, so that even writethrough is not enough (I8).
#[test]
fn a_program_that_needs_barriers_breaks_on_a_front_without_them() {
    let mut cell = Cell::new(CacheMode::WriteThrough, LENGTH);
    cell.needs_barriers = true;
    run::<1>(&cell, Driver::Whole).assert_safe();
    let report = run::<1>(&cell, Driver::WithoutBarriers);
    let counterexample = report.counterexample().expect("nobody drains");
    println!("{counterexample}");
    assert_eq!(
        counterexample.program,
        [Action::Write(SectorRun::ZERO), Action::WriteOrdered(SectorRun::ONE)],
        "two writes in flight at once"
    );
    assert!(matches!(counterexample.violation, Violation::Reordered { promised: false, .. }));
}

#[test]
fn random_walks_through_long_programs_find_nothing_in_safe_modes_and_the_loss_in_unsafe() {
    let boot = &|memory: &_, storage: &mut [_]| Direct::<1>::boot(Driver::Whole, memory, storage);
    let mut watch = |_| ControlFlow::Continue(());
    for mode in SAFE_MODES {
        sample(boot, &Cell::new(mode, 40), 1, 300, &mut watch).assert_safe();
    }
    let cell = Cell::new(CacheMode::Unsafe, 40);
    let found = sample(boot, &cell, 1, 300, &mut watch);
    let seed = found.counterexample().and_then(|c| c.seed).expect("something is lost");
    let again = sample(boot, &cell, seed, 1, &mut watch);
    assert_eq!(again.counterexample(), found.counterexample(), "the seed that was printed finds it again");
}

/// Reads the initial data until it has written since it booted.
#[derive(Clone, serde::Serialize)]
struct Amnesiac {
    front: Direct<1>,
    has_written: bool,
    reads: u64,
}

impl<M: GuestMemory, H: Storage<M>> Guest<M, [H]> for Amnesiac {
    fn alphabet(&self) -> &'static [Action] {
        &[Action::Write(SectorRun::ZERO), Action::Read(SectorRun::ZERO)]
    }
    fn depth(&self) -> usize {
        Guest::<M, [H]>::depth(&self.front)
    }
    fn accepts(&self, action: Action) -> bool {
        Guest::<M, [H]>::accepts(&self.front, action)
    }
    fn issue(&mut self, id: u8, action: Action, memory: &M, storage: &mut [H]) {
        match action {
            Action::Read(_) => self.reads |= 1 << id,
            _ => self.has_written = true,
        }
        self.front.issue(id, action, memory, storage);
    }
    fn poll(&mut self, memory: &M, storage: &mut [H]) -> heapless::Vec<Ended, 16> {
        let mut ended = self.front.poll(memory, storage);
        for one in ended.iter_mut().filter(|one| self.reads & (1 << one.id) != 0 && !self.has_written) {
            one.outcome = Outcome::Ok { read: [Some(INITIAL); 2] };
        }
        ended
    }
    fn write_cache(&self) -> bool {
        Guest::<M, [H]>::write_cache(&self.front)
    }
}

#[test]
fn a_defect_that_shows_only_after_a_power_cut_is_found() {
    let boot = &|memory: &_, storage: &mut [_]| Amnesiac {
        front: Direct::boot(Driver::Whole, memory, storage),
        has_written: false,
        reads: 0,
    };
    let mut watch = |_| ControlFlow::Continue(());
    let mut cell = Cell::new(CacheMode::WriteBack, 3);
    cell.power_cuts = 0;
    explore(boot, &cell, &mut watch).assert_safe();
    cell.power_cuts = 1;
    let report = explore(boot, &cell, &mut watch);
    let counterexample = report.counterexample().expect("I7: all of it again, starting from a crash state");
    println!("{counterexample}");
    assert!(matches!(counterexample.violation, Violation::AlienRead { step: 1, value: INITIAL, .. }));
    assert_eq!(
        counterexample.history.sentences()[..2],
        ["guest: A = write to sector 0", "power cut and boot: sector 0 holds A, sector 1 the old data"]
    );
}

#[test]
fn an_exploration_stops_when_it_is_told_to() {
    let boot = &|memory: &_, storage: &mut [_]| Direct::<1>::boot(Driver::Whole, memory, storage);
    let mut calls = 0;
    let report = explore(boot, &Cell::new(CacheMode::WriteBack, 3), &mut |progress| {
        calls += 1;
        assert!(progress.transitions > 0 && progress.states > 0);
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((report.verdict, calls), (Verdict::Stopped, 2));
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use blk_core::mutant::{Mutant, set};

    fn explore_cell(mutant: Mutant) -> Report {
        // The step that shows `ResetOneQueueOnly` is the third; the other mutants need two.
        let length = if mutant == Mutant::ResetOneQueueOnly { 3 } else { 2 };
        let cell = Cell::showing(mutant, length);
        let driver = match mutant {
            Mutant::CacheSettingLeaks => Driver::FirmwareThenOld,
            _ => Driver::Whole,
        };
        if cell.disk.handles == 1 { run::<1>(&cell, driver) } else { run::<2>(&cell, driver) }
    }

    #[test]
    fn every_mutant_is_caught() {
        let mut missed = Vec::new();
        // Nothing here is aborted but by a reset.
        for &mutant in Mutant::ALL.iter().filter(|mutant| **mutant != Mutant::AbortWithoutDrain) {
            set(Some(mutant));
            let report = explore_cell(mutant);
            set(None);
            println!("{mutant:?}: {}", mutant.describe());
            match report.counterexample() {
                Some(counterexample) => println!("{counterexample}"),
                None => missed.push(mutant),
            }
        }
        assert_eq!(missed, [], "not caught");
    }

    #[test]
    fn a_mutant_that_is_switched_off_does_nothing() {
        for mutant in [Mutant::DsyncDropped, Mutant::HalfWrite] {
            set(Some(mutant));
            assert!(!explore_cell(mutant).is_safe());
            set(None);
            explore_cell(mutant).assert_safe();
        }
    }
}
