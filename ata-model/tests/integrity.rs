//! What is acknowledged is stable when it has to be, and resets leave nothing behind.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unreachable
)]

mod rig;

use blk_core::op::Op;
use blk_core::storage::{Cache, IoError, IoErrorKind};
use blk_core::units::Extent;
use rig::{ERROR, Ide, READY, cmd, drive, ide, medium_error, one_drive, pattern};

const fn write(lba: u64, sectors: u64, fua: bool) -> Op {
    Op::Write { extent: Extent::new(lba, sectors), fua }
}

fn wce(rig: &mut Ide) -> (u16, u16) {
    let words = rig.identify(0x40);
    (words[82] >> 5 & 1, words[85] >> 5 & 1)
}

#[test]
fn a_write_cache_is_shown_exactly_where_there_is_one() {
    assert_eq!(wce(&mut one_drive(Cache::WriteBack)), (1, 1));
    assert_eq!(wce(&mut one_drive(Cache::Unsafe)), (1, 1));
    let mut rig = one_drive(Cache::WriteThrough);
    assert_eq!(wce(&mut rig), (0, 0));
    assert_eq!((rig.run(cmd(0xef).features(0x02)), rig.error()), (ERROR, 0x04), "there is none to turn on");
    assert_eq!(rig.run(cmd(0xef).features(0x82)), READY);
    assert_eq!(rig.disks[0].log, [Op::Flush], "it asks whether everything is stable");
}

/// host-std/tests/defects.md, 1.
#[test]
fn fua_writes_are_stable_when_they_end() {
    for native in [false, true] {
        let mut rig = one_drive(Cache::WriteBack);
        rig.disks[0].info.fua = native;
        assert_eq!(rig.dma(cmd(0x3d).lba(4).count(2), &[(0x1000, 1024)], false), (0x04, READY));
        rig.run(cmd(0xc6).count(2));
        assert_eq!(rig.pio_out(cmd(0xce).lba(6).count(2), 1024, &pattern(1, 1024)), READY);
        let expected = match native {
            true => vec![write(4, 2, true), write(6, 2, true)],
            false => vec![write(4, 2, false), Op::Flush, write(6, 2, false), Op::Flush],
        };
        assert_eq!(rig.disks[0].log, expected);
    }
}

#[test]
fn a_fua_write_is_busy_until_its_flush_is_done() {
    let mut rig = one_drive(Cache::WriteBack);
    let memory = rig.memory;
    rig.prds(0x100, &[(0x1000, 512)]);
    rig.disks[0].hold = true;
    rig.start_dma(cmd(0x3d).count(1), 0x100, false);
    rig.disks[0].release(&memory);
    rig.disks[0].hold = true;
    rig.poll();
    assert!(rig.busy() && rig.irq == 0, "written, and not yet flushed");
    rig.disks[0].fail = Some(medium_error(0));
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.stop_dma(), rig.status()), (0x04, ERROR), "and the flush's error is the write's");
}

/// host-std/tests/defects.md, 7: with the cache off, the flush that makes a write stable fails, and that is how the write ends.
#[test]
fn a_failed_sync_of_a_write_with_the_cache_off_is_its_error_and_ends_it() {
    let mut rig = one_drive(Cache::WriteBack);
    let memory = rig.memory;
    assert_eq!(rig.run(cmd(0xef).features(0x82)), READY);
    rig.prds(0x100, &[(0x1000, 512)]);
    rig.disks[0].hold = true;
    rig.start_dma(cmd(0x35).lba(3).count(1), 0x100, false);
    rig.disks[0].release(&memory);
    rig.disks[0].fail = Some(medium_error(3));
    rig.poll();
    assert_eq!((rig.stop_dma(), rig.status(), rig.error(), rig.lba48()), (0x04, ERROR, 0x04, 3));

    rig.disks[0].hold = true;
    rig.issue(cmd(0x30).lba(4).count(1));
    rig.write_words(&[7; 512]);
    rig.disks[0].release(&memory);
    rig.disks[0].fail = Some(medium_error(4));
    rig.poll();
    assert_eq!((rig.status(), rig.error(), rig.input(0, 3)), (ERROR, 0x04, 4));
    assert_eq!(rig.disks[0].log[1..], [write(3, 1, false), Op::Flush, write(4, 1, false), Op::Flush]);
}

