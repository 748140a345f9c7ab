//! Native Command Queuing through the AHCI HBA.

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
use rig::ahci::*;
use rig::{cmd, medium_error, pattern};

const READ: u8 = 0x60;
const WRITE: u8 = 0x61;

const fn write(lba: u64, fua: bool) -> Op {
    Op::Write { extent: Extent::new(lba, 1), fua }
}

/// Queues writes of one sector: tag n to sector n, of bytes n + 1.
fn queue_writes(rig: &mut Ahci, tags: std::ops::Range<u8>) -> u32 {
    let mut bits = 0;
    for tag in tags {
        let at = DATA + 512 * u64::from(tag);
        rig.poke(at, &[tag + 1; 512]);
        rig.prepare(0, tag, queued(WRITE, tag, tag.into(), 1, false), &[(at, 512)]);
        bits |= 1 << tag;
    }
    rig.go_queued(bits);
    bits
}

fn release(rig: &mut Ahci, n: usize) {
    let memory = rig.memory;
    rig.disk().release_one(&memory, n);
    rig.poll();
}

#[test]
fn thirty_two_commands_are_in_flight_at_once_and_end_in_any_order() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    assert_eq!(queue_writes(&mut rig, 0..32), u32::MAX);
    assert_eq!(rig.disks[0].held(), 32);
    assert_eq!((rig.reg(0, CI), rig.reg(0, SACT)), (0, u32::MAX), "taken is not done");
    assert_eq!((rig.reg(0, TFD), rig.irq & 1), (OK, 0), "and does not interrupt");
    release(&mut rig, 17);
    assert_eq!((rig.reg(0, SACT), rig.acknowledge()), (!(1 << 17), SDBS));
    assert_eq!(rig.fis(0x58, 8), [0xa1, 0x40, 0x50, 0, 0, 0, 2, 0]);
    while rig.disks[0].held() > 0 {
        release(&mut rig, 0);
    }
    assert_eq!((rig.reg(0, SACT), rig.reg(0, TFD)), (0, OK));
    for tag in 0..32_u8 {
        assert_eq!(rig.disks[0].sector(tag.into()), [tag + 1; 512]);
    }
    assert_eq!(rig.moved(0), 0, "PRDBC is not for queued commands");
}

#[test]
fn reads_and_writes_move_data_and_announce_themselves() {
    let mut rig = ahci(Cache::WriteBack);
    let data = pattern(1, 8192);
    rig.poke(DATA, &data);
    rig.prepare(0, 9, queued(WRITE, 9, 100, 16, false), &[(DATA, 4096), (DATA + 4096, 4096)]);
    rig.go_queued(1 << 9);
    assert_eq!(rig.fis(0, 28)[..8], [0x41, 0, 0, 0, 9, 0, 0, 0]);
    assert_eq!(rig.fis(20, 4), 8192_u32.to_le_bytes());
    rig.prepare(0, 30, queued(READ, 30, 100, 16, false), &[(DATA + 0x4000, 8192)]);
    rig.go_queued(1 << 30);
    assert_eq!((rig.peek(DATA + 0x4000, 8192), rig.reg(0, SACT)), (data, 0));
    assert_eq!(rig.fis(1, 1), [0x20], "to the host");
    assert_eq!(rig.fis(0x40, 3), [0x34, 0, 0x50], "it was released without an interrupt");
}

