//! Flaws of AHCI models that became advisories, and what a hostile guest puts into lists and tables: each a test named after
//! what must not happen.

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

use blk_core::bus::{Quiet as _, Width};
use blk_core::op::Op;
use blk_core::storage::Cache;
use rig::ahci::*;
use rig::{MEMORY_BYTES, cmd, drive};

/// Issues a read and a queued read of one sector, each over these regions; checks that each ends the same way and that
/// nothing reached the disk.
fn read_over(regions: &[(u64, u32)], interrupt: u32) {
    for queue in [false, true] {
        let mut rig = ahci(Cache::WriteBack);
        let command = if queue { queued(0x60, 0, 1, 1, false) } else { cmd(0x25).lba(1).count(1) };
        rig.prepare(0, 0, command, regions);
        if queue {
            rig.go_queued(1);
        } else {
            rig.go(1);
        }
        assert_eq!(rig.reg(0, IS) & (HBFS | TFES | OFS | IFS), interrupt, "{regions:x?}");
        assert_eq!(rig.disks[0].log, []);
        rig.restart();
        if interrupt & TFES != 0 && queue {
            rig.queue_log();
        }
        assert_eq!(rig.command(cmd(0x25).lba(1).count(1), &[(DATA, 512)]), OK, "it goes on");
        assert_eq!(rig.disks[0].log.len(), 1);
    }
}

/// CVE-2023-0330: guest memory refuses the addresses of devices, the HBA's own registers among them.
#[test]
fn dma_into_the_hbas_own_registers_is_a_host_bus_error() {
    for base in [0xfebf_1000, 0xfee0_0000, MEMORY_BYTES as u64 - 256] {
        read_over(&[(base, 512)], HBFS);
    }
}

/// The list, the table and the received FIS area may lie there too.
#[test]
fn structures_in_what_is_not_memory_halt_the_port_and_nothing_else() {
    for (offset, value) in [(CLB, 0xfebf_1000), (CLBU, 1), (FB, 0xfebf_1000), (FBU, u32::MAX)] {
        let mut rig = ahci(Cache::WriteBack);
        rig.prepare(0, 0, cmd(0xe7), &[]);
        rig.set(0, CMD, FRE);
        rig.set(0, offset, value);
        rig.set(0, CMD, FRE | ST);
        rig.go(1);
        assert_eq!((rig.reg(0, IS) & HBFS, rig.reg(0, CI)), (HBFS, 1), "{offset:#x}");
        rig.set(0, CMD, 0);
        rig.start(0);
        rig.restart();
        assert_eq!(rig.command(cmd(0xe7), &[]), OK);
    }
    for table in [0xfebf_1000, !0x7f, u64::MAX] {
        let mut rig = ahci(Cache::WriteBack);
        rig.prepare(0, 0, cmd(0xe7), &[]);
        rig.poke(list(0) + 8, &table.to_le_bytes());
        rig.go(1);
        assert_eq!(rig.reg(0, IS) & HBFS, HBFS);
        rig.restart();
        assert_eq!(rig.command(cmd(0xe7), &[]), OK);
    }
}

/// host-std/tests/defects.md, 20.
#[test]
fn a_region_that_wraps_past_2_to_the_64_is_no_memory() {
    read_over(&[(u64::MAX - 1, 512)], HBFS);
    read_over(&[(u64::MAX - 511, 512)], HBFS);
    read_over(&[(!1, 0x40_0000)], HBFS);
}

/// DBC bit 0 and DBA bit 0: what is not of whole words is refused, and no byte beside it is touched.
#[test]
fn odd_regions_are_refused() {
    read_over(&[(DATA + 1, 512)], HBFS);
    read_over(&[(DATA, 511), (DATA + 511, 1)], HBFS);
    read_over(&[(DATA, 1)], HBFS);
}

/// CVE-2014-9718, CVE-2019-20175.
#[test]
fn tables_that_are_empty_or_short_end_the_command_without_success() {
    read_over(&[], TFES | OFS);
    read_over(&[(DATA, 2)], TFES | OFS);
    read_over(&[(DATA, 256), (DATA + 256, 254)], TFES | OFS);
    // Of a longer command the whole blocks move.
    let mut rig = ahci(Cache::WriteBack);
    rig.poke(DATA, &[0x11; 1024]);
    assert_eq!(rig.command(cmd(0x35).lba(1).count(3), &[(DATA, 1024)]), ABORTED);
    assert_eq!((rig.disks[0].sector(2)[0], rig.disks[0].sector(3)[0], rig.moved(0)), (0x11, 0, 1024));
    rig.restart();
    for opcode in [0xec, 0xb0] {
        let command = cmd(opcode).features(0xd0).lba(0xc2_4f00).count(1);
        assert_eq!(rig.command(command, &[(DATA, 510)]), ABORTED);
        rig.restart();
    }
    assert_eq!(rig.command(cmd(0x06).features(1).count(1), &[(DATA, 510)]), ABORTED);
}

