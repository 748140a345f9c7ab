//! Features, configuration space, and what they make of the write cache.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::arithmetic_side_effects, reason = "tests")]

mod common;

use blk_core::bus::{Device as _, Width, WriteStatus};
use blk_core::op::Op;
use blk_core::storage::{Cache, IoErrorKind};
use blk_core::units::Extent;
use common::*;
use virtio_blk_model::device::{Config, Interface};
use virtio_blk_model::front::mmio::{Mmio, register};
use virtio_blk_model::wire::Features;

const WRITEBACK: u64 = 32;
const WRITE_0: Op = Op::Write { extent: Extent::new(0, 1), fua: false };

fn with(cache: Cache, features: Features) -> Machine {
    Machine::new(Config::default(), vec![Disk::new(cache)], features)
}

fn write_and_log(machine: &mut Machine) -> Vec<Op> {
    assert_eq!(machine.request(OUT, 0, &[(DATA, 512, 0)]), (OK, 1));
    machine.log()
}

fn set_writeback(machine: &mut Machine, on: u64) -> WriteStatus {
    machine.write(register::CONFIG + WRITEBACK, Width::Byte, on)
}

/// 5.2.5.2 and 5.2.6.2: what a completed write is worth follows what was negotiated.
#[test]
fn what_was_negotiated_decides_whether_writes_are_stable() {
    let (flush, wce) = (Features::FLUSH, Features::CONFIG_WCE);
    let cases = [(Features::empty(), true, 0), (flush, false, 1), (wce, true, 0), (flush | wce, false, 1)];
    for (chosen, stable, writeback) in cases {
        let features = modern().difference(flush | wce) | chosen;
        let mut machine = with(Cache::WriteBack, features);
        let expected = if stable { vec![WRITE_0, Op::Flush] } else { vec![WRITE_0] };
        assert_eq!(write_and_log(&mut machine), expected, "{chosen:?}");
        if chosen.contains(wce) {
            assert_eq!(machine.config(WRITEBACK, Width::Byte), writeback, "{chosen:?}");
        }
    }
}

#[test]
fn zeroes_and_discards_obey_the_stable_rule_even_where_writes_are_stable() {
    let features = modern().difference(Features::FLUSH | Features::CONFIG_WCE);
    for cache in [Cache::WriteBack, Cache::WriteThrough] {
        let mut machine = with(cache, features);
        machine.ranges(WRITE_ZEROES, &[(0, 1, 0), (2, 1, 0)]);
        let flushes = machine.log().iter().filter(|op| **op == Op::Flush).count();
        assert_eq!(flushes, 2, "each range, then its flush");
    }
}

// host-std/tests/defects.md, 11, in its virtio form.
#[test]
fn turning_the_cache_off_waits_for_writes_and_flushes_them() {
    let mut machine = with(Cache::WriteBack, modern());
    machine.disks[0].eager = false;
    machine.send(OUT, 0, &[(DATA, 512, 0)]);
    machine.poll();
    assert_eq!(set_writeback(&mut machine, 0), WriteStatus::Pending);
    machine.send(OUT, 0, &[(DATA, 512, 0)]);
    let memory = machine.memory;
    assert!(machine.poll().pending_write);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1);
    assert_eq!(machine.log(), [WRITE_0], "the younger write is held");
    machine.disks[0].complete(&memory);
    assert!(machine.poll().pending_write);
    assert_eq!(machine.log(), [Op::Flush]);
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 0);
    assert_eq!(machine.log(), [WRITE_0]);
    machine.disks[0].complete(&memory);
    machine.poll();
    assert_eq!(machine.log(), [Op::Flush], "the held write is stable when it is done");
    machine.disks[0].complete(&memory);
    machine.poll();
    assert!(machine.reap(0).is_some() && machine.reap(0).is_some());
}

#[test]
fn the_cache_stays_on_where_the_flush_that_turns_it_off_fails() {
    let mut machine = with(Cache::WriteBack, modern());
    machine.disks[0].fail = Some((0, IoErrorKind::Medium));
    assert_eq!(set_writeback(&mut machine, 0), WriteStatus::Pending);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1);
}

#[test]
fn the_cache_is_turned_on_at_once_and_a_change_is_a_new_generation() {
    let mut machine = with(Cache::WriteBack, modern());
    let first = machine.get(register::CONFIG_GENERATION);
    let _ = set_writeback(&mut machine, 0);
    machine.poll();
    assert_ne!(machine.get(register::CONFIG_GENERATION), first);
    assert_eq!(set_writeback(&mut machine, 1), WriteStatus::Done);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1);
    assert_eq!(
        write_and_log(&mut machine),
        [Op::Flush, WRITE_0],
        "the cache-off's flush, and then a plain write"
    );
}

