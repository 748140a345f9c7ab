//! Each defect that this front can have, switched on: the explorer has to catch it.

#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use blk_core::mutant::{self, Mutant};
use blk_core::sim::{Cell, Counterexample, SAFE_MODES, SimGuest, SimHandle, SimMemory, explore_all};
use blk_core::storage::CacheMode;
use scsi_model::sim::{Driver, Variant, virtio_scsi};

/// The unit has one task set and one storage handle: there is no other queue to forget.
const NOT_HERE: [Mutant; 3] =
    [Mutant::FlushOwnQueueOnly, Mutant::ResetOneQueueOnly, Mutant::AbortWithoutDrain];
/// The request queues of a controller share the unit's.
const NOT_BEHIND_VIRTIO: [Mutant; 2] = [Mutant::FlushOwnQueueOnly, Mutant::ResetOneQueueOnly];

fn find<G: SimGuest>(
    boot: impl Fn(&SimMemory, &mut [SimHandle]) -> G,
    mode: CacheMode,
    length: u8,
) -> Option<Counterexample> {
    explore_all(&boot, &Cell::new(mode, length)).counterexample().cloned()
}

fn in_unit(mode: CacheMode, length: u8) -> Option<(String, Counterexample)> {
    [Variant::Sd, Variant::FirmwareThenOld].into_iter().find_map(|variant| {
        let found = find(|memory, storage| Driver::boot(variant, memory, storage), mode, length);
        Some((format!("{variant:?}"), found?))
    })
}

fn behind_virtio(mode: CacheMode, length: u8) -> Option<(String, Counterexample)> {
    use virtio_scsi::Variant::{AbortTaskSet, DeviceReset, FirmwareThenOld, UnitReset};
    [DeviceReset, UnitReset, AbortTaskSet, FirmwareThenOld].into_iter().find_map(|variant| {
        let boot = |memory: &SimMemory, storage: &mut [SimHandle]| {
            virtio_scsi::Driver::<2>::boot(variant, memory, storage)
        };
        Some((format!("{variant:?}"), find(boot, mode, length)?))
    })
}

/// The shortest counterexample with any guest and mode, and where.
fn catch(
    mutant: Mutant,
    find: fn(CacheMode, u8) -> Option<(String, Counterexample)>,
) -> Option<(String, Counterexample)> {
    for length in 1..=3 {
        for mode in SAFE_MODES {
            mutant::set(Some(mutant));
            let found = find(mode, length);
            mutant::set(None);
            if let Some((guest, one)) = found {
                return Some((format!("{guest}, {}, length {length}", mode.name()), one));
            }
        }
    }
    None
}

fn catch_all(not_here: &[Mutant], find: fn(CacheMode, u8) -> Option<(String, Counterexample)>) {
    let mut missed = Vec::new();
    for &mutant in Mutant::ALL.iter().filter(|mutant| !not_here.contains(mutant)) {
        match catch(mutant, find) {
            Some((place, one)) => println!("{mutant:?} ({place}):\n{one}"),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn every_mutant_is_caught() {
    catch_all(&NOT_HERE, in_unit);
}

#[test]
fn every_mutant_is_caught_behind_virtio_scsi() {
    catch_all(&NOT_BEHIND_VIRTIO, behind_virtio);
}
