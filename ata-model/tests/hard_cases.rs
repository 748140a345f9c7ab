//! Resets, stops and switches in the middle of commands, through the registers of PCI functions: what the other files show
//! of one part, in combination.

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

use blk_core::bus::Width;
use blk_core::op::Op;
use blk_core::storage::Cache;
use blk_core::units::Extent;
use rig::ahci::*;
use rig::{
    BUS_MASTER, Cmd, ERROR, IO, Ide, MEMORY, READY, cmd, drive, ide, medium_error, one_drive, pattern,
};

const READ_DMA_EXT: u8 = 0x25;
const WRITE_DMA_EXT: u8 = 0x35;
const SET_FEATURES: u8 = 0xef;
const CACHE_OFF: u16 = 0x82;
const CACHE_ON: u16 = 0x02;

const fn write(lba: u64, sectors: u64, fua: bool) -> Op {
    Op::Write { extent: Extent::new(lba, sectors), fua }
}

/// A DMA command over four sectors at sector 70, one operation each, the first of which is held.
fn dma_in_flight(opcode: u8) -> Ide {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].info.transfer_max_bytes = 512;
    rig.disks[0].bytes[70 * 512..][..2048].copy_from_slice(&pattern(3, 2048));
    rig.poke(0x1000, &pattern(5, 2048));
    rig.prds(0x100, &[(0x1000, 2048)]);
    rig.disks[0].hold = true;
    rig.start_dma(cmd(opcode).lba(70).count(4), 0x100, opcode == READ_DMA_EXT);
    assert_eq!(rig.disks[0].held(), 1);
    rig
}

fn land(rig: &mut Ide) {
    let memory = rig.memory;
    rig.disks[0].release(&memory);
    rig.poll();
}

/// Whatever the bus master is told now, what was cut off does not go on, on the disk or in memory.
fn nothing_goes_on(rig: &mut Ide) {
    let (log, memory) = (rig.disks[0].log.len(), rig.peek(0, 0x4000));
    for command in [0, 1, 0, 9, 0] {
        rig.out(4, 0, command);
        rig.poll();
    }
    assert_eq!((rig.disks[0].log.len(), rig.disks[0].held()), (log, 0));
    assert_eq!(rig.peek(0, 0x4000), memory);
    assert_eq!(rig.disks[0].sector(0), [0; 512], "sector 0 intact");
    assert_eq!(rig.dma(cmd(READ_DMA_EXT).lba(80).count(1), &[(0x3000, 512)], true), (0x04, READY));
}

#[test]
fn a_reset_in_mid_transfer_cuts_it_off_by_whatever_way_it_comes() {
    for opcode in [READ_DMA_EXT, WRITE_DMA_EXT] {
        for way in ["SRST", "bus", "stop", "stop, then SRST"] {
            let mut rig = dma_in_flight(opcode);
            if way.starts_with("stop") {
                rig.out(4, 0, 0);
            }
            if way.ends_with("SRST") {
                rig.out(1, 2, 4);
                rig.out(1, 2, 0);
            }
            if way == "bus" {
                assert!(rig.hardware_reset().pending_write);
            }
            rig.poll();
            assert!(rig.busy(), "{opcode:#x}, {way}");
            land(&mut rig);
            let end = if way == "stop" { ERROR } else { READY };
            assert_eq!(rig.status(), end, "{opcode:#x}, {way}");
            assert_eq!(rig.disks[0].log.len(), 1, "{opcode:#x}, {way}: three sectors were due");
            let whole = rig.peek(0x1200, 1536) == pattern(5, 2048)[512..];
            assert!(whole, "{opcode:#x}, {way}: memory behind the first sector is as it was");
            nothing_goes_on(&mut rig);
        }
    }
}