/// What the table has beyond the command's data need not even be memory.
#[test]
fn an_overlong_table_moves_no_more_than_the_command() {
    for queue in [false, true] {
        let mut rig = ahci(Cache::WriteBack);
        rig.poke(DATA + 512, &[0xee; 512]);
        let command = if queue { queued(0x60, 0, 1, 1, false) } else { cmd(0x25).lba(1).count(1) };
        rig.prepare(0, 0, command, &[(DATA, 0x40_0000), (u64::MAX, 7)]);
        rig.go_queued(1);
        assert_eq!((rig.reg(0, TFD), rig.reg(0, CI)), (OK, 0));
        assert_eq!(rig.peek(DATA + 512, 512), [0xee; 512]);
    }
}

/// host-std/tests/defects.md, 20: data that lands on the command list, on the table, and on the received FIS area.
#[test]
fn regions_over_the_hbas_own_structures_reach_nothing_but_memory() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().info.transfer_max_bytes = 512;
    // The first sector lands on the command list: the command goes on with its own copy.
    rig.disk().bytes[512..1536].fill(0xff);
    rig.prepare(0, 0, cmd(0x25).lba(1).count(2), &[(list(0), 512), (DATA, 512)]);
    rig.go(1);
    assert_eq!((rig.reg(0, CI), rig.reg(0, TFD), rig.peek(DATA, 1)), (0, OK, vec![0xff]));
    // What is issued next is what is found there: no Register FIS.
    rig.prepare(0, 1, cmd(0xe7), &[]);
    rig.poke(list(0) + 32, &[0xff; 32]);
    rig.go(2);
    assert_eq!(rig.reg(0, IS) & HBFS, HBFS);
    rig.restart();
    // The first sector lands on the table, before the second region is looked up.
    rig.prepare(0, 0, cmd(0x25).lba(1).count(2), &[(table(0, 0), 512), (DATA + 512, 512)]);
    rig.go(1);
    assert_eq!(rig.reg(0, IS) & HBFS, HBFS);
    assert_eq!(rig.peek(DATA + 512, 512), [0; 512]);
    rig.restart();
    // And on the received FIS area, over which the answer is written.
    assert_eq!(rig.command(cmd(0x25).lba(1).count(1), &[(received(0) & !0x1ff, 512)]), OK);
    assert_eq!(rig.fis(0x40, 3), [0x34, 0x40, 0x50]);
}

/// CVE-2016-1568: an invalid queued command must not leave its slot in use, nor a reset find it there.
#[test]
fn an_invalid_queued_command_leaves_nothing_for_a_reset_to_cancel() {
    for reset in 0..3 {
        let mut rig = ahci(Cache::WriteBack);
        rig.prepare(0, 5, queued(0x61, 5, 4096, 1, false), &[(DATA, 512)]);
        rig.go_queued(1 << 5);
        assert_eq!(rig.reg(0, TFD), 0x1051);
        match reset {
            0 => assert!(!rig.hardware_reset().pending_write),
            1 => rig.set_host(0x04, 1),
            _ => {
                rig.set(0, CMD, FRE);
                rig.comreset();
            }
        }
        rig.start(0);
        rig.restart();
        rig.prepare(0, 5, queued(0x61, 5, 1, 1, false), &[(DATA, 512)]);
        rig.go_queued(1 << 5);
        assert_eq!(
            (rig.reg(0, SACT), rig.reg(0, TFD), rig.disks[0].log.len()),
            (0, OK, 1),
            "the tag is free"
        );
        assert_eq!(rig.hba().strays(), 0);
    }
}

/// CVE-2022-0216 and its like: what is issued twice is executed once.
#[test]
fn a_slot_that_is_issued_again_while_it_runs_is_not_executed_twice() {
    let mut rig = ahci(Cache::WriteBack);
    rig.disk().hold = true;
    rig.prepare(0, 0, cmd(0x35).lba(1).count(1), &[(DATA, 512)]);
    for _ in 0..4 {
        rig.go(1);
    }
    let memory = rig.memory;
    rig.disk().release(&memory);
    rig.poll();
    assert_eq!((rig.reg(0, CI), rig.disks[0].log.len()), (0, 1));
}

#[test]
fn what_is_no_register_fis_is_an_interface_error() {
    for (length, first) in [(0, 0x27), (4, 0x27), (5, 0x58), (5, 0x46), (5, 0x00)] {
        let mut rig = ahci(Cache::WriteBack);
        rig.prepare(0, 0, cmd(0xe7), &[]);
        rig.poke(list(0), &[length]);
        rig.poke(table(0, 0), &[first]);
        rig.go(1);
        assert_eq!((rig.reg(0, IS) & IFS, rig.reg(0, SERR), rig.disks[0].log.len()), (IFS, 1 << 10, 0));
        rig.restart();
        assert_eq!(rig.command(cmd(0xe7), &[]), OK);
    }
}

