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

use blk_core::sim::{Action, Cell, Report, SectorRun, Verdict, Violation, explore, sample};
use blk_core::storage::CacheMode;
use direct::{Direct, Driver};

const SAFE_MODES: [CacheMode; 4] =
    [CacheMode::WriteThrough, CacheMode::WriteBack, CacheMode::None, CacheMode::DirectSync];

fn run<const Q: usize>(cell: &Cell, driver: Driver) -> Report {
    let mut cell = *cell;
    cell.disk.handles = Q;
    let report = explore(&|memory, storage| Direct::<Q>::boot(driver, memory, storage), &cell, &mut |_| {
        ControlFlow::Continue(())
    });
    println!("{:?} fua={} {:?} {:?}", cell.disk.mode, cell.disk.native_fua, report.explored, report.elapsed);
    report
}

#[track_caller]
fn assert_safe(report: &Report) {
    if let Some(counterexample) = report.counterexample() {
        panic!("\n{counterexample}");
    }
    assert_eq!(report.verdict, Verdict::Safe);
}

#[test]
fn every_mode_but_unsafe_is_safe() {
    for mode in SAFE_MODES {
        for native_fua in [false, true] {
            let mut cell = Cell::new(mode, 3);
            cell.disk.native_fua = native_fua;
            assert_safe(&run::<1>(&cell, Driver::Whole));
        }
    }
}

#[test]
fn two_queues_are_safe() {
    for mode in SAFE_MODES {
        assert_safe(&run::<2>(&Cell::new(mode, 3), Driver::Whole));
    }
}

#[test]
fn a_driver_that_knows_no_flush_is_safe_because_the_device_is_write_through() {
    for mode in SAFE_MODES {
        assert_safe(&run::<1>(&Cell::new(mode, 3), Driver::Old));
        assert_safe(&run::<1>(&Cell::new(mode, 3), Driver::FirmwareThenOld));
    }
}

#[test]
fn a_full_disk_queue_delays_and_breaks_nothing() {
    for depth in [1, 2] {
        let mut cell = Cell::new(CacheMode::WriteBack, 3);
        cell.disk.depth = depth;
        assert_safe(&run::<1>(&cell, Driver::Whole));
    }
}

#[test]
fn a_reset_that_fences_instead_of_waiting_is_safe() {
    let mut cell = Cell::new(CacheMode::WriteBack, 3);
    cell.disk.fence = true;
    assert_safe(&run::<2>(&cell, Driver::Whole));
}

#[test]
fn unsafe_loses_a_flushed_write() {
    let report = run::<1>(&Cell::new(CacheMode::Unsafe, 3), Driver::Whole);
    let counterexample = report.counterexample().expect("nothing is stable");
    println!("{counterexample}");
    // Nothing shorter loses anything: one FUA write is enough.
    assert_eq!(counterexample.program.len(), 1);
    assert_eq!(counterexample.events.len(), 4, "issued, completed, seen, lost");
    assert!(matches!(counterexample.violation, Violation::Lost { .. }));
}

/// IDE in 2009: the guest trusts a cleared "write cache enabled" and never flushes.
#[test]
fn a_guest_that_is_told_of_no_cache_where_there_is_one_loses_data() {
    for (mode, safe) in
        [(CacheMode::WriteThrough, true), (CacheMode::WriteBack, false), (CacheMode::None, false)]
    {
        let report = run::<1>(&Cell::new(mode, 3), Driver::Misled);
        assert_eq!(report.is_safe(), safe, "{mode:?}");
    }
}

/// virtio-blk in 2009: no flush, no barrier, and nobody drains, so that even writethrough is not enough (I8).
#[test]
fn a_program_that_needs_barriers_breaks_on_a_front_without_them() {
    let mut cell = Cell::new(CacheMode::WriteThrough, 3);
    cell.needs_barriers = true;
    assert_safe(&run::<1>(&cell, Driver::Whole));
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
        assert_safe(&sample(boot, &Cell::new(mode, 40), 1, 300, &mut watch));
    }
    let cell = Cell::new(CacheMode::Unsafe, 40);
    let found = sample(boot, &cell, 1, 300, &mut watch);
    let seed = found.counterexample().and_then(|c| c.seed).expect("something is lost");
    let again = sample(boot, &cell, seed, 1, &mut watch);
    assert_eq!(again.counterexample(), found.counterexample(), "the seed that was printed finds it again");
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

    /// Where a mutant shows, at the latest.
    struct Seat {
        mutant: Mutant,
        mode: CacheMode,
        queues: usize,
        driver: Driver,
        length: u8,
    }

    fn seats() -> Vec<Seat> {
        Mutant::ALL
            .iter()
            .map(|&mutant| {
                let mode = match mutant {
                    Mutant::DirectTakenAsDurable => CacheMode::None,
                    Mutant::DsyncDropped => CacheMode::WriteThrough,
                    _ => CacheMode::WriteBack,
                };
                let queues = match mutant {
                    Mutant::FlushOwnQueueOnly | Mutant::ResetOneQueueOnly => 2,
                    _ => 1,
                };
                let driver = match mutant {
                    Mutant::CacheSettingLeaks => Driver::FirmwareThenOld,
                    _ => Driver::Whole,
                };
                Seat { mutant, mode, queues, driver, length: 3 }
            })
            .collect()
    }

    fn explore_seat(seat: &Seat) -> Report {
        let cell = Cell::new(seat.mode, seat.length);
        match seat.queues {
            1 => run::<1>(&cell, seat.driver),
            _ => run::<2>(&cell, seat.driver),
        }
    }

    #[test]
    fn every_mutant_is_caught() {
        let mut missed = Vec::new();
        for seat in seats() {
            set(Some(seat.mutant));
            let report = explore_seat(&seat);
            set(None);
            println!("{:?}: {}", seat.mutant, seat.mutant.describe());
            match report.counterexample() {
                Some(counterexample) => println!("{counterexample}"),
                None => missed.push(seat.mutant),
            }
        }
        assert_eq!(missed, [], "not caught");
    }

    #[test]
    fn without_its_mutant_every_cell_is_safe() {
        for seat in seats() {
            assert_safe(&explore_seat(&seat));
        }
    }
}
