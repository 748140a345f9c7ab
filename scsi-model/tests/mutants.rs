//! Each defect that this front can have, switched on: the explorer has to catch it.

#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::ops::ControlFlow;

use blk_core::mutant::{self, Mutant};
use blk_core::sim::{Cell, Counterexample, SimHandle, SimMemory, explore};
use blk_core::storage::CacheMode;
use scsi_model::sim::{Driver, Variant};

/// The unit has one task set and one storage handle: there is no other queue to forget.
const NOT_HERE: [Mutant; 2] = [Mutant::FlushOwnQueueOnly, Mutant::ResetOneQueueOnly];

fn find(variant: Variant, mode: CacheMode, length: u8) -> Option<Counterexample> {
    let boot = |memory: &SimMemory, storage: &mut [SimHandle]| Driver::boot(variant, memory, storage);
    explore(&boot, &Cell::new(mode, length), &mut |_| ControlFlow::Continue(())).counterexample().cloned()
}

/// The shortest counterexample with any guest and mode, and where.
fn catch(mutant: Mutant) -> Option<(String, Counterexample)> {
    for length in 1..=3 {
        for mode in CacheMode::ALL.into_iter().filter(|mode| *mode != CacheMode::Unsafe) {
            for variant in [Variant::Sd, Variant::FirmwareThenOld] {
                mutant::set(Some(mutant));
                let found = find(variant, mode, length);
                mutant::set(None);
                if let Some(one) = found {
                    return Some((format!("{variant:?}, {}, length {length}", mode.name()), one));
                }
            }
        }
    }
    None
}

#[test]
fn every_mutant_is_caught() {
    let mut missed = Vec::new();
    for &mutant in Mutant::ALL.iter().filter(|mutant| !NOT_HERE.contains(mutant)) {
        match catch(mutant) {
            Some((place, one)) => println!("{mutant:?} ({place}):\n{one}"),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