/// While BSY is set no register is written: the drive does not hear of the cache until the write has ended.
#[test]
fn the_cache_is_not_switched_under_an_ide_write() {
    let mut rig = dma_in_flight(WRITE_DMA_EXT);
    for feature in [CACHE_OFF, CACHE_ON, CACHE_OFF] {
        rig.issue(cmd(SET_FEATURES).features(feature));
    }
    land(&mut rig);
    let sectors: Vec<_> = (70..74).map(|lba| write(lba, 1, false)).collect();
    assert_eq!((rig.stop_dma(), rig.status(), &rig.disks[0].log), (0x04, READY, &sectors));
    assert_eq!(rig.identify(0x40)[85] & 0x20, 0x20);
    assert_eq!(rig.run(cmd(SET_FEATURES).features(CACHE_OFF)), READY);
    assert_eq!(rig.disks[0].log[4..], [Op::Flush], "and then it flushes first");
    assert_eq!(rig.identify(0x40)[85] & 0x20, 0);
}

/// SET FEATURES 82h whose flush is cut off has not turned anything off, whether the flush fails or not.
#[test]
fn a_cache_switch_that_a_reset_cuts_off_was_not_made() {
    for fails in [false, true] {
        let mut rig = one_drive(Cache::WriteBack);
        rig.disks[0].hold = true;
        rig.issue(cmd(SET_FEATURES).features(CACHE_OFF));
        assert_eq!((rig.busy(), rig.disks[0].held()), (true, 1));
        rig.out(1, 2, 4);
        rig.out(1, 2, 0);
        rig.disks[0].fail = fails.then(|| medium_error(5));
        land(&mut rig);
        assert_eq!((rig.status(), rig.identify(0x40)[85] & 0x20), (READY, 0x20));
        rig.dma(cmd(WRITE_DMA_EXT).lba(1).count(1), &[(0x1000, 512)], false);
        assert_eq!(rig.disks[0].log, [Op::Flush, write(1, 1, false)]);
    }
}

/// As `hdparm -W0`, `-W1` and `-W0` in a row beside writes: one list, in its order.
#[test]
fn cache_switches_between_writes_in_a_list_hold_for_what_follows_them() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    let switch = |feature| (cmd(SET_FEATURES).features(feature), 0);
    let writes = |lba| (cmd(WRITE_DMA_EXT).lba(lba).count(1), 1);
    let list = [writes(1), switch(CACHE_OFF), writes(2), switch(CACHE_ON), writes(3), switch(CACHE_OFF)];
    for (slot, (command, regions)) in (0..).zip(list) {
        rig.prepare(0, slot, command, &[(DATA, 512)][..regions]);
    }
    rig.go(0x3f);
    assert_eq!(rig.disks[0].log, [write(1, 1, false)], "nothing is switched while it is in flight");
    let memory = rig.memory;
    while rig.disks[0].held() > 0 {
        rig.disk().release_one(&memory, 0);
        rig.poll();
    }
    assert_eq!((rig.reg(0, CI), rig.reg(0, TFD)), (0, OK));
    let (w1, w2, w3) = (write(1, 1, false), write(2, 1, false), write(3, 1, false));
    assert_eq!(rig.disks[0].log, [w1, Op::Flush, w2, Op::Flush, w3, Op::Flush]);
}

#[test]
fn a_cache_switch_among_queued_writes_ends_the_queue_and_switches_nothing() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    for tag in 0..2 {
        rig.prepare(0, tag, queued(0x61, tag, u64::from(tag), 1, false), &[(DATA, 512)]);
    }
    rig.go_queued(3);
    rig.prepare(0, 2, cmd(SET_FEATURES).features(CACHE_OFF), &[]);
    rig.go(4);
    let memory = rig.memory;
    rig.disk().release(&memory);
    rig.poll();
    assert_eq!((rig.reg(0, TFD), rig.disks[0].log.len()), (ABORTED, 2));
    rig.restart();
    assert_eq!(rig.queue_log()[0], 0x80);
    assert_eq!(rig.identify_serial()[85] & 0x20, 0x20);
}

#[test]
fn a_standby_whose_flush_fails_is_an_error_that_names_no_success() {
    for opcode in [0xe0, 0xe2, 0xe6] {
        let mut rig = ahci(Cache::WriteBack);
        assert_eq!(rig.command(cmd(WRITE_DMA_EXT).lba(1).count(1), &[(DATA, 512)]), OK);
        rig.disk().fail = Some(medium_error(1));
        assert_eq!(rig.command(cmd(opcode), &[]), ABORTED, "{opcode:#x}");
        rig.restart();
        assert_eq!(rig.command(cmd(0xe5), &[]), OK);
        assert_eq!(rig.fis(0x4c, 1), [0xff], "{opcode:#x}: it is still active");
    }
}