#[test]
fn a_host_without_a_volatile_cache_has_none_to_turn_on() {
    let mut machine = with(Cache::WriteThrough, modern());
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 0);
    assert_eq!(set_writeback(&mut machine, 1), WriteStatus::Done);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 0);
    assert_eq!(write_and_log(&mut machine), [WRITE_0]);
}

#[test]
fn writeback_is_writable_only_where_it_was_negotiated_and_nothing_else_is() {
    let mut machine = with(Cache::WriteBack, modern().difference(Features::CONFIG_WCE));
    assert_eq!(set_writeback(&mut machine, 0), WriteStatus::Done);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1);
    let mut machine = with(Cache::WriteBack, modern());
    for (offset, width) in
        [(0, Width::Qword), (31, Width::Byte), (33, Width::Byte), (u64::MAX - 0x100, Width::Qword)]
    {
        assert_eq!(machine.write(register::CONFIG + offset, width, 0), WriteStatus::Done);
    }
    assert_eq!(machine.config(0, Width::Qword), SECTORS);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1);
    assert_eq!(machine.write(register::CONFIG + WRITEBACK, Width::Dword, 0), WriteStatus::Pending);
}

#[test]
fn the_cache_setting_does_not_outlive_a_reset() {
    let mut machine = with(Cache::WriteBack, modern());
    let _ = set_writeback(&mut machine, 0);
    machine.poll();
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Done);
    machine.bring_up(modern());
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1);
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Done);
    machine.bring_up(modern().difference(Features::FLUSH | Features::CONFIG_WCE));
    machine.log();
    assert_eq!(write_and_log(&mut machine), [WRITE_0, Op::Flush]);
}

#[test]
fn a_reset_ends_a_cache_switch_that_waits() {
    let mut machine = with(Cache::WriteBack, modern());
    machine.disks[0].eager = false;
    machine.send(OUT, 0, &[(DATA, 512, 0)]);
    machine.poll();
    assert_eq!(set_writeback(&mut machine, 0), WriteStatus::Pending);
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Pending);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.get(register::STATUS), 0);
}

#[test]
fn stopping_the_queue_of_the_flush_does_not_lose_a_cache_switch() {
    let mut machine = with(Cache::WriteBack, modern());
    machine.disks[0].eager = false;
    let _ = set_writeback(&mut machine, 0);
    machine.poll();
    machine.set(register::QUEUE_READY, 0);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    machine.poll();
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 0);
}

/// Nothing else happens once the last operation has ended, so the device has to ask for the polls that it needs.
#[test]
fn a_cache_switch_goes_on_by_itself_when_a_stopped_queue_is_quiet() {
    let mut machine = with(Cache::WriteBack, modern());
    machine.disks[0].eager = false;
    machine.send(OUT, 0, &[(DATA, 512, 0)]);
    machine.poll();
    assert_eq!(machine.try_set(register::QUEUE_READY, 0), WriteStatus::Pending);
    assert_eq!(set_writeback(&mut machine, 0), WriteStatus::Pending);
    let memory = machine.memory;
    machine.log();
    machine.disks[0].complete(&memory);
    machine.poll();
    assert_eq!(machine.log(), [Op::Flush]);
    machine.disks[0].complete(&memory);
    machine.poll();
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 0);
}

fn legacy(barrier: bool, features: Features) -> Machine {
    let config = Config { interface: Interface::Legacy { barrier }, ..Config::default() };
    Machine::new(config, vec![Disk::new(Cache::WriteBack)], features)
}

#[test]
fn barrier_is_offered_by_a_legacy_device_of_one_queue_only() {
    assert!(legacy(true, Features::empty()).offered().contains(Features::BARRIER));
    assert!(!legacy(true, Features::empty()).offered().contains(Features::VERSION_1));
    assert!(!legacy(false, Features::empty()).offered().contains(Features::BARRIER));
    assert!(!machine().offered().contains(Features::BARRIER));
    let config = Config { interface: Interface::Legacy { barrier: true }, ..Config::default() };
    let disks = vec![Disk::new(Cache::WriteBack), Disk::new(Cache::WriteBack)];
    assert!(!Machine::<2>::new(config, disks, Features::empty()).offered().contains(Features::BARRIER));
}

