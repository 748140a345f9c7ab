//! Every schedule and crash point of small programs, through real command blocks.

#![cfg(feature = "sim")]

use blk_core::sim::{Cell, DiskConfig, Report, SAFE_MODES, SimHandle, SimMemory, explore_all, sample_all};
use blk_core::storage::CacheMode;
use scsi_model::sim::virtio_scsi::{Driver as VirtioDriver, Variant as VirtioVariant};
use scsi_model::sim::{Driver, Variant};

fn run(variant: Variant, mode: CacheMode, native_fua: bool, length: u8) -> Report {
    let boot = |memory: &SimMemory, storage: &mut [SimHandle]| Driver::boot(variant, memory, storage);
    let cell = Cell { disk: DiskConfig { native_fua, ..DiskConfig::new(mode) }, ..Cell::new(mode, length) };
    explore_all(&boot, &cell)
}

#[test]
fn every_mode_but_unsafe_keeps_every_promise() {
    for mode in SAFE_MODES {
        for (variant, fua) in [(Variant::Sd, false), (Variant::Sd, true), (Variant::FirmwareThenOld, false)] {
            let report = run(variant, mode, fua, 2);
            println!("{} {variant:?} {fua}: {:?} {:?}", mode.name(), report.explored, report.elapsed);
            report.assert_safe();
        }
    }
}

fn run_virtio<const Q: usize>(variant: VirtioVariant, mode: CacheMode, length: u8) -> Report {
    let boot =
        |memory: &SimMemory, storage: &mut [SimHandle]| VirtioDriver::<Q>::boot(variant, memory, storage);
    explore_all(&boot, &Cell::new(mode, length))
}

#[test]
fn so_it_does_behind_virtio_scsi() {
    for mode in SAFE_MODES {
        let reports = [
            ("device reset", run_virtio::<1>(VirtioVariant::DeviceReset, mode, 2)),
            ("two queues, unit reset", run_virtio::<2>(VirtioVariant::UnitReset, mode, 2)),
            ("abort", run_virtio::<1>(VirtioVariant::AbortTaskSet, mode, 2)),
            ("firmware", run_virtio::<1>(VirtioVariant::FirmwareThenOld, mode, 2)),
        ];
        for (name, report) in reports {
            println!("{} {name}: {:?} {:?}", mode.name(), report.explored, report.elapsed);
            report.assert_safe();
        }
    }
    assert!(run_virtio::<1>(VirtioVariant::DeviceReset, CacheMode::Unsafe, 2).counterexample().is_some());
}

/// Programs that fill the queue, with resets and power cuts in the middle.
#[test]
fn random_walks_through_longer_programs_keep_every_promise() {
    for mode in [CacheMode::WriteThrough, CacheMode::WriteBack] {
        let boot = |memory: &SimMemory, storage: &mut [SimHandle]| Driver::boot(Variant::Sd, memory, storage);
        sample_all(&boot, &Cell::new(mode, 10), 1000).assert_safe();
    }
}

#[test]
fn unsafe_loses_data() {
    let report = run(Variant::Sd, CacheMode::Unsafe, false, 2);
    assert!(report.counterexample().is_some());
}
