//! Every schedule and crash point of small programs, through the real registers and rings.

#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

use blk_core::sim::{Cell, DiskConfig, Report, SAFE_MODES, SimHandle, SimMemory, explore_all};
use blk_core::storage::CacheMode;
use virtio_blk_model::sim::{Driver, Variant};

fn run<const Q: usize>(variant: Variant, mode: CacheMode, length: u8) -> Report {
    let boot = |memory: &SimMemory, storage: &mut [SimHandle]| Driver::<Q>::boot(variant, memory, storage);
    let cell = Cell {
        disk: DiskConfig { handles: Q, ..DiskConfig::new(mode) },
        needs_barriers: variant == Variant::Of2009,
        ..Cell::new(mode, length)
    };
    explore_all(&boot, &cell)
}

fn all(mode: CacheMode, length: u8) -> [(&'static str, Report); 5] {
    [
        ("barrier", run::<1>(Variant::Barrier, mode, length)),
        ("modern", run::<1>(Variant::Modern, mode, length)),
        ("two queues", run::<2>(Variant::Modern, mode, length)),
        ("no flush", run::<1>(Variant::NoFlush, mode, length)),
        ("fua", run::<1>(Variant::Fua, mode, length)),
    ]
}

/// Steps of the longest programs: `EXPLORE_LENGTH`, or 2.
fn length() -> u8 {
    std::env::var("EXPLORE_LENGTH").map_or(2, |length| length.parse().unwrap())
}

#[test]
fn every_mode_but_unsafe_keeps_every_promise() {
    for mode in SAFE_MODES {
        for (name, report) in all(mode, length()) {
            println!("{} {name}: {:?} {:?}", mode.name(), report.explored, report.elapsed);
            report.assert_safe();
        }
    }
}

#[test]
fn unsafe_loses_data() {
    for (name, report) in all(CacheMode::Unsafe, 2) {
        if name != "no flush" {
            assert!(report.counterexample().is_some(), "{name}");
        }
    }
}

#[test]
fn the_guest_of_2009_loses_data_in_every_mode() {
    for mode in CacheMode::ALL {
        let report = run::<1>(Variant::Of2009, mode, 2);
        let counterexample = report.counterexample();
        println!("{}: {}", mode.name(), counterexample.map_or(String::new(), ToString::to_string));
        assert!(counterexample.is_some(), "{}", mode.name());
    }
}