#[test]
fn a_barrier_drains_flushes_writes_and_flushes() {
    let mut machine = legacy(true, Features::all());
    machine.disks[0].eager = false;
    let memory = machine.memory;
    machine.send(OUT, 0, &[(DATA, 512, 0)]);
    machine.header(HEADER + 0x20, OUT | BARRIER, 1);
    machine.offer(0, &[(HEADER + 0x20, 16, 0), (DATA, 300, 0), (DATA + 300, 212, 0), (STATUS, 1, WRITE)]);
    machine.header(HEADER + 0x40, OUT, 2);
    machine.offer(0, &[(HEADER + 0x40, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    let write = |sector| Op::Write { extent: Extent::new(sector, 1), fua: false };
    for expected in [write(0), Op::Flush, write(1), Op::Flush, write(2)] {
        machine.poll();
        assert_eq!(machine.log(), [expected]);
        machine.disks[0].complete(&memory);
    }
    machine.poll();
    assert_eq!(std::iter::from_fn(|| machine.reap(0)).count(), 3);
}

#[test]
fn a_barrier_of_several_ranges_is_stable_to_its_last() {
    let mut machine = legacy(true, Features::all());
    assert_eq!(machine.ranges(WRITE_ZEROES | BARRIER, &[(1, 1, 0), (4, 1, 0)]), (OK, 1));
    let zeroes = |sector| Op::WriteZeroes { extent: Extent::new(sector, 1), may_unmap: false };
    assert_eq!(machine.log(), [Op::Flush, zeroes(1), Op::Flush, Op::Flush, zeroes(4), Op::Flush]);
}

/// The operation that follows the flush completes inside that poll: nobody says so later, nor does anything else call.
#[test]
fn a_barrier_over_a_storage_that_completes_at_once_needs_one_poll() {
    let mut machine = legacy(true, Features::all());
    machine.send(OUT | BARRIER, 1, &[(DATA, 512, 0)]);
    let progress = machine.device.poll(&machine.memory, &mut machine.disks[..]);
    assert!(!progress.again && machine.reap(0).is_some());
}

/// host-std/tests/defects.md, 20: a header that is changed between its check and its use. The operation is kept in the slot.
#[test]
fn a_barrier_whose_header_changed_under_it_writes_where_it_said_first() {
    let mut machine = legacy(true, Features::all());
    machine.disks[0].eager = false;
    let memory = machine.memory;
    let head = machine.send(OUT | BARRIER, 0, &[(DATA, 512, 0)]);
    machine.poll();
    machine.put(HEADER + 8, &9_u64.to_le_bytes());
    for _ in 0..3 {
        machine.disks[0].complete(&memory);
        machine.poll();
    }
    assert_eq!(machine.log(), [Op::Flush, WRITE_0, Op::Flush]);
    assert_eq!((machine.reap(0), machine.fetch(STATUS, 1)), (Some((head, 1)), vec![OK]));
}

/// host-std/tests/defects.md, 20. The chain of a barrier is walked again after its flush: a driver that has changed it meanwhile finds it failed, and
/// one that has broken it finds the queue broken.
#[test]
fn a_barrier_whose_chain_changed_under_it_is_an_error() {
    let mut machine = legacy(true, Features::all());
    machine.disks[0].eager = false;
    machine.disks[0].info.segments_max = 2;
    let memory = machine.memory;
    let ring = Machine::<1>::ring(0);
    for pieces in [&[(DATA, 1024)][..], &[(DATA, 256), (DATA, 128), (DATA, 128)]] {
        let head = machine.send(OUT | BARRIER, 1, &[(DATA, 512, 0)]);
        machine.poll();
        for (index, &(addr, len)) in (1..).zip(pieces) {
            // The status byte, which follows, moves on.
            machine.descriptor(ring, head + index, (addr, len, NEXT), head + index + 1);
            machine.descriptor(ring, head + index + 1, (STATUS, 1, WRITE), 0);
        }
        machine.disks[0].complete(&memory);
        machine.poll();
        assert_eq!(machine.log(), [Op::Flush], "nothing is written");
        assert_eq!((machine.reap(0), machine.fetch(STATUS, 1)), (Some((head, 1)), vec![IOERR]));
    }

    let head = machine.send(OUT | BARRIER, 1, &[(DATA, 512, 0)]);
    machine.poll();
    machine.descriptor(Machine::<1>::ring(0), head + 1, (DATA, 512, NEXT), head);
    machine.disks[0].complete(&memory);
    machine.poll();
    assert_eq!(machine.get(register::STATUS) & 64, 64);
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Done);
}

/// 2.2.2 and 6.2.
#[test]
fn features_that_were_not_offered_are_not_accepted() {
    for features in
        [0, (Features::VERSION_1 | Features::BARRIER).bits(), Features::VERSION_1.bits() | 1 << 34]
    {
        let mut machine = Machine::<1>::off(Config::default(), vec![Disk::new(Cache::WriteBack)]);
        machine.set(register::STATUS, 3);
        machine.accept(features);
        machine.set(register::STATUS, 11);
        assert_eq!(machine.get(register::STATUS), 3, "{features:#x}");
        machine.set(register::STATUS, 15);
        assert_eq!(machine.get(register::STATUS), 3, "{features:#x}");
    }
}

#[test]
fn features_are_fixed_once_agreed() {
    let mut machine = with(Cache::WriteBack, Features::VERSION_1 | Features::FLUSH);
    machine.accept(Features::VERSION_1.bits());
    assert_eq!(machine.device.device().control().features(), Features::VERSION_1 | Features::FLUSH);
    assert_eq!(write_and_log(&mut machine), [WRITE_0]);
}

// Firecracker 3869.
#[test]
fn configuration_space_is_read_within_bounds_at_any_offset_and_width() {
    let mut machine = machine();
    assert_eq!(machine.config(0, Width::Qword), SECTORS);
    assert_eq!(machine.config(20, Width::Dword), 512);
    assert_eq!(machine.config(59, Width::Byte), 0);
    for offset in [56, 57, 59, 60, 61, 0x1000, u64::from(u32::MAX), u64::MAX - 0x100] {
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            let expected = if offset == 56 { 1 } else { 0 };
            assert_eq!(machine.config(offset, width), expected, "{offset:#x}");
        }
    }
    assert_eq!(machine.config(1, Width::Word), 0);
}

#[test]
fn configuration_space_describes_the_storage() {
    let mut disk = Disk::new(Cache::WriteBack);
    disk.info.logical_block_bytes = 512;
    disk.info.physical_block_bytes = 4096;
    disk.info.optimal_io_bytes = 65536;
    disk.info.segments_max = 32;
    disk.info.transfer_max_bytes = 1 << 20;
    let mut machine = Machine::<1>::new(Config::default(), vec![disk], modern());
    assert_eq!(machine.config(24, Width::Byte), 3, "physical_block_exp");
    assert_eq!(machine.config(26, Width::Word), 8, "min_io_size");
    assert_eq!(machine.config(28, Width::Dword), 128, "opt_io_size");
    let (size_max, seg_max) = (machine.config(8, Width::Dword), machine.config(12, Width::Dword));
    assert_eq!(seg_max, u64::from(RING) - 2, "no more than a ring without indirect descriptors holds");
    assert!(size_max * seg_max <= 1 << 20 && size_max % 4096 == 0);
    assert_eq!(machine.config(36, Width::Dword), 1 << 22, "max_discard_sectors");
    assert_eq!(machine.config(40, Width::Dword), 16, "max_discard_seg");
    assert_eq!(machine.config(44, Width::Dword), 8, "discard_sector_alignment");
    assert_eq!(machine.config(52, Width::Dword), 16, "max_write_zeroes_seg");
}

#[test]
fn the_register_block_says_what_it_is() {
    let mut machine = machine();
    assert_eq!(machine.get(register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!((machine.get(register::VERSION), machine.get(register::DEVICE_ID)), (2, 2));
    assert_eq!(machine.read(register::MAGIC_VALUE, Width::Byte), 0, "registers are 32 bits wide");
    assert_eq!(machine.get(0xb0), u32::MAX, "no shared memory");
    machine.set(register::DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.get(register::DEVICE_FEATURES), 0);
}

#[test]
fn a_device_with_requests_in_the_ring_survives_saving_and_restoring() {
    let mut machine = with(Cache::WriteBack, modern());
    assert_eq!(machine.request(IN, 1, &[(DATA, 512, WRITE)]), (OK, 513));
    machine.disks[0].busy = true;
    let head = machine.send(IN, 2, &[(DATA, 512, WRITE)]);
    machine.poll();
    let bytes = postcard::to_stdvec(&machine.device).unwrap();
    let restored: Mmio<1, 8> = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(restored, machine.device);
    machine.device = restored;
    machine.disks[0].busy = false;
    machine.poll();
    assert_eq!(machine.reap(0), Some((head, 513)));
    assert_eq!(machine.fetch(DATA, 1), [2]);
}
