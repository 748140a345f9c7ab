//! Data: PIO, MULTIPLE, the bus master and its PRD tables.

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
use blk_core::storage::{Cache, IoError, IoErrorKind};
use blk_core::units::Extent;
use rig::{DRQ, ERROR, Ide, MEMORY_BYTES, READY, SECTORS, cmd, drive, ide, medium_error, one_drive, pattern};

/// Bus master status: ended with its table, with an interrupt.
const DONE: u8 = 0x04;

fn filled() -> Ide {
    let mut rig = one_drive(Cache::WriteBack);
    for (lba, sector) in rig.disks[0].bytes.chunks_exact_mut(512).enumerate() {
        sector.copy_from_slice(&pattern(lba as u8, 512));
    }
    rig
}

fn sectors(lba: u64, count: u64) -> Vec<u8> {
    (lba..lba + count).flat_map(|lba| pattern(lba as u8, 512)).collect()
}

#[test]
fn sectors_are_read_one_block_at_a_time_and_the_end_is_silent() {
    for opcode in [0x20, 0x21, 0x24] {
        let mut rig = filled();
        assert_eq!(rig.pio_in(cmd(opcode).lba(5).count(3), 512, 3), sectors(5, 3));
        assert_eq!((rig.status(), rig.edges), (READY, 3), "{opcode:#x}");
    }
}

#[test]
fn sectors_are_written_one_block_at_a_time_and_the_first_is_silent() {
    for opcode in [0x30, 0x31, 0x34] {
        let mut rig = one_drive(Cache::WriteBack);
        let data = pattern(3, 1536);
        assert_eq!(rig.pio_out(cmd(opcode).lba(7).count(3), 512, &data), READY);
        assert_eq!(rig.edges, 3, "{opcode:#x}");
        assert_eq!(&rig.disks[0].bytes[7 * 512..10 * 512], data);
        let extents: Vec<_> = rig.disks[0].log.iter().filter_map(Op::extent).collect();
        assert_eq!(extents, [7, 8, 9].map(|lba| Extent::new(lba, 1)));
    }
}

#[test]
fn multiple_moves_blocks_of_the_size_that_was_set_and_a_shorter_last_one() {
    let mut rig = filled();
    assert_eq!(rig.run(cmd(0xc6).count(4)), READY);
    for opcode in [0xc4, 0x29] {
        rig.issue(cmd(opcode).lba(100).count(6));
        assert_eq!(rig.status(), DRQ);
        let mut data = rig.read_words(2048);
        assert_eq!((rig.irq, rig.status()), (1, DRQ));
        data.extend(rig.read_words(1024));
        assert_eq!((rig.status(), data), (READY, sectors(100, 6)));
    }
    for opcode in [0xc5, 0x39, 0xce] {
        let data = pattern(opcode, 6 * 512);
        assert_eq!(rig.pio_out(cmd(opcode).lba(200).count(6), 2048, &data), READY, "{opcode:#x}");
        assert_eq!(&rig.disks[0].bytes[200 * 512..206 * 512], data);
    }
}

#[test]
fn the_data_register_is_16_and_32_bits_wide() {
    let mut rig = filled();
    rig.issue(cmd(0x20).lba(9).count(1));
    let mut data = Vec::new();
    data.extend((rig.read(0, 0, Width::Word) as u16).to_le_bytes());
    for _ in 0..127 {
        data.extend((rig.read(0, 0, Width::Dword) as u32).to_le_bytes());
    }
    assert_eq!(rig.status(), DRQ);
    let tail = rig.read(0, 0, Width::Dword) as u32;
    data.extend(&tail.to_le_bytes()[..2]);
    assert_eq!((data, tail >> 16, rig.status()), (sectors(9, 1), 0, READY));

    rig.issue(cmd(0x30).lba(11).count(1));
    for word in pattern(77, 512).chunks_exact(4) {
        let word = u32::from_le_bytes(word.try_into().unwrap());
        rig.write(0, 0, Width::Dword, word.into());
    }
    assert_eq!((rig.status(), rig.disks[0].sector(11)), (READY, &pattern(77, 512)[..]));
}