#[test]
fn long_and_scattered_commands_go_in_pieces() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().info.transfer_max_bytes = 1024;
    rig.disk().info.segments_max = 2;
    let data = pattern(2, 2048);
    let regions: Vec<_> = (0..32).map(|n| (DATA + n * 128, 58)).chain([(DATA + 0x2000, 192)]).collect();
    let mut at = 0;
    for &(addr, bytes) in &regions {
        rig.poke(addr, &data[at..at + bytes as usize]);
        at += bytes as usize;
    }
    rig.prepare(0, 0, queued(WRITE, 0, 3, 4, false), &regions);
    rig.go_queued(1);
    assert_eq!((rig.reg(0, SACT), &rig.disks[0].bytes[3 * 512..][..2048]), (0, &data[..]));
    rig.poke(DATA, &[0; 0x2000 + 192]);
    for tag in 0..8 {
        rig.prepare(0, tag, queued(READ, tag, 3, 4, false), &regions);
    }
    rig.go_queued(0xff);
    let read: Vec<_> = regions.iter().flat_map(|&(addr, len)| rig.peek(addr, len as usize)).collect();
    assert_eq!((read, rig.reg(0, SACT), rig.disks[0].log.len()), (data, 0, 4 + 8 * 4));
}

/// What the leading emulator traces and ignores.
#[test]
fn fua_is_honoured_in_each_cache_mode() {
    for (cache, native, expected) in [
        (Cache::WriteBack, false, vec![write(1, false), Op::Flush]),
        (Cache::WriteBack, true, vec![write(1, true)]),
        (Cache::WriteThrough, false, vec![write(1, false)]),
        (Cache::Unsafe, false, vec![write(1, false)]),
    ] {
        let mut rig = ahci(cache);
        rig.disk().info.fua = native;
        rig.prepare(0, 4, queued(WRITE, 4, 1, 1, true), &[(DATA, 512)]);
        rig.go_queued(1 << 4);
        assert_eq!((rig.reg(0, SACT), &rig.disks[0].log), (0, &expected), "{cache:?}");
    }
}

#[test]
fn a_fua_write_is_outstanding_until_its_flush_is_done_and_others_pass_it() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    rig.prepare(0, 0, queued(WRITE, 0, 0, 1, true), &[(DATA, 512)]);
    rig.prepare(0, 1, queued(WRITE, 1, 1, 1, false), &[(DATA, 512)]);
    rig.go_queued(3);
    release(&mut rig, 0);
    assert_eq!(rig.reg(0, SACT), 3, "the flush is next");
    release(&mut rig, 0);
    assert_eq!(rig.reg(0, SACT), 1);
    release(&mut rig, 0);
    assert_eq!(rig.reg(0, SACT), 0);
    assert_eq!(rig.disks[0].log, [write(0, false), write(1, false), Op::Flush]);
}

#[test]
fn a_read_with_fua_returns_what_is_stable() {
    let mut rig = ahci(Cache::WriteBack);
    rig.prepare(0, 0, queued(READ, 0, 1, 1, true), &[(DATA, 512)]);
    rig.go_queued(1);
    assert_eq!(rig.disks[0].log, [Op::Flush, Op::Read { extent: Extent::new(1, 1) }]);
    rig.disk().fail = Some(IoError::new(IoErrorKind::Latched));
    rig.go_queued(1);
    assert_eq!(
        (rig.reg(0, TFD), rig.reg(0, SACT), rig.disks[0].log.len()),
        (0x0471, 1, 3),
        "it was not read"
    );
}

#[test]
fn with_the_cache_off_every_queued_write_is_stable() {
    let mut rig = ahci(Cache::WriteBack);
    assert_eq!(rig.command(cmd(0xef).features(0x82), &[]), OK);
    rig.disk().log.clear();
    queue_writes(&mut rig, 0..2);
    assert_eq!(rig.disks[0].log, [write(0, false), write(1, false), Op::Flush, Op::Flush]);
}

