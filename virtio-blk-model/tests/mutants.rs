//! Each defect that this front can have, switched on: the explorer has to catch it.

#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use blk_core::mutant::{self, Mutant};
use blk_core::sim::{Cell, Counterexample, DiskConfig, SAFE_MODES, SimHandle, SimMemory, explore_all};
use blk_core::storage::CacheMode;
use virtio_blk_model::sim::{Driver, Variant};

fn find<const Q: usize>(
    variant: Variant,
    mode: CacheMode,
    native_fua: bool,
    length: u8,
) -> Option<Counterexample> {
    let boot = |memory: &SimMemory, storage: &mut [SimHandle]| Driver::<Q>::boot(variant, memory, storage);
    let cell = Cell {
        disk: DiskConfig { handles: Q, native_fua, ..DiskConfig::new(mode) },
        ..Cell::new(mode, length)
    };
    explore_all(&boot, &cell).counterexample().cloned()
}

/// The shortest counterexample in any guest and mode, and where.
fn catch(mutant: Mutant) -> Option<(String, Counterexample)> {
    mutant::set(Some(mutant));
    let mut found = None;
    'search: for length in 1..=3 {
        for mode in SAFE_MODES {
            let guests = [
                ("barrier", find::<1>(Variant::Barrier, mode, false, length)),
                ("two queues", find::<2>(Variant::Modern, mode, false, length)),
                ("no flush", find::<1>(Variant::NoFlush, mode, false, length)),
                ("fua", find::<1>(Variant::Fua, mode, false, length)),
            ];
            if let Some((name, one)) = guests.into_iter().find_map(|(name, one)| Some((name, one?))) {
                found = Some((format!("{name}, {}, length {length}", mode.name()), one));
                break 'search;
            }
        }
    }
    mutant::set(None);
    found
}

#[test]
fn every_mutant_is_caught() {
    let mut missed = Vec::new();
    // Nothing here is aborted but by a reset.
    for &mutant in Mutant::ALL.iter().filter(|mutant| **mutant != Mutant::AbortWithoutDrain) {
        match catch(mutant) {
            Some((place, one)) => println!("{mutant:?} ({place}):\n{one}"),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