/// host-std/tests/defects.md, 11.
#[test]
fn turning_the_cache_off_flushes_and_makes_later_writes_stable() {
    let mut rig = one_drive(Cache::WriteBack);
    let memory = rig.memory;
    rig.disks[0].hold = true;
    rig.issue(cmd(0xef).features(0x82));
    assert!(rig.busy());
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.status(), wce(&mut rig)), (READY, (1, 0)));
    rig.dma(cmd(0x35).lba(3).count(1), &[(0x1000, 512)], false);
    assert_eq!(rig.disks[0].log, [Op::Flush, write(3, 1, false), Op::Flush]);
    assert_eq!((rig.run(cmd(0xef).features(0x02)), wce(&mut rig)), (READY, (1, 1)));
    rig.dma(cmd(0x35).lba(3).count(1), &[(0x1000, 512)], false);
    assert_eq!(rig.disks[0].log.len(), 4, "a plain write again");
}

#[test]
fn a_cache_that_cannot_be_flushed_stays_on() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].fail = Some(IoError::new(IoErrorKind::Latched));
    assert_eq!(rig.run(cmd(0xef).features(0x82)), ERROR | 0x20);
    assert_eq!(wce(&mut rig), (1, 1));
}

/// host-std/tests/defects.md, 12.
#[test]
fn a_flush_of_a_read_only_disk_succeeds_and_a_write_is_refused_before_data() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].info.read_only = true;
    assert_eq!((rig.run(cmd(0xe7)), rig.run(cmd(0xea))), (READY, READY));
    for opcode in [0x30, 0x34] {
        assert_eq!((rig.run(cmd(opcode).count(1)), rig.error()), (ERROR, 0x04));
    }
    assert_eq!(rig.dma(cmd(0x06).features(1).count(1), &[(0x1000, 512)], false).1, ERROR);
    assert_eq!(rig.disks[0].log, [Op::Flush, Op::Flush]);
}

#[test]
fn a_flush_flushes_in_every_cache_mode() {
    for cache in [Cache::WriteThrough, Cache::WriteBack, Cache::Unsafe] {
        let mut rig = one_drive(cache);
        assert_eq!(rig.run(cmd(0xe7)), READY);
        assert_eq!(rig.disks[0].log, [Op::Flush]);
    }
}

fn ranges(rig: &mut Ide, list: &[(u64, u16)]) {
    let mut block = [0; 1024];
    for (entry, &(lba, count)) in block.chunks_exact_mut(8).zip(list) {
        entry.copy_from_slice(&(lba | u64::from(count) << 48).to_le_bytes());
    }
    rig.poke(0x1000, &block);
}

fn trim(rig: &mut Ide, blocks: u16) -> (u8, u8) {
    rig.dma(cmd(0x06).features(1).count(blocks), &[(0x1000, blocks * 512)], false)
}

#[test]
fn trim_discards_each_range_and_skips_empty_ones() {
    let mut rig = one_drive(Cache::WriteBack);
    let mut list = vec![(10, 4), (u64::MAX >> 16, 0), (0, 0), (100, 1)];
    list.resize(70, (0, 0));
    list.push((200, 7));
    ranges(&mut rig, &list);
    assert_eq!(trim(&mut rig, 2), (0x04, READY));
    let discard = |lba, sectors| Op::Discard { extent: Extent::new(lba, sectors) };
    assert_eq!(rig.disks[0].log, [discard(10, 4), discard(100, 1), discard(200, 7)]);
    rig.run(cmd(0xef).features(0x82));
    rig.disks[0].log.clear();
    ranges(&mut rig, &[(10, 4)]);
    assert_eq!(trim(&mut rig, 1), (0x04, READY));
    assert_eq!(rig.disks[0].log, [discard(10, 4), Op::Flush], "with the cache off it is stable");
}

