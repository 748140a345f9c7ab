//! Flaws of disk models that became advisories, each as a test named after what it must not do.

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

use std::cell::Cell;

use blk_core::bus::{Device, Region, Width};
use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::Op;
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use rig::{DRQ, ERROR, Memory, READY, cmd, drive, ide, isa_channel, one_drive};

/// CVE-2015-5154.
#[test]
fn drq_falls_with_the_last_word_and_nothing_is_read_or_written_past_the_block() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.issue(cmd(0xec));
    rig.read_words(512);
    assert_eq!((rig.alternate_status(), rig.read(0, 0, Width::Dword)), (READY, 0xffff_ffff));
    rig.issue(cmd(0x30).count(1));
    rig.write_words(&[0xaa; 510]);
    rig.write(0, 0, Width::Dword, 0xbbbb_aaaa);
    assert_eq!(rig.status(), READY);
    rig.write_words(&[0xcc; 512]);
    assert_eq!((rig.disks[0].sector(0), rig.disks[0].sector(1)), (&[0xaa; 512][..], &[0; 512][..]));
}

/// CVE-2015-5154: a data phase left open must not serve the next command's data.
#[test]
fn a_command_is_not_taken_while_a_data_phase_is_open() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.issue(cmd(0x30).count(2));
    rig.out(0, 7, 0xec);
    assert_eq!(rig.status(), DRQ);
    rig.write_words(&[0x11; 1024]);
    assert_eq!((rig.status(), rig.disks[0].sector(1)), (READY, &[0x11; 512][..]));
}

/// CVE-2015-6855.
#[test]
fn no_command_of_a_missing_drive_or_of_an_impossible_translation_divides_by_zero() {
    let mut rig = ide([None, drive(1), None, None], Cache::WriteBack);
    for opcode in 0..=255 {
        rig.out(0, 6, 0x00);
        rig.issue(cmd(opcode).device(0x00).count(1));
        rig.out(2, 7, opcode);
    }
    let mut rig = one_drive(Cache::WriteBack);
    for heads in 0..16 {
        assert_eq!((rig.run(cmd(0x91).count(0).device(heads)), rig.error()), (ERROR, 0x04));
    }
    assert_eq!(rig.run(cmd(0x20).count(1).lba(0).device(0)), ERROR, "sector 0 of CHS");
}