#[test]
fn an_error_in_the_middle_of_32_ends_the_queue_when_all_that_was_submitted_has_landed() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    queue_writes(&mut rig, 0..32);
    rig.disk().fail = Some(medium_error(16));
    release(&mut rig, 16);
    assert_eq!((rig.reg(0, SACT), rig.reg(0, IS)), (u32::MAX, 0), "31 may still land");
    while rig.disks[0].held() > 1 {
        release(&mut rig, 0);
    }
    assert_eq!(rig.reg(0, IS) & TFES, 0);
    release(&mut rig, 0);
    // What has landed is reported as done; the rest is one failure.
    assert_eq!((rig.reg(0, SACT), rig.reg(0, TFD)), (1 << 16, ABORTED));
    assert_eq!(rig.reg(0, IS), SDBS | TFES);
    assert_eq!(rig.fis(0x58, 8), [0xa1, 0x40, 0x51, 0x04, 0, 0, 0, 0]);
    // The port takes nothing until it was stopped.
    rig.disk().hold = false;
    rig.prepare(0, 0, queued(WRITE, 0, 40, 1, false), &[(DATA, 512)]);
    rig.go_queued(1);
    assert_eq!((rig.reg(0, CI), rig.disks[0].log.len()), (1, 32));
    rig.restart();
    assert_eq!((rig.reg(0, CI), rig.reg(0, SACT)), (0, 0));
    let log = rig.queue_log();
    assert_eq!(
        (log[0], log[2], log[3], &log[4..11]),
        (16, 0x51 & !0x10, 0x04, &[16, 0, 0, 0x40, 0, 0, 0][..])
    );
    assert_eq!(rig.fis(0x58, 8), [0xa1, 0, 0x50, 0, 0xff, 0xff, 0xff, 0xff], "the log discards the rest");
    queue_writes(&mut rig, 0..1);
    assert_eq!((rig.reg(0, SACT), rig.reg(0, TFD)), (0, OK));
}

#[test]
fn what_was_not_submitted_when_the_queue_ended_never_is() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().info.transfer_max_bytes = 512;
    rig.disk().hold = true;
    rig.prepare(0, 0, queued(WRITE, 0, 0, 4, false), &[(DATA, 2048)]);
    rig.prepare(0, 1, queued(READ, 1, 8, 4, false), &[(DATA, 2048)]);
    rig.go_queued(3);
    rig.disk().fail = Some(medium_error(8));
    release(&mut rig, 1);
    release(&mut rig, 0);
    assert_eq!((rig.disks[0].held(), rig.disks[0].log.len()), (0, 2), "three more sectors were due");
    assert_eq!((rig.reg(0, SACT), rig.reg(0, TFD)), (3, 0x4051));
    rig.restart();
    let log = rig.queue_log();
    assert_eq!((log[0], log[3], log[4]), (1, 0x40, 8));
}

#[test]
fn a_command_that_is_not_queued_in_between_ends_the_queue() {
    for command in
        [cmd(0xe7), cmd(0xec), cmd(0x35).count(1), cmd(0x2f).count(1).lba(0x10), cmd(0x90), cmd(0x63)]
    {
        let mut rig = ahci(Cache::WriteBack);
        rig.disk().hold = true;
        queue_writes(&mut rig, 0..3);
        rig.prepare(0, 7, command, &[(DATA, 512)]);
        rig.go(1 << 7);
        assert_eq!((rig.reg(0, IS), rig.reg(0, TFD) & 0x80), (0, 0x80), "three writes may still land");
        while rig.disks[0].held() > 0 {
            release(&mut rig, 0);
        }
        assert_eq!((rig.reg(0, TFD), rig.reg(0, IS) & TFES), (ABORTED, TFES), "{:#x}", command.opcode);
        assert_eq!((rig.reg(0, CI), rig.disks[0].log.len()), (1 << 7, 3));
        rig.disk().hold = false;
        rig.restart();
        // Nothing but the log is taken now.
        for other in [
            cmd(0xe7),
            queued(WRITE, 0, 0, 1, false),
            queued(WRITE, 5, 0, 1, false),
            cmd(0x90),
            cmd(0x2f).count(1),
        ] {
            assert_eq!(rig.command(other, &[(DATA, 512)]), ABORTED);
            rig.restart();
        }
        assert_eq!(rig.queue_log()[0], 0x80, "not a queued one");
        assert_eq!(rig.command(cmd(0xe7), &[]), OK);
        assert_eq!(rig.queue_log()[0], 0x80, "without an error too");
    }
}