/// cloud-hypervisor 7873: a discard past the end.
#[test]
fn trim_checks_every_range_before_the_first_is_gone() {
    let mut rig = one_drive(Cache::WriteBack);
    for bad in [(rig::SECTORS, 1), (rig::SECTORS - 1, 2), (0xffff_ffff_ffff, 0xffff), (1 << 47, 1)] {
        ranges(&mut rig, &[(10, 4), bad]);
        assert_eq!((trim(&mut rig, 1), rig.error()), ((0x04, ERROR), 0x10));
    }
    ranges(&mut rig, &[(10, 4)]);
    assert_eq!(rig.run(cmd(0x06).features(0).count(1)), ERROR, "no function but TRIM");
    for blocks in [9, 0] {
        assert_eq!(rig.run(cmd(0x06).features(1).count(blocks)), ERROR, "word 105 says 8");
    }
    rig.prds(0x100, &[(0x1000, 256)]);
    rig.start_dma(cmd(0x06).features(1).count(1), 0x100, false);
    assert_eq!((rig.stop_dma(), rig.status()), (0x00, ERROR), "half a block of ranges");
    assert!(rig.disks[0].log.is_empty());
}

/// host-std/tests/defects.md, 18, CVE-2023-5088.
#[test]
fn a_software_reset_waits_for_what_is_in_flight_and_writes_nothing_afterwards() {
    let mut rig = one_drive(Cache::WriteBack);
    let memory = rig.memory;
    rig.disks[0].info.transfer_max_bytes = 512;
    rig.poke(0x1000, &pattern(5, 2048));
    rig.prds(0x100, &[(0x1000, 2048)]);
    rig.disks[0].hold = true;
    rig.start_dma(cmd(0x35).lba(70).count(4), 0x100, false);
    rig.out(1, 2, 0x04);
    rig.out(1, 2, 0x00);
    for _ in 0..100 {
        rig.poll();
        assert_eq!(rig.alternate_status(), 0x80, "no timer ends it");
    }
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.alternate_status(), rig.irq), (READY, 0));
    rig.out(4, 0, 0);
    rig.out(4, 0, 1);
    rig.poll();
    assert_eq!(rig.disks[0].log, [write(70, 1, false)], "neither the rest of it nor sector 0");
    assert_eq!(rig.disks[0].sector(0), [0; 512]);
    assert_eq!(rig.error(), 0x01, "the signature");
}

#[test]
fn a_reset_takes_a_data_phase_away() {
    for command in [cmd(0x20).count(4), cmd(0x30).count(4)] {
        let mut rig = one_drive(Cache::WriteBack);
        rig.issue(command);
        rig.out(1, 2, 0x04);
        assert_eq!(rig.alternate_status(), 0x80);
        rig.write_words(&[0xee; 512]);
        rig.out(1, 2, 0x00);
        assert_eq!(rig.status(), READY);
        rig.write_words(&[0xee; 512]);
        rig.poll();
        assert!(!rig.disks[0].log.iter().any(Op::mutates));
        assert_eq!(rig.read(0, 0, blk_core::bus::Width::Word), 0xffff);
    }
}

