//! What leaves the host, by the kernel's own count: an image behind a loop device, traced. Needs root; says so where it is not.

mod common;

use blk_core::op::Op;
use blk_core::storage::CacheMode;
use common::{BORDER, IMAGE_BYTES, Images, fill, fua, guest, memory, open, run, write};
use host_std::trace::{BlockTrace, Counts, LoopDevice};

/// A write that the device was made to keep: FUA, or with a flush.
fn made_stable(counts: Counts) -> bool {
    counts.writes >= 1 && (counts.fua_writes >= 1 || counts.flushes >= 1)
}

/// What reached the device, per operation, when `ops` ran one after the other on an image open in `mode`.
fn traced(mode: CacheMode, direct_io: bool, ops: &[Op]) -> Option<Vec<Counts>> {
    let images = Images::on_disk();
    let device = LoopDevice::attach(&images.image("backing", IMAGE_BYTES), direct_io)
        .inspect_err(|error| println!("skipped: {error}"))
        .ok()?;
    let backend = open(device.path(), mode);
    let mut storage = backend.handle().unwrap();
    let memory = memory();
    fill(&memory, BORDER, 4096, 0x5a);
    let mut seen = Vec::new();
    for &op in ops {
        let (major, minor) = device.dev();
        let trace = BlockTrace::start(major, minor).inspect_err(|error| println!("skipped: {error}")).ok()?;
        let data = [guest(BORDER, 4096)];
        match op {
            Op::Flush => run(&mut storage, &memory, op, &[]).unwrap(),
            // What the sequencer makes of it on a storage that has no FUA.
            Op::Write { extent, fua: true } if !storage.info().fua => {
                run(&mut storage, &memory, Op::Write { extent, fua: false }, &data).unwrap();
                run(&mut storage, &memory, Op::Flush, &[]).unwrap();
            }
            _ => run(&mut storage, &memory, op, &data).unwrap(),
        }
        seen.push(trace.stop().unwrap());
    }
    Some(seen)
}

#[test]
fn a_flush_and_a_fua_write_reach_the_device_in_every_mode_but_unsafe() {
    for mode in CacheMode::ALL {
        for direct_io in [false, true] {
            let ops = [write(0, 8), Op::Flush, fua(8, 8)];
            let Some(seen) = traced(mode, direct_io, &ops) else { return };
            let name = mode.name();
            if mode == CacheMode::Unsafe {
                let flushed = seen.iter().any(|counts| counts.flushes + counts.fua_writes != 0);
                assert!(!flushed, "{name} flushes nothing: {seen:?}");
            } else {
                assert!(seen[1].flushes >= 1, "{name}: a flush: {seen:?}");
                assert!(made_stable(seen[2]), "{name}: a FUA write: {seen:?}");
            }
        }
    }
}

/// Where a completed write is stable, it is so after a flush too: a write that follows one is not left in a cache.
#[test]
fn write_flush_write_leaves_nothing_unsynced_in_writethrough_and_directsync() {
    for mode in [CacheMode::WriteThrough, CacheMode::DirectSync] {
        let ops = [write(0, 8), Op::Flush, write(8, 8), write(0, 8)];
        let Some(seen) = traced(mode, false, &ops) else { return };
        for at in [0, 2, 3] {
            assert!(made_stable(seen[at]), "{}: write {at}: {seen:?}", mode.name());
        }
    }
}

#[test]
fn a_plain_write_costs_no_flush_where_the_guest_flushes_for_itself() {
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let Some(seen) = traced(mode, false, &[write(0, 8), Op::Flush]) else { return };
        assert_eq!(seen[0].flushes + seen[0].fua_writes, 0, "{}: {seen:?}", mode.name());
        assert_eq!(seen[0].writes + seen[1].writes, 1, "{}: {seen:?}", mode.name());
        assert_eq!(seen[1].flushes, 1, "{}: {seen:?}", mode.name());
    }
}
