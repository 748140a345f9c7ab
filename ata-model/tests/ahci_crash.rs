//! The crash explorer on the AHCI front: safe in every mode but `unsafe`, and every mutant that applies is caught.

#![cfg(feature = "sim")]
#![allow(missing_docs, unreachable_pub, clippy::panic)]

#[path = "rig/crash.rs"]
mod scenario;

use ata_model::sim::{AhciConfig, AhciReset};
use blk_core::sim::Cell;
use blk_core::storage::CacheMode;
use scenario::Driver;

/// Without queued commands and with them.
const DRIVERS: [AhciConfig; 2] = [AhciConfig::new(false), AhciConfig::new(true)];
/// All but COMRESET, which is the drivers' own.
const RESETS: [AhciReset; 5] =
    [AhciReset::Stop, AhciReset::BusMasterOff, AhciReset::Software, AhciReset::Host, AhciReset::Machine];

#[test]
fn every_mode_but_unsafe_is_safe() {
    for driver in DRIVERS {
        scenario::assert_safe_in_every_mode(driver, |_, _| 2);
    }
}

#[test]
fn three_steps_behind_a_volatile_cache_are_safe() {
    for driver in DRIVERS {
        driver.explore(&Cell::new(CacheMode::WriteBack, 3)).assert_safe();
    }
}

#[test]
fn unsafe_loses_what_a_flush_acknowledged() {
    DRIVERS.into_iter().for_each(scenario::assert_unsafe_loses);
}

#[test]
fn every_reset_waits_for_what_was_submitted() {
    for reset in RESETS {
        let driver = AhciConfig { reset, ..AhciConfig::new(true) };
        driver.explore(&Cell::new(CacheMode::WriteBack, 2)).assert_safe();
    }
}

#[test]
fn a_cache_setting_does_not_outlive_a_reset_of_the_machine() {
    AhciConfig::firmware_then_old(false).explore(&Cell::new(CacheMode::WriteBack, 3)).assert_safe();
}

#[test]
fn long_programs_walked_at_random_are_safe() {
    for reset in [AhciReset::Comreset, AhciReset::Software] {
        for driver in DRIVERS {
            scenario::assert_walks_are_safe(AhciConfig { reset, ..driver });
        }
    }
}

#[cfg(feature = "mutants")]
mod mutants {
    use blk_core::mutant::Mutant;

    use super::*;
    use scenario::mutants::{CAUGHT, assert_caught};

    /// FUA ignored is here NCQ's FUA ignored.
    #[test]
    fn every_mutant_that_applies_is_caught() {
        for driver in DRIVERS {
            CAUGHT.into_iter().for_each(|mutant| assert_caught(mutant, driver));
            assert_caught(Mutant::RangeAckedEarly, driver);
        }
        assert_caught(Mutant::CacheSettingLeaks, AhciConfig::firmware_then_old(false));
    }

    #[test]
    fn every_kind_of_reset_is_one_that_could_forget() {
        for reset in RESETS {
            assert_caught(Mutant::ResetWithoutDrain, AhciConfig { reset, ..AhciConfig::new(true) });
        }
    }
}
