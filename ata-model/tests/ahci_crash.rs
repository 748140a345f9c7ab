//! The crash explorer on the AHCI front: safe in every mode but `unsafe`, and every mutant that applies is caught.

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

use ata_model::sim::{AhciConfig, AhciGuest, AhciReset};
use blk_core::sim::{Cell, Report, Verdict, explore, sample};
use blk_core::storage::CacheMode;

const SAFE_MODES: [CacheMode; 4] =
    [CacheMode::WriteThrough, CacheMode::WriteBack, CacheMode::None, CacheMode::DirectSync];

fn run(cell: &Cell, driver: AhciConfig) -> Report {
    let report = explore(&|memory, storage| AhciGuest::boot(driver, memory, storage), cell, &mut |_| {
        ControlFlow::Continue(())
    });
    println!(
        "{driver:?} {:?} length={} fua={} {:?} {:?}",
        cell.disk.mode, cell.length, cell.disk.native_fua, report.explored, report.elapsed
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
    for queued in [false, true] {
        for mode in SAFE_MODES {
            for native_fua in [false, true] {
                let mut cell = Cell::new(mode, 2);
                cell.disk.native_fua = native_fua;
                assert_safe(&run(&cell, AhciConfig::new(queued)));
            }
        }
    }
}

#[test]
fn three_steps_behind_a_volatile_cache_are_safe() {
    for queued in [false, true] {
        assert_safe(&run(&Cell::new(CacheMode::WriteBack, 3), AhciConfig::new(queued)));
    }
}

#[test]
fn unsafe_loses_what_a_flush_acknowledged() {
    for queued in [false, true] {
        let report = run(&Cell::new(CacheMode::Unsafe, 2), AhciConfig::new(queued));
        assert!(report.counterexample().is_some());
    }
}

#[test]
fn every_reset_waits_for_what_was_submitted() {
    for reset in
        [AhciReset::Stop, AhciReset::BusMasterOff, AhciReset::Software, AhciReset::Host, AhciReset::Machine]
    {
        let driver = AhciConfig { reset, ..AhciConfig::new(true) };
        assert_safe(&run(&Cell::new(CacheMode::WriteBack, 2), driver));
    }
}

#[test]
fn a_cache_setting_does_not_outlive_a_reset_of_the_machine() {
    assert_safe(&run(&Cell::new(CacheMode::WriteBack, 3), AhciConfig::firmware_then_old(false)));
}

#[test]
fn long_programs_walked_at_random_are_safe() {
    for queued in [false, true] {
        for reset in [AhciReset::Comreset, AhciReset::Software] {
            let driver = AhciConfig { reset, ..AhciConfig::new(queued) };
            let cell = Cell { power_cuts: 2, ..Cell::new(CacheMode::WriteBack, 8) };
            let boot = |memory: &_, storage: &mut [_]| AhciGuest::boot(driver, memory, storage);
            assert_safe(&sample(&boot, &cell, 1, 300, &mut |_| ControlFlow::Continue(())));
        }
    }
}

#[cfg(feature = "mutants")]
mod mutants {
    use super::*;
    use blk_core::mutant::{Mutant, set};

    /// The mutants whose rule this front can break, with a mode in which it shows. FUA ignored is here NCQ's FUA ignored.
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
        (Mutant::RangeAckedEarly, CacheMode::WriteBack),
        (Mutant::DirectTakenAsDurable, CacheMode::None),
        (Mutant::DsyncDropped, CacheMode::WriteThrough),
        (Mutant::HalfWrite, CacheMode::WriteBack),
        (Mutant::ResetReexecutes, CacheMode::WriteBack),
    ];

    fn assert_caught(mutant: Mutant, mode: CacheMode, driver: AhciConfig) {
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
            for queued in [false, true] {
                assert_caught(mutant, mode, AhciConfig::new(queued));
            }
        }
        let driver = AhciConfig::firmware_then_old(false);
        assert_caught(Mutant::CacheSettingLeaks, CacheMode::WriteBack, driver);
    }

    #[test]
    fn every_kind_of_reset_is_one_that_could_forget() {
        for reset in [
            AhciReset::Stop,
            AhciReset::BusMasterOff,
            AhciReset::Software,
            AhciReset::Host,
            AhciReset::Machine,
        ] {
            let driver = AhciConfig { reset, ..AhciConfig::new(true) };
            assert_caught(Mutant::ResetWithoutDrain, CacheMode::WriteBack, driver);
        }
    }
}