#[test]
fn a_count_of_zero_is_256_sectors() {
    let mut rig = filled();
    let data = rig.pio_in(cmd(0x20).lba(1), 512, 256);
    assert_eq!((data, rig.status()), (sectors(1, 256), READY));
}

/// host-std/tests/defects.md, 3: an address is multiplied only where that is checked, and no high address is a low one.
#[test]
fn addresses_beyond_the_end_are_refused_before_any_data() {
    let (last, huge) = (SECTORS - 1, 0xffff_ffff_ffff);
    for (opcode, lba, count) in [
        (0x20, last, 2),
        (0x30, SECTORS, 1),
        (0x24, huge, 1),
        (0x34, huge, 0),
        (0x40, last, 2),
        (0x42, huge, 0),
    ] {
        let mut rig = filled();
        rig.issue(cmd(opcode).lba(lba).count(count));
        assert_eq!((rig.status(), rig.error(), rig.irq), (ERROR, 0x10, 0), "{opcode:#x}");
        assert!(rig.disks[0].log.is_empty());
    }
    for (opcode, lba, count, to_memory) in
        [(0xc8, last, 2, true), (0x25, huge, 0, true), (0x35, SECTORS - 3, 4, false), (0x3d, huge, 1, false)]
    {
        let mut rig = filled();
        rig.dma(cmd(opcode).lba(lba).count(count), &[(0x1000, 0)], to_memory);
        assert_eq!(rig.error(), 0x10, "{opcode:#x}");
        assert!(rig.disks[0].log.is_empty());
    }
    let mut rig = filled();
    rig.disks[0].info.logical_block_bytes = 1 << 31;
    rig.disks[0].info.staging_bytes = u32::MAX;
    rig.issue(cmd(0x42).lba(1 << 42).count(1));
    assert_eq!((rig.status(), rig.error()), (ERROR, 0x10), "2^42 blocks of 2^22 sectors are not sector 0");
}

#[test]
fn verify_reads_the_medium_and_moves_nothing() {
    let mut rig = filled();
    assert_eq!(rig.run(cmd(0x42).lba(10).count(40)), READY);
    let extents: Vec<_> = rig.disks[0].log.iter().filter_map(Op::extent).collect();
    assert_eq!(extents, [Extent::new(10, 16), Extent::new(26, 16), Extent::new(42, 8)]);
    rig.disks[0].fail = Some(medium_error(12));
    assert_eq!((rig.run(cmd(0x40).lba(10).count(8)), rig.error()), (ERROR, 0x40));
    assert_eq!(rig.input(0, 3), 12, "the first bad sector");
}

#[test]
fn errors_say_what_and_where() {
    let mut rig = filled();
    rig.disks[0].fail = Some(medium_error(0x321));
    rig.issue(cmd(0x24).lba(0x320).count(4));
    assert_eq!((rig.status(), rig.error(), rig.lba48()), (ERROR, 0x40, 0x321), "UNC");

    rig.disks[0].fail = Some(medium_error(0x55));
    assert_eq!(rig.pio_out(cmd(0x30).lba(0x55).count(1), 512, &[0; 512]), ERROR);
    assert_eq!((rig.error(), rig.input(0, 3)), (0x04, 0x55));

    rig.disks[0].fail = Some(medium_error(0x234_5678));
    assert_eq!((rig.run(cmd(0xea)), rig.error(), rig.lba48()), (ERROR, 0x04, 0x234_5678), "FLUSH CACHE EXT");
    rig.disks[0].fail = Some(medium_error(0x234_5678));
    assert_eq!(rig.run(cmd(0xe7)), ERROR);
    assert_eq!([3, 4, 5, 6].map(|offset| rig.input(0, offset)), [0x78, 0x56, 0x34, 0xe2], "FLUSH CACHE");

    rig.disks[0].fail = Some(IoError::new(IoErrorKind::Latched));
    assert_eq!((rig.run(cmd(0xe7)), rig.error()), (ERROR | 0x20, 0x04), "device fault");
    assert_eq!(rig.run(cmd(0xe7)), READY, "status of a command is its own");
}