/// CVE-2020-29443 and CVE-2015-6855: what begins a packet command opens no data phase in a disk.
#[test]
fn packet_commands_are_aborted_and_nothing_of_a_packet_is_taken() {
    let mut rig = one_drive(Cache::WriteBack);
    for opcode in [0xa0, 0xa1, 0xa2, 0x08] {
        rig.issue(cmd(opcode).lba(0x00ff_ff00));
        assert_eq!((rig.alternate_status(), rig.error()), (ERROR, 0x04), "{opcode:#x}");
        // READ (12) of block FFFFFFFFh.
        rig.write_words(&[0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        assert_eq!((rig.poll().again, rig.read(0, 0, Width::Word), rig.status()), (false, 0xffff, ERROR));
    }
    assert!(rig.disks[0].log.is_empty());
}

/// CVE-2014-2894.
#[test]
fn self_tests_without_end_stay_in_the_log() {
    let mut rig = one_drive(Cache::WriteBack);
    for run in 1..=100_u64 {
        let test = cmd(0xb0).features(0xd4).lba(0xc2_4f01);
        assert_eq!(rig.run(test), READY);
        let log = rig.pio_in(cmd(0xb0).features(0xd5).lba(0xc2_4f06).count(1), 512, 1);
        assert_eq!(u64::from(log[508]), (run - 1) % 21 + 1);
    }
}

/// CVE-2014-9718.
#[test]
fn a_table_without_a_whole_sector_ends_the_command_and_leaks_nothing() {
    for bytes in [2, 256, 510] {
        for (opcode, to_memory) in [(0xc8, true), (0xca, false), (0x3d, false)] {
            let mut rig = one_drive(Cache::WriteBack);
            for _ in 0..3 {
                let ended = rig.dma(cmd(opcode).count(1), &[(0x1000, bytes)], to_memory);
                assert_eq!((ended, rig.irq), ((0x00, ERROR), 0), "inactive, no interrupt, no success");
            }
            assert!(rig.disks[0].log.is_empty());
        }
    }
}

/// CVE-2019-20175.
#[test]
fn a_short_table_moves_its_whole_sectors_and_reports_no_success() {
    let mut rig = one_drive(Cache::WriteBack);
    assert_eq!(rig.dma(cmd(0x25).count(4), &[(0x1000, 512), (0x2000, 700)], true), (0x00, ERROR));
    assert_eq!(rig.disks[0].log.iter().filter_map(Op::extent).map(|e| e.sectors).sum::<u64>(), 2);
    assert_eq!(rig.dma(cmd(0x25).count(4), &[(0x1000, 2048)], true), (0x04, READY));
}

/// CVE-2020-25743.
#[test]
fn a_bus_master_is_cancelled_without_a_drive() {
    let mut rig = ide([drive(0), None, None, None], Cache::WriteBack);
    for device in [0x40, 0x50] {
        for base in [0, 8] {
            rig.out(0, 6, device);
            rig.out(4, base, 0x09);
            rig.out(1, 2, 0x04);
            rig.out(4, base, 0x00);
            rig.out(1, 2, 0x00);
            rig.out(4, base, 0x01);
            rig.out(4, base, 0x00);
            rig.poll();
        }
    }
    assert_eq!(rig.status(), READY);
    let mut empty = isa_channel([None, None]);
    empty.out(4, 0, 1);
    empty.out(4, 0, 0);
    empty.hardware_reset();
    assert_eq!(empty.read(4, 0, Width::Dword), 0xffff_ffff);
}

/// CVE-2023-0330: guest memory refuses the addresses of devices, and the bus master takes the refusal for an error.
#[test]
fn dma_into_what_is_not_memory_is_an_error_and_not_a_register_access() {
    let mut rig = one_drive(Cache::WriteBack);
    for base in [0xfee0_0000, 0xfec0_0000, 0x1000_0000] {
        assert_eq!(rig.dma(cmd(0x25).count(1), &[(base, 512)], true), (0x06, ERROR));
    }
    assert!(rig.disks[0].log.is_empty());
}

/// host-std/tests/defects.md, 20: regions that overlap are filled in order, and a table under its own transfer is read as it is found.
#[test]
fn regions_that_overlap_each_other_or_their_table_reach_nothing_but_memory() {
    let mut rig = one_drive(Cache::WriteBack);
    rig.disks[0].bytes[..512].fill(1);
    rig.disks[0].bytes[512..1024].fill(2);
    assert_eq!(rig.dma(cmd(0x25).count(2), &[(0x1000, 512), (0x1000, 512)], true), (0x04, READY));
    assert_eq!(rig.peek(0x1000, 1024), [[2; 512], [0; 512]].concat());

    // The first sector lands on the table, before the second region is looked up: at FFFFFFF0h, over the end.
    rig.disks[0].info.transfer_max_bytes = 512;
    for prd in rig.disks[0].bytes[..512].chunks_exact_mut(8) {
        prd.copy_from_slice(&[0xf0, 0xff, 0xff, 0xff, 0, 2, 0, 0x80]);
    }
    assert_eq!(rig.dma(cmd(0x25).count(2), &[(0x100, 512), (0x2000, 512)], true), (0x06, ERROR));
    assert_eq!(rig.peek(0x2000, 512), [0; 512]);
}

/// Guest memory whose PRD table changes after it was read for the first time.
struct Changing {
    memory: Memory,
    table: GuestAddr,
    reads: Cell<u32>,
}

impl GuestMemory for Changing {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(addr, into)?;
        if addr == self.table && self.reads.replace(self.reads.get() + 1) > 0 {
            into.copy_from_slice(&[0, 0x10, 0, 0, 2, 0, 0, 0x80]);
        }
        Ok(())
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(addr, from)
    }

    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        self.memory.load_u16_acquire(addr)
    }

    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        self.memory.store_u16_release(addr, value)
    }

    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        self.memory.contains(addr, len)
    }
}

