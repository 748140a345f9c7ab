//! Each named defect, switched on, front by front: the explorer has to catch every one that the front can have.
//!
//! `cargo test --release -p host-std --features mutants --test mutants -- --nocapture` prints the table of the README.

#![cfg(feature = "mutants")]

use std::ops::ControlFlow;

use blk_core::mutant::{self, Mutant};
use blk_core::sim::{Cell, Counterexample};
use blk_core::storage::CacheMode;
use host_std::proof::{Era, Front, guests};

/// Why a front cannot have a defect, if it cannot.
fn not_applicable(front: Front, mutant: Mutant) -> Option<&'static str> {
    use Mutant::{
        AbortWithoutDrain, BarrierAdmitsYounger, BarrierIgnoresOlder, CacheSwitchInFlight, FlushOwnQueueOnly,
        RangeAckedEarly, ResetOneQueueOnly,
    };
    match (front, mutant) {
        (Front::VirtioScsi, AbortWithoutDrain) => None,
        (_, AbortWithoutDrain) => Some("no abort but a reset"),
        (Front::VirtioBlk, _) => None,
        (_, FlushOwnQueueOnly | ResetOneQueueOnly) => Some("one queue"),
        (Front::Scsi | Front::VirtioScsi, _) => None,
        (Front::AhciNcq, BarrierAdmitsYounger | BarrierIgnoresOlder | CacheSwitchInFlight) => {
            Some("no ordered commands, and only reads and writes are queued")
        }
        (_, BarrierAdmitsYounger | BarrierIgnoresOlder | CacheSwitchInFlight) => {
            Some("one command at a time")
        }
        (Front::IdePio, RangeAckedEarly) => Some("TRIM is a DMA command"),
        _ => None,
    }
}

struct Caught {
    mode: CacheMode,
    guest: &'static str,
    counterexample: Counterexample,
}

/// The first guest and mode in which the shortest programs show the defect.
fn catch(front: Front) -> Option<Caught> {
    for length in 1..=3 {
        for mode in CacheMode::ALL.into_iter().filter(|mode| *mode != CacheMode::Unsafe) {
            for guest in guests(front, Era::Today) {
                let report = guest.explore(Cell::new(mode, length), &mut |_| ControlFlow::Continue(()));
                if let Some(counterexample) = report.counterexample() {
                    return Some(Caught { mode, guest: guest.name, counterexample: counterexample.clone() });
                }
            }
        }
    }
    None
}

/// One thread for each front: a mutant is switched on for its thread.
fn column(front: Front) -> Vec<(Mutant, String)> {
    let mut column = Vec::new();
    for &mutant in Mutant::ALL {
        let field = if let Some(why) = not_applicable(front, mutant) {
            format!("({why})")
        } else {
            mutant::set(Some(mutant));
            let caught = catch(front);
            mutant::set(None);
            caught.map_or("MISSED".into(), |caught| {
                let Caught { mode, guest, counterexample } = caught;
                let steps = counterexample.program.len();
                println!(
                    "\n{} ({}, {}): {}\n{counterexample}",
                    front.name(),
                    guest,
                    mode.name(),
                    mutant.describe()
                );
                format!("{}, {steps} step{}", mode.name(), if steps == 1 { "" } else { "s" })
            })
        };
        column.push((mutant, field));
    }
    column
}

#[test]
fn every_mutant_is_caught_on_every_front_where_it_applies() {
    let columns = std::thread::scope(|scope| {
        let columns = Front::ALL.map(|front| scope.spawn(move || column(front)));
        columns.map(|column| column.join().expect("no exploration panics"))
    });
    println!("\n| defect | {} |", Front::ALL.map(Front::name).join(" | "));
    println!("|---|{}", "---|".repeat(Front::ALL.len()));
    for (row, mutant) in Mutant::ALL.iter().enumerate() {
        let fields = columns.each_ref().map(|column| column[row].1.as_str());
        println!("| {} | {} |", mutant.describe(), fields.join(" | "));
    }
    let missed: Vec<_> = columns.iter().flatten().filter(|(_, field)| field == "MISSED").collect();
    assert!(missed.is_empty(), "{missed:?}");
}

/// The switch itself: what is caught above is the mutant, not the model.
#[test]
fn without_a_mutant_nothing_is_found() {
    for front in Front::ALL {
        assert!(catch_up_to_two(front).is_none(), "{}", front.name());
    }
}

fn catch_up_to_two(front: Front) -> Option<Counterexample> {
    let modes = CacheMode::ALL.into_iter().filter(|mode| *mode != CacheMode::Unsafe);
    modes.flat_map(|mode| guests(front, Era::Today).into_iter().map(move |guest| (mode, guest))).find_map(
        |(mode, guest)| {
            let report = guest.explore(Cell::new(mode, 2), &mut |_| ControlFlow::Continue(()));
            report.counterexample().cloned()
        },
    )
}