#[test]
fn a_storage_that_is_busy_is_asked_again() {
    let mut rig = filled();
    rig.disks[0].busy = true;
    rig.issue(cmd(0x20).lba(4).count(1));
    assert!(rig.busy());
    rig.disks[0].busy = false;
    rig.poll();
    assert_eq!((rig.status(), rig.read_words(512)), (DRQ, sectors(4, 1)));

    rig.issue(cmd(0x30).lba(5).count(1));
    rig.disks[0].busy = true;
    rig.write_words(&[9; 512]);
    rig.poll();
    assert!(rig.busy());
    rig.disks[0].busy = false;
    rig.poll();
    assert_eq!((rig.status(), rig.disks[0].sector(5)), (READY, &[9; 512][..]));

    rig.prds(0x100, &[(0x2000, 512)]);
    rig.disks[0].busy = true;
    rig.start_dma(cmd(0xc8).lba(6).count(1), 0x100, true);
    assert!(rig.busy());
    assert_eq!(rig.input(4, 2) & 1, 1);
    rig.disks[0].busy = false;
    rig.poll();
    assert_eq!((rig.stop_dma(), rig.status(), rig.peek(0x2000, 512)), (DONE, READY, sectors(6, 1)));
}

#[test]
fn blocks_of_4096_bytes_are_addressed_and_moved_as_such() {
    let mut rig = filled();
    rig.disks[0].info.logical_block_bytes = 4096;
    rig.disks[0].info.physical_block_bytes = 8192;
    let words = rig.identify(0x40);
    assert_eq!((words[106], words[117], words[118]), (0x7001, 2048, 0));
    assert_eq!((words[60], words[47]), ((SECTORS / 8) as u16, 0x8002));
    assert_eq!(rig.pio_in(cmd(0x20).lba(3).count(1), 4096, 1), sectors(24, 8));
    let (status, ended) = rig.dma(cmd(0xca).lba(2).count(2), &[(0x4000, 8192)], false);
    assert_eq!((status, ended, rig.disks[0].sector(31)), (DONE, READY, &[0; 512][..]));
    assert_eq!((rig.run(cmd(0x70).lba(SECTORS / 8)), rig.error()), (ERROR, 0x10));
    rig.disks[0].fail = Some(medium_error(24));
    assert_eq!((rig.run(cmd(0xe7)), rig.input(0, 3)), (ERROR, 3), "in logical blocks");
}

#[test]
fn dma_moves_data_both_ways_and_raises_the_interrupt_after_it() {
    for opcode in [0xc8, 0xc9, 0x25] {
        let mut rig = filled();
        let ended = rig.dma(cmd(opcode).lba(8).count(4), &[(0x1000, 2048)], true);
        assert_eq!((ended, rig.edges), ((DONE, READY), 1), "{opcode:#x}");
        assert_eq!(rig.peek(0x1000, 2048), sectors(8, 4));
        assert_eq!(rig.disks[0].log.len(), 1);
    }
    for opcode in [0xca, 0xcb, 0x35, 0x3d] {
        let mut rig = filled();
        rig.poke(0x3000, &pattern(opcode, 1024));
        assert_eq!(rig.dma(cmd(opcode).lba(8).count(2), &[(0x3000, 1024)], false), (DONE, READY));
        assert_eq!(&rig.disks[0].bytes[4096..5120], pattern(opcode, 1024), "{opcode:#x}");
    }
}