#[test]
fn bad_tags_and_addresses_end_the_queue_and_free_their_slots() {
    let past = queued(WRITE, 3, 4096, 1, false);
    for (command, tfd) in [
        (queued(WRITE, 4, 0, 1, false), ABORTED),
        (past, 0x1051),
        (queued(READ, 3, u64::from(u32::MAX) << 16, 0, false), 0x1051),
    ] {
        let mut rig = ahci(Cache::WriteBack);
        queue_writes(&mut rig, 0..2);
        rig.prepare(0, 3, command, &[(DATA, 512)]);
        rig.go_queued(1 << 3);
        assert_eq!((rig.reg(0, TFD), rig.disks[0].log.len()), (tfd, 2));
        assert_eq!(rig.reg(0, IS) & (TFES | DHRS), TFES | DHRS, "the answer is a Register FIS");
        rig.restart();
        assert_eq!(rig.queue_log()[0], (command.count >> 3) as u8);
        queue_writes(&mut rig, 0..32);
        assert_eq!((rig.reg(0, SACT), rig.disks[0].log.len()), (0, 34));
    }
}

#[test]
fn a_tag_that_is_outstanding_already_ends_the_queue() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    queue_writes(&mut rig, 2..3);
    rig.go_queued(1 << 2);
    release(&mut rig, 0);
    assert_eq!((rig.reg(0, TFD), rig.disks[0].log.len()), (ABORTED, 1));
    rig.restart();
    assert_eq!(rig.queue_log()[0], 2);
}

#[test]
fn resets_and_stops_with_a_full_queue_leave_nothing_behind() {
    for way in 0..4 {
        let mut rig = ahci(Cache::WriteBack);
        rig.disk().hold = true;
        queue_writes(&mut rig, 0..32);
        match way {
            0 => rig.set(0, CMD, FRE),
            1 => {
                rig.set(0, CMD, FRE);
                rig.comreset();
            }
            2 => rig.set_host(0x04, 1),
            _ => {
                rig.control(31, 4, 0);
                rig.control(30, 0, 0);
            }
        }
        rig.poll();
        let waits = match way {
            0 => rig.reg(0, CMD) & CR != 0,
            2 => rig.host(0x04) & 1 != 0,
            _ => rig.reg(0, TFD) & 0x80 != 0,
        };
        assert!(waits, "way {way}");
        let memory = rig.memory;
        rig.disk().release(&memory);
        rig.poll();
        let waits = match way {
            0 => rig.reg(0, CMD) & CR != 0,
            2 => rig.host(0x04) & 1 != 0,
            _ => rig.reg(0, TFD) & 0x80 != 0,
        };
        assert!(!waits, "way {way}");
        rig.disk().bytes.fill(0);
        rig.start(0);
        rig.restart();
        rig.poll();
        assert_eq!((rig.disks[0].log.len(), rig.disks[0].bytes.iter().max()), (32, Some(&0)));
        queue_writes(&mut rig, 0..32);
        assert_eq!((rig.reg(0, SACT), rig.reg(0, TFD), rig.disks[0].log.len()), (0, OK, 64), "way {way}");
    }
}

#[test]
fn a_storage_with_little_room_serves_every_tag_in_turn() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().busy = true;
    queue_writes(&mut rig, 0..32);
    assert_eq!(rig.reg(0, SACT), u32::MAX);
    rig.disk().busy = false;
    rig.poll();
    assert_eq!((rig.reg(0, SACT), rig.disks[0].log.len()), (0, 32));
}

#[test]
fn a_read_only_disk_ends_the_queue_for_a_write() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().info.read_only = true;
    queue_writes(&mut rig, 0..1);
    assert_eq!((rig.reg(0, TFD), rig.disks[0].log.len()), (ABORTED, 0));
}