/// host-std/tests/defects.md, 20: a descriptor that is changed between its check and its use.
#[test]
fn a_table_that_changes_between_two_looks_is_an_error_and_moves_nothing() {
    let mut rig = one_drive(Cache::WriteBack);
    // A sector and a bit: the table is walked again, to where the whole sectors end.
    rig.prds(0x100, &[(0x1000, 700)]);
    let changing = Changing { memory: rig.memory, table: GuestAddr(0x100), reads: Cell::new(0) };
    rig.write(4, 4, Width::Dword, 0x100);
    rig.issue(cmd(0x25).count(2));
    let disks = &mut rig.disks[..];
    rig.device.write(Region::Bar(4), 0, Width::Byte, 0x09, &changing, disks);
    rig.device.poll(&changing, disks);
    assert_eq!((changing.reads.get(), rig.stop_dma(), rig.status()), (2, 0x06, ERROR));
    assert!(rig.disks[0].log.is_empty());
}

/// A guest that writes anything anywhere. The seed is in the message.
#[test]
fn no_sequence_of_accesses_panics_or_touches_what_was_not_asked() {
    for seed in 1..400_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut next = |bound: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % bound
        };
        let mut rig = ide([drive(0), drive(1), None, drive(3)], Cache::WriteBack);
        rig.prds(0x100, &[(0x1000, 512), (0x2000, 0), (0x2_0000, 6), (0x3_0000, 0x1234)]);
        println!("seed {seed}");
        for _ in 0..400 {
            let bar = next(5) as u8;
            let width = [Width::Byte, Width::Byte, Width::Word, Width::Dword, Width::Qword][next(5) as usize];
            match next(8) {
                0 => {
                    rig.read(bar, next(20), width);
                }
                1 => {
                    rig.poll();
                }
                2 => {
                    let disk = next(4) as usize;
                    let memory = rig.memory;
                    rig.disks[disk].hold = next(2) == 0;
                    rig.disks[disk].busy = next(4) == 0;
                    if next(2) == 0 {
                        rig.disks[disk].release(&memory);
                    }
                }
                3 => {
                    let table = [0x100, 0x100, 0xfff0, next(1 << 32)][next(4) as usize];
                    rig.write(4, 4 + 8 * next(2), Width::Dword, table);
                    rig.out(4, 8 * next(2), next(16) as u8);
                }
                4 => {
                    let opcodes = ata_model::command::TABLE;
                    let row = &opcodes[next(opcodes.len() as u64) as usize];
                    rig.out(2 * next(2) as u8, 7, row.opcode);
                }
                5 => {
                    for _ in 0..next(600) {
                        rig.write(2 * next(2) as u8, 0, Width::Dword, next(u64::MAX));
                        rig.read(2 * next(2) as u8, 0, Width::Word);
                    }
                }
                6 if next(20) == 0 => {
                    rig.hardware_reset();
                }
                _ => {
                    let offset = next(8);
                    let value = if offset == 7 { next(256) } else { next(4) | next(2) << 6 | next(2) << 4 };
                    rig.write(bar, offset, width, value);
                }
            }
        }
        let memory = rig.memory;
        for disk in &mut rig.disks {
            disk.busy = false;
            disk.release(&memory);
        }
        rig.hardware_reset();
        assert!(!rig.poll().pending_write, "seed {seed}");
        assert_eq!(rig.status(), READY, "seed {seed}");
    }
}
