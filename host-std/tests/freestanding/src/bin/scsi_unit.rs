//! A SCSI logical unit, whose transport is the embedder's.

#![no_std]
#![no_main]

use blk_core::storage::Storage;
use freestanding::machine::{AnyMemory, AnyStorage, AnyTransport, any};
use scsi_model::{Attribute, Cdb, Config, LogicalUnit, Nexus, ResetCause, Setting, Task};

freestanding::program!(
    LogicalUnit<64>,
    LogicalUnit::off(Config::new("VENDOR", "PRODUCT", "1", "0001")),
    init: |unit, storage| {
        if let Some(handle) = storage.first() {
            let _ = unit.power_on(Storage::<AnyMemory>::info(handle));
        }
    },
    read: look,
    write: command,
    poll: |unit, storage| {
        if let Some(handle) = storage.first_mut() {
            any(Some(unit.poll(&AnyMemory, handle, &mut AnyTransport)));
        }
    },
    reset: |unit, _| unit.reset(any(ResetCause::Hard)),
);

/// What a transport asks of a unit.
fn look(unit: &mut LogicalUnit<64>, storage: &mut [AnyStorage]) {
    any((unit.contains(any(0)), unit.is_idle(), unit.is_managing(), unit.write_cache(), unit.setting()));
    if let Some(handle) = storage.first() {
        any(unit.notice_capacity(Storage::<AnyMemory>::info(handle)));
    }
}

/// What a transport has it do.
fn command(unit: &mut LogicalUnit<64>, _: &mut [AnyStorage]) {
    match any(0_u8) {
        0 => {
            let bytes = any([0_u8; 32]);
            let cdb = Cdb::new(bytes.get(..any(0)).unwrap_or_default());
            let (tag, nexus, attribute) = any((0, Nexus::default(), Attribute::Simple));
            let (data_out_bytes, data_in_bytes) = any((0, 0));
            let _ = any(unit.enqueue(Task { tag, nexus, attribute, cdb, data_out_bytes, data_in_bytes }));
        }
        1 => _ = any(unit.abort_task(any(0))),
        2 => unit.abort_task_set(any(Nexus::default())),
        3 => unit.clear_task_set(),
        4 => unit.lose_nexus(any(Nexus::default())),
        _ => unit.resume(any(Setting::empty())),
    }
}