/// host-std/tests/defects.md, 19: a bus master that is off fetches nothing.
#[test]
fn dma_waits_for_start_and_for_the_storage() {
    let mut rig = filled();
    rig.prds(0x100, &[(0x1000, 512)]);
    rig.write(4, 4, Width::Dword, 0x100);
    rig.out(4, 0, 8);
    rig.disks[0].hold = true;
    rig.issue(cmd(0xc8).count(1));
    assert!(rig.busy() && rig.disks[0].log.is_empty(), "no Start yet");
    rig.out(4, 0, 9);
    rig.poll();
    assert!(rig.busy() && rig.irq == 0);
    assert_eq!(rig.input(4, 2) & 7, 1, "active");
    let memory = rig.memory;
    rig.disks[0].release(&memory);
    rig.poll();
    assert_eq!((rig.irq, rig.stop_dma(), rig.status()), (1, DONE, READY));
}

#[test]
fn a_scattered_table_becomes_segments_and_neighbours_become_one() {
    let mut rig = filled();
    let regions = [(0x1000, 512), (0x1200, 510), (0x13fe, 2), (0x9000, 1022), (0x8000, 2)];
    assert_eq!(rig.dma(cmd(0xc8).lba(1).count(4), &regions, true), (DONE, READY));
    let mut data = rig.peek(0x1000, 1024);
    data.extend(rig.peek(0x9000, 1022));
    data.extend(rig.peek(0x8000, 2));
    assert_eq!((data, rig.disks[0].log.len()), (sectors(1, 4), 1));
}

#[test]
fn a_length_of_zero_is_64_kib_and_bit_0_is_ignored() {
    let mut rig = filled();
    assert_eq!(rig.dma(cmd(0xc8).count(128), &[(0x1_0001, 0)], true), (DONE, READY));
    assert_eq!(rig.peek(0x1_0000, 65_536), sectors(0, 128));
    assert_eq!(rig.dma(cmd(0xc8).count(1), &[(0x8000, 511), (0x9000, 3)], true), (DONE, READY));
    assert_eq!(
        (rig.peek(0x8000, 510), rig.peek(0x9000, 2)),
        (sectors(0, 1)[..510].into(), sectors(0, 1)[510..].into())
    );
}

#[test]
fn a_sector_in_more_pieces_than_an_operation_holds_goes_through_the_staging_buffer() {
    let mut rig = filled();
    let regions: Vec<_> = (0..512).map(|n| (0x1_0000 + n * 4, 2)).collect();
    assert_eq!(rig.dma(cmd(0xc8).lba(3).count(2), &regions, true), (DONE, READY));
    let bytes: Vec<_> = (0..512_u64).flat_map(|n| rig.peek(0x1_0000 + n * 4, 2)).collect();
    assert_eq!((bytes, rig.disks[0].log.len()), (sectors(3, 2), 2));
    assert_eq!(rig.dma(cmd(0xca).lba(9).count(2), &regions, false), (DONE, READY));
    assert_eq!(&rig.disks[0].bytes[9 * 512..11 * 512], sectors(3, 2));
}

#[test]
fn a_long_transfer_goes_in_operations_that_the_storage_takes() {
    let mut rig = filled();
    rig.disks[0].info.transfer_max_bytes = 4096;
    rig.disks[0].info.segments_max = 2;
    let regions: Vec<_> = (0..40).map(|n| (0x1_0000 + n * 2048, 1024)).collect();
    assert_eq!(rig.dma(cmd(0x25).lba(50).count(80), &regions, true), (DONE, READY));
    let bytes: Vec<_> = (0..40_u64).flat_map(|n| rig.peek(0x1_0000 + n * 2048, 1024)).collect();
    assert_eq!((bytes, rig.disks[0].log.len()), (sectors(50, 80), 20));
}

#[test]
fn a_table_longer_than_the_transfer_stays_active() {
    let mut rig = filled();
    assert_eq!(rig.dma(cmd(0xc8).count(1), &[(0x1000, 1024)], true), (0x05, READY));
    assert_eq!(rig.peek(0x1200, 512), [0; 512]);
}

