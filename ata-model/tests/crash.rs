//! The crash explorer on the IDE front: safe in every mode but `unsafe`, and every mutant that applies is caught.

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

use std::ops::ControlFlow;

use ata_model::sim::{DriverConfig, IdeGuest, ResetBy, Transport};
use blk_core::sim::{Cell, Report, Verdict, explore, sample};
use blk_core::storage::CacheMode;

const SAFE_MODES: [CacheMode; 4] =
    [CacheMode::WriteThrough, CacheMode::WriteBack, CacheMode::None, CacheMode::DirectSync];
const TRANSPORTS: [Transport; 2] = [Transport::Pio, Transport::Dma];

fn run(cell: &Cell, driver: DriverConfig) -> Report {
    let report = explore(&|memory, storage| IdeGuest::boot(driver, memory, storage), cell, &mut |_| {
        ControlFlow::Continue(())
    });
    println!(
        "{driver:?} {:?} fua={} {:?} {:?}",
        cell.disk.mode, cell.disk.native_fua, report.explored, report.elapsed
    );
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
    for transport in TRANSPORTS {
        for mode in SAFE_MODES {
            for native_fua in [false, true] {
                // The program explores further, and every mode alike.
                let long = !native_fua && matches!(mode, CacheMode::WriteThrough | CacheMode::WriteBack);
                let mut cell = Cell::new(mode, if long { 3 } else { 2 });
                cell.disk.native_fua = native_fua;
                assert_safe(&run(&cell, DriverConfig::new(transport)));
            }
        }
    }
}

#[test]
fn unsafe_loses_what_a_flush_acknowledged() {
    for transport in TRANSPORTS {
        let report = run(&Cell::new(CacheMode::Unsafe, 2), DriverConfig::new(transport));
        assert!(report.counterexample().is_some());
    }
}

#[test]
fn a_guest_of_2009_loses_data_behind_a_volatile_cache_and_only_there() {
    for transport in TRANSPORTS {
        for mode in SAFE_MODES {
            let report = run(&Cell::new(mode, 3), DriverConfig::of_2009(transport));
            let volatile = matches!(mode, CacheMode::WriteBack | CacheMode::None);
            let found = report.counterexample();
            assert_eq!(
                found.is_some(),
                volatile,
                "{transport:?} {mode:?} {}",
                found.map_or(String::new(), |c| c.to_string())
            );
        }
    }
}

#[test]
fn a_bus_master_that_is_stopped_in_mid_command_leaves_nothing_behind() {
    for reset in [ResetBy::BusMasterStop, ResetBy::BusMasterOff] {
        let driver = DriverConfig { reset, ..DriverConfig::new(Transport::Dma) };
        for mode in [CacheMode::WriteThrough, CacheMode::WriteBack] {
            assert_safe(&run(&Cell::new(mode, 3), driver));
        }
    }
}

#[test]
fn a_cache_setting_does_not_outlive_a_reset_of_the_machine() {
    for transport in TRANSPORTS {
        assert_safe(&run(&Cell::new(CacheMode::WriteBack, 3), DriverConfig::firmware_then_old(transport)));
    }
}

#[test]
fn long_programs_walked_at_random_are_safe() {
    for transport in TRANSPORTS {
        let driver = DriverConfig::new(transport);
        let cell = Cell { power_cuts: 2, ..Cell::new(CacheMode::WriteBack, 8) };
        let report =
            sample(&|memory, storage| IdeGuest::boot(driver, memory, storage), &cell, 1, 300, &mut |_| {
                ControlFlow::Continue(())
            });
        assert_safe(&report);
    }
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use blk_core::mutant::{Mutant, set};

    /// The mutants whose rule this front can break, with a mode in which it shows.
    const CAUGHT: &[(Mutant, CacheMode)] = &[
        (Mutant::FlushWithoutHostFlush, CacheMode::WriteBack),
        (Mutant::WriteAckedAtSubmission, CacheMode::WriteBack),
        (Mutant::FuaIgnored, CacheMode::WriteBack),
        (Mutant::CacheOffIgnored, CacheMode::WriteBack),
        (Mutant::FuaFlushBesideWrite, CacheMode::WriteBack),
        (Mutant::FlushErrorSwallowed, CacheMode::WriteBack),
        (Mutant::FlushErrorForgotten, CacheMode::WriteBack),
        (Mutant::ResetWithoutDrain, CacheMode::WriteBack),
        (Mutant::FlushSkippedByGeneration, CacheMode::WriteBack),
        (Mutant::CacheOffWithoutFlush, CacheMode::WriteBack),
        (Mutant::DirectTakenAsDurable, CacheMode::None),
        (Mutant::DsyncDropped, CacheMode::WriteThrough),
        (Mutant::HalfWrite, CacheMode::WriteBack),
        (Mutant::ResetReexecutes, CacheMode::WriteBack),
    ];

    fn assert_caught(mutant: Mutant, mode: CacheMode, driver: DriverConfig) {
        set(Some(mutant));
        let caught = (1..=3).any(|length| {
            let report = run(&Cell::new(mode, length), driver);
            if let Some(counterexample) = report.counterexample() {
                println!("{mutant:?}, {driver:?}:\n{counterexample}");
            }
            report.counterexample().is_some()
        });
        set(None);
        assert!(caught, "{mutant:?} is not caught by {driver:?}");
    }

    #[test]
    fn every_mutant_that_applies_is_caught() {
        for &(mutant, mode) in CAUGHT {
            for transport in TRANSPORTS {
                assert_caught(mutant, mode, DriverConfig::new(transport));
            }
        }
        for transport in TRANSPORTS {
            let driver = DriverConfig::firmware_then_old(transport);
            assert_caught(Mutant::CacheSettingLeaks, CacheMode::WriteBack, driver);
        }
        for reset in [ResetBy::BusMasterStop, ResetBy::BusMasterOff, ResetBy::Machine] {
            let driver = DriverConfig { reset, ..DriverConfig::new(Transport::Dma) };
            assert_caught(Mutant::ResetWithoutDrain, CacheMode::WriteBack, driver);
        }
        // Only DMA has a TRIM.
        assert_caught(Mutant::RangeAckedEarly, CacheMode::WriteBack, DriverConfig::new(Transport::Dma));
    }
}
