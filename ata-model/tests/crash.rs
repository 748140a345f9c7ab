//! The crash explorer on the IDE front: safe in every mode but `unsafe`, and every mutant that applies is caught.

#![cfg(feature = "sim")]
#![allow(missing_docs, unreachable_pub, clippy::panic)]

#[path = "rig/crash.rs"]
mod scenario;

use ata_model::sim::{DriverConfig, ResetBy, Transport};
use blk_core::sim::{Cell, SAFE_MODES};
use blk_core::storage::CacheMode;
use scenario::Driver;

const TRANSPORTS: [Transport; 2] = [Transport::Pio, Transport::Dma];

#[test]
fn every_mode_but_unsafe_is_safe() {
    // The program explores further, and every mode alike.
    let length = |mode, native_fua: bool| {
        let long = !native_fua && matches!(mode, CacheMode::WriteThrough | CacheMode::WriteBack);
        if long { 3 } else { 2 }
    };
    for transport in TRANSPORTS {
        scenario::assert_safe_in_every_mode(DriverConfig::new(transport), length);
    }
}

#[test]
fn unsafe_loses_what_a_flush_acknowledged() {
    TRANSPORTS.map(DriverConfig::new).into_iter().for_each(scenario::assert_unsafe_loses);
}

#[test]
fn a_guest_of_2009_loses_data_behind_a_volatile_cache_and_only_there() {
    for transport in TRANSPORTS {
        for mode in SAFE_MODES {
            let report = DriverConfig::of_2009(transport).explore(&Cell::new(mode, 3));
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
            driver.explore(&Cell::new(mode, 3)).assert_safe();
        }
    }
}

#[test]
fn a_cache_setting_does_not_outlive_a_reset_of_the_machine() {
    for driver in TRANSPORTS.map(DriverConfig::firmware_then_old) {
        driver.explore(&Cell::new(CacheMode::WriteBack, 3)).assert_safe();
    }
}

#[test]
fn long_programs_walked_at_random_are_safe() {
    TRANSPORTS.map(DriverConfig::new).into_iter().for_each(scenario::assert_walks_are_safe);
}

#[cfg(feature = "mutants")]
mod mutants {
    use blk_core::mutant::Mutant;

    use super::*;
    use scenario::mutants::{CAUGHT, assert_caught};

    #[test]
    fn every_mutant_that_applies_is_caught() {
        for transport in TRANSPORTS {
            CAUGHT.into_iter().for_each(|mutant| assert_caught(mutant, DriverConfig::new(transport)));
            assert_caught(Mutant::CacheSettingLeaks, DriverConfig::firmware_then_old(transport));
        }
        let dma = DriverConfig::new(Transport::Dma);
        for reset in [ResetBy::BusMasterStop, ResetBy::BusMasterOff, ResetBy::Machine] {
            assert_caught(Mutant::ResetWithoutDrain, DriverConfig { reset, ..dma });
        }
        // Only DMA has a TRIM.
        assert_caught(Mutant::RangeAckedEarly, dma);
    }
}