#[test]
fn a_table_ends_at_the_64_kib_boundary() {
    let mut rig = filled();
    let regions = [(0x1000, 512), (0x2000, 512), (0x3000, 512)];
    rig.prds(0x1_fff0, &regions);
    rig.start_dma(cmd(0xc8).count(3), 0x1_fff0, true);
    assert_eq!((rig.stop_dma(), rig.status()), (0x00, ERROR), "two entries fit before the boundary");
    assert_eq!((rig.peek(0x3000, 512), rig.irq), (vec![0; 512], 0));
}

#[test]
fn what_is_not_memory_is_an_error_of_the_bus_master() {
    let end = MEMORY_BYTES as u32;
    // Past the end of memory, at a device's registers so to speak, and past the end of 32 bits.
    for base in [end, end - 512, 0xffff_fe00, 0xffff_ff00] {
        for (opcode, to_memory) in [(0xc8, true), (0xca, false)] {
            let mut rig = filled();
            assert_eq!(rig.dma(cmd(opcode).count(2), &[(base, 1024)], to_memory), (0x06, ERROR), "{base:#x}");
            assert!(rig.disks[0].log.is_empty());
            assert_eq!(rig.dma(cmd(opcode).count(2), &[(0x1000, 1024)], to_memory), (DONE, READY));
        }
    }
    let mut rig = filled();
    rig.start_dma(cmd(0xc8).count(1), end + 0x100, true);
    assert_eq!((rig.stop_dma(), rig.status()), (0x06, ERROR), "nor is the table");
}

#[test]
fn a_bus_master_that_goes_the_other_way_is_an_error() {
    let mut rig = filled();
    assert_eq!(rig.dma(cmd(0xc8).count(1), &[(0x1000, 512)], false), (0x06, ERROR));
    assert_eq!(rig.dma(cmd(0xca).count(1), &[(0x1000, 512)], true), (0x06, ERROR));
    assert!(rig.disks[0].log.is_empty());
}

#[test]
fn a_bus_master_started_without_a_dma_command_does_nothing() {
    let mut rig = filled();
    rig.prds(0x100, &[(0x1000, 512)]);
    rig.start_dma(cmd(0x20).lba(2).count(1), 0x100, true);
    assert_eq!((rig.status(), rig.read_words(512)), (DRQ, sectors(2, 1)));
    assert_eq!((rig.stop_dma() & 1, rig.peek(0x1000, 512)), (1, vec![0; 512]));
    rig.start_dma(cmd(0xe7), 0x100, true);
    assert_eq!(rig.status(), READY);
    rig.stop_dma();
    rig.poll();
    assert_eq!(rig.status(), READY);
}

#[test]
fn the_bus_master_registers_read_back_and_clear_by_ones() {
    let mut rig = ide([drive(0), None, drive(2), None], Cache::WriteBack);
    for base in [0, 8] {
        rig.write(4, base + 4, Width::Dword, 0x1234_5677);
        assert_eq!(rig.read(4, base + 4, Width::Dword), 0x1234_5674, "bits 1:0 are zero");
        rig.write(4, base + 6, Width::Word, 0xabcd);
        assert_eq!(rig.read(4, base + 4, Width::Dword), 0xabcd_5674);
        rig.out(4, base + 2, 0x60);
        assert_eq!(rig.input(4, base + 2), 0x60);
        assert_eq!(rig.input(4, base + 1), 0);
    }
    rig.issue(cmd(0xe7));
    assert_eq!((rig.input(4, 2), rig.input(4, 10)), (0x64, 0x60), "an interrupt of the primary channel");
    rig.out(4, 2, 0x64);
    assert_eq!(rig.input(4, 2), 0x60);
    assert_eq!(rig.read(4, 16, Width::Dword), 0xffff_ffff);
}