/// The list of a port without a drive is left alone, and so is memory.
#[test]
fn a_drive_that_is_not_there_answers_nothing() {
    let mut rig = ahci(Cache::WriteBack);
    rig.start(1);
    rig.prepare(1, 0, cmd(WRITE_DMA_EXT).count(1), &[(DATA, 512)]);
    let before = rig.peek(0, 0x6_0000);
    rig.set(1, SACT, 1);
    rig.set(1, CI, 1);
    rig.set(1, SCTL, 0x301);
    rig.set(1, SCTL, 0x300);
    rig.poll();
    assert_eq!((rig.reg(1, SSTS), rig.reg(1, TFD) & 0xff, rig.reg(1, SIG)), (0, 0x7f, u32::MAX));
    assert_eq!((rig.reg(1, CI), rig.peek(0, 0x6_0000) == before), (1, true));
    assert!(rig.disks[1].log.is_empty());
    rig.set(1, CMD, 0);
    rig.poll();
    assert_eq!((rig.reg(1, CMD) & CR, rig.reg(1, CI)), (0, 0));

    // A bus master without a drive: Start and Stop, and nothing comes of it.
    let mut rig = ide([None, drive(1), None, None], Cache::WriteBack);
    for device in [0x40, 0x50] {
        rig.prds(0x100, &[(0x1000, 512)]);
        rig.poke(0x1000, &[7; 512]);
        rig.start_dma(cmd(READ_DMA_EXT).count(1).device(device), 0x100, true);
        rig.stop_dma();
    }
    assert_eq!(rig.disks.iter().map(|disk| disk.log.len()).collect::<Vec<_>>(), [0, 1, 0, 0]);
}

#[test]
fn a_bus_master_that_is_taken_away_under_a_flush_takes_nothing_of_it() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    rig.disk().fail = Some(medium_error(0x123));
    rig.prepare(0, 0, cmd(0xea), &[]);
    rig.go(1);
    rig.permit(MEMORY);
    let memory = rig.memory;
    rig.disk().release(&memory);
    rig.poll();
    assert_eq!((rig.reg(0, CI), rig.reg(0, IS)), (1, 0), "it has not been told of");
    rig.permit(MEMORY | BUS_MASTER);
    assert_eq!((rig.reg(0, TFD), rig.reg(0, IS) & TFES), (ABORTED, TFES));
    assert_eq!(rig.fis(0x44, 2), [0x23, 0x01], "the failure and its sector");

    // Registers are not memory: an IDE drive tells at once.
    let mut rig = one_drive(Cache::WriteBack);
    rig.permit(IO);
    rig.disks[0].fail = Some(medium_error(0x123));
    assert_eq!((rig.run(cmd(0xea)), rig.error(), rig.lba48()), (ERROR, 0x04, 0x123));
}

/// A region that is the HBA's own BAR is no memory to it, wherever the guest has put the BAR.
#[test]
fn regions_in_the_functions_own_bars_are_a_host_bus_error() {
    let mut rig = ahci(Cache::WriteBack);
    rig.set_config(0x24, Width::Dword, 0xfebf_1000);
    let bar = rig.config(0x24, Width::Dword);
    assert_eq!(bar, 0xfebf_1000);
    for command in [cmd(READ_DMA_EXT).count(1), queued(0x60, 0, 0, 1, false)] {
        rig.prepare(0, 0, command, &[(bar + 0x100, 512)]);
        if command.opcode == 0x60 {
            rig.set(0, SACT, 1);
        }
        rig.go(1);
        assert_eq!(rig.reg(0, IS) & HBFS, HBFS);
        rig.restart();
        let mut log = Cmd { lba: 0x10, ..cmd(0x2f).count(1) };
        log.device = 0x40;
        assert_eq!(rig.command(log, &[(DATA, 512)]), OK);
    }
    assert!(rig.disks[0].log.is_empty());
    assert_eq!(rig.reg(0, CLB), 0, "no register was written");
}