/// There is no port multiplier: a command for a drive behind one must not reach the drive that is there.
#[test]
fn a_command_for_a_port_behind_a_multiplier_reaches_no_drive() {
    for (in_fis, in_header) in [(1, 0), (15, 0), (0, 0x10), (2, 0x20)] {
        let mut rig = ahci(Cache::WriteBack);
        rig.prepare(0, 0, cmd(0x35).lba(1).count(1), &[(DATA, 512)]);
        rig.poke(table(0, 0) + 1, &[0x80 | in_fis]);
        rig.poke(list(0) + 1, &[in_header]);
        rig.go(1);
        assert_eq!((rig.reg(0, TFD), rig.disks[0].log.len()), (ABORTED, 0));
    }
}

/// Every opcode, queued and not, with nothing sensible behind it.
#[test]
fn every_opcode_ends_and_only_writes_write() {
    let mut rig = ahci(Cache::WriteBack);
    for opcode in 0..=255_u8 {
        for regions in [&[][..], &[(DATA, 0x1_0000)]] {
            rig.prepare(0, 0, cmd(opcode).count(1).lba(3), regions);
            rig.go(1);
            assert_eq!(rig.reg(0, TFD) & 0x88, 0, "{opcode:#x}");
            rig.set(0, CMD, FRE);
            rig.comreset();
            rig.restart();
        }
    }
    let writes = rig.disks[0].log.iter().filter(|op| matches!(op, Op::Write { .. })).count();
    // 30h 31h 34h 35h 3Dh 61h CAh CBh; 39h, C5h and CEh need SET MULTIPLE MODE.
    assert_eq!(writes, 8);
}

/// A guest that writes anything anywhere. The seed is in the message.
#[test]
fn no_sequence_of_accesses_panics_or_wedges_the_hba() {
    for seed in 1..300_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        println!("seed {seed}");
        let mut rig = hba([drive(0), None], Cache::WriteBack);
        rig.start(0);
        for _ in 0..300 {
            match next(12) {
                0 => {
                    let width = [Width::Byte, Width::Word, Width::Dword, Width::Qword][next(4) as usize];
                    rig.read(5, next(0x220), width);
                    let value = next(u64::MAX);
                    rig.write(5, next(0x220), width, value);
                }
                1 => rig.disk().hold = next(2) == 0,
                2 => rig.disk().busy = next(4) == 0,
                3 => {
                    let memory = rig.memory;
                    if next(2) == 0 {
                        rig.disk().release(&memory);
                    } else if rig.disks[0].held() > 0 {
                        let n = next(rig.disks[0].held() as u64) as usize;
                        rig.disk().fail = (next(4) == 0).then(|| rig::medium_error(next(4096)));
                        rig.disk().release_one(&memory, n);
                    }
                }
                4 => rig.set(0, CMD, [FRE, FRE | ST, FRE | CLO, 0][next(4) as usize]),
                5 if next(4) == 0 => rig.set(0, SCTL, [0, 1, 4, 0x300][next(4) as usize] as u32),
                6 if next(16) == 0 => rig.set_host(0x04, 1),
                7 if next(8) == 0 => {
                    if next(2) == 0 {
                        rig.hba().unplug(0);
                    } else {
                        rig.hba().plug(0, drive(0).unwrap());
                    }
                }
                8 => rig.poke(next(0x8000), &next(u64::MAX).to_le_bytes()),
                _ => {
                    let slot = next(32) as u8;
                    let tag = if next(16) == 0 { next(32) as u8 } else { slot };
                    let opcodes = ata_model::command::TABLE;
                    let opcode = opcodes[next(opcodes.len() as u64) as usize].opcode;
                    let command = if next(2) == 0 {
                        queued(0x60 | next(2) as u8, tag, next(4100), 1 + next(8) as u16, next(4) == 0)
                    } else {
                        cmd(opcode).count(1 + next(8) as u16).lba(next(4100)).features(next(256) as u16)
                    };
                    rig.prepare(0, slot, command, &[(DATA, 700), (DATA + 0x1000, 0x2000)]);
                    if next(4) != 0 {
                        rig.set(0, SACT, 1 << slot);
                    }
                    rig.set(0, CI, 1 << slot);
                }
            }
            if next(3) == 0 {
                rig.poll();
            }
        }
        let memory = rig.memory;
        rig.disk().busy = false;
        rig.disk().fail = None;
        rig.disk().release(&memory);
        rig.poll();
        rig.hardware_reset();
        assert!(!rig.poll().pending_write, "seed {seed}");
        rig.hba().plug(0, drive(0).unwrap());
        rig.start(0);
        rig.set(0, SCTL, 0);
        rig.poll();
        rig.restart();
        assert_eq!(rig.command(cmd(0xe7), &[]), OK, "seed {seed}");
        assert!(rig.hba().is_quiet() && rig.hba().strays() == 0, "seed {seed}");
    }
}