#[test]
fn a_reset_drains_both_drives_of_the_channel_and_leaves_the_other_channel_alone() {
    let mut rig = ide([drive(0), drive(1), drive(2), None], Cache::WriteBack);
    let memory = rig.memory;
    rig.disks[1].hold = true;
    rig.disks[2].hold = true;
    rig.issue(cmd(0xe7).device(0x50));
    rig.out(2, 7, 0xe7);
    rig.out(1, 2, 0x04);
    rig.out(1, 2, 0x00);
    rig.poll();
    assert_eq!((rig.alternate_status(), rig.input(3, 2)), (0x80, 0xd0));
    rig.disks[1].release(&memory);
    rig.poll();
    assert_eq!((rig.alternate_status(), rig.input(3, 2)), (READY, 0xd0));
    rig.disks[2].release(&memory);
    rig.poll();
    assert_eq!((rig.input(3, 2), rig.irq), (READY, 1));
}

#[test]
fn stopping_the_bus_master_ends_the_command_when_the_storage_has_drained() {
    let mut rig = one_drive(Cache::WriteBack);
    let memory = rig.memory;
    rig.disks[0].info.transfer_max_bytes = 512;
    rig.prds(0x100, &[(0x1000, 2048)]);
    rig.disks[0].hold = true;
    rig.start_dma(cmd(0x35).lba(1).count(4), 0x100, false);
    rig.out(4, 0, 0);
    rig.poll();
    assert_eq!(rig.input(4, 2) & 1, 0, "the engine has stopped");
    assert!(rig.busy() && rig.irq == 0, "the drive has not");
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.irq, rig.status(), rig.error()), (1, ERROR, 0x04));
    assert_eq!(rig.disks[0].log.len(), 1);
}

#[test]
fn a_software_reset_keeps_the_cache_setting_unless_the_guest_asked_otherwise() {
    let mut rig = one_drive(Cache::WriteBack);
    let reset = |rig: &mut Ide| {
        rig.out(1, 2, 0x04);
        rig.out(1, 2, 0x00);
    };
    rig.run(cmd(0xef).features(0x82));
    reset(&mut rig);
    assert_eq!(wce(&mut rig), (1, 0), "66h is the default");
    rig.run(cmd(0xef).features(0xcc));
    reset(&mut rig);
    assert_eq!(wce(&mut rig), (1, 1));
    rig.run(cmd(0xef).features(0x82));
    rig.run(cmd(0xc6).count(4));
    reset(&mut rig);
    assert_eq!((wce(&mut rig), rig.identify(0x40)[59]), ((1, 0), 0x0104), "66h is in force again");
}

fn cache_after_hardware_reset(write_cache: bool) -> (u16, u16) {
    let config = ata_model::DriveConfig { write_cache, ..drive(0).unwrap() };
    let mut rig = ide([Some(config), None, None, None], Cache::WriteBack);
    let other = if write_cache { 0x82 } else { 0x02 };
    assert_eq!(rig.run(cmd(0xef).features(other)), READY);
    assert!(!rig.hardware_reset().pending_write);
    wce(&mut rig)
}

#[test]
fn a_hardware_reset_restores_the_cache_setting_of_power_on() {
    assert_eq!(cache_after_hardware_reset(true), (1, 1));
    assert_eq!(cache_after_hardware_reset(false), (1, 0));
}

#[cfg(feature = "mutants")]
#[test]
fn the_mutant_that_leaks_the_cache_setting_is_seen() {
    blk_core::mutant::set(Some(blk_core::mutant::Mutant::CacheSettingLeaks));
    let after = [true, false].map(cache_after_hardware_reset);
    blk_core::mutant::set(None);
    assert_eq!(after, [(1, 0), (1, 1)], "what the last guest chose is still in force");
}

#[test]
fn a_hardware_reset_is_pending_until_the_storage_has_drained() {
    let mut rig = one_drive(Cache::WriteBack);
    let memory = rig.memory;
    rig.disks[0].hold = true;
    rig.issue(cmd(0xe7));
    assert!(rig.hardware_reset().pending_write);
    rig.out(1, 2, 0x04);
    assert!(rig.poll().pending_write && rig.busy());
    rig.disks[0].release(&memory);
    assert!(!rig.poll().pending_write);
    assert_eq!((rig.status(), rig.irq), (READY, 0));
}
