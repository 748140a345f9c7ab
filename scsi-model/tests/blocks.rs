//! Commands that move blocks.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "tests"
)]

mod rig;

use blk_core::op::Op;
use blk_core::storage::{Cache, IoError, IoErrorKind};
use blk_core::units::{Extent, Lba};
use rig::{BLOCK, BUFFER, Disk, Rig};
use scsi_model::Outcome;

fn read(start: u64, sectors: u64) -> Op {
    Op::Read { extent: Extent::new(start, sectors) }
}

fn hold(start: u64, sectors: u64) -> Op {
    Op::Hold { extent: Extent::new(start, sectors) }
}

fn write(start: u64, sectors: u64, fua: bool) -> Op {
    Op::Write { extent: Extent::new(start, sectors), fua }
}

#[test]
fn reads_and_writes_of_every_length_name_the_same_blocks() {
    let mut rig = Rig::new();
    let reads: [&[u8]; 4] = [
        &[0x08, 0, 0, 5, 2, 0],
        &[0x28, 0, 0, 0, 0, 5, 0, 0, 2, 0],
        &[0xa8, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 2, 0, 0],
    ];
    for cdb in reads {
        assert_eq!(rig.data_in(cdb, 2 * BLOCK), rig.disk.bytes[5 * BLOCK..7 * BLOCK]);
        assert_eq!(rig.log(), [read(5, 2)]);
    }
    for (value, cdb) in (1..).zip(reads) {
        let mut cdb = cdb.to_vec();
        cdb[0] += 2;
        rig.data_out(&cdb, &[value; 2 * BLOCK]);
        assert_eq!(rig.log(), [write(5, 2, false)]);
        assert_eq!(rig.sector(6), [value; BLOCK]);
    }
}

#[test]
fn a_length_of_0_is_256_blocks_in_the_6_byte_form_and_none_in_the_others() {
    let mut rig = Rig::new();
    rig.disk.info.transfer_max_bytes = 1 << 20;
    assert_eq!(rig.outcome(&[0x08, 0, 0, 0, 0, 0], &[], 255 * 512), Outcome::Overrun);
    rig.transport.piece = 1 << 16;
    rig.enqueue(0, scsi_model::Attribute::Simple, &[0x08, 0, 0, 0, 0, 0], &[], 256 * 512);
    assert_eq!(rig.poll()[0].transferred_bytes, 256 * 512);
    rig.log();
    assert_eq!(rig.data_in(&[0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0), []);
    assert_eq!(rig.log(), []);
    assert_eq!(
        rig.sense(&[0x28, 0, 0, 0, 0x10, 0, 0, 0, 0, 0], &[]),
        (5, 0x2100),
        "the range is checked all the same"
    );
}

/// OpenVMM 4046: first block + count wraps.
#[test]
fn the_last_block_is_in_range_and_nothing_beyond_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.data_in(&[0x28, 0, 0, 0, 0x07, 0xff, 0, 0, 1, 0], BLOCK).len(), BLOCK);
    assert_eq!(rig.sense(&[0x28, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0], &[]), (5, 0x2100));
    assert_eq!(rig.sense(&[0x28, 0, 0, 0, 0x08, 0, 0, 0, 1, 0], &[]), (5, 0x2100));
    let wraps = [0x88, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 0, 0];
    assert_eq!(rig.sense(&wraps, &[]), (5, 0x2100));
}

/// host-std/tests/defects.md, 3.
#[test]
fn block_2_to_the_55_is_not_block_0() {
    let mut rig = Rig::new();
    let cdb = [0x8a, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(rig.sense(&cdb, &[1; BLOCK]), (5, 0x2100));
    let mut disk = Disk::new(Cache::WriteBack);
    disk.info.logical_block_bytes = 4096;
    let mut rig = Rig::on(disk);
    let cdb = [0x8a, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    assert_eq!(rig.sense(&cdb, &[1; 4096]), (5, 0x2100), "2^61 blocks of 8 sectors wrap");
    assert_eq!(rig.log(), []);
}

#[test]
fn larger_logical_blocks_are_multiplied_into_sectors() {
    let mut disk = Disk::new(Cache::WriteBack);
    disk.info.logical_block_bytes = 4096;
    let mut rig = Rig::on(disk);
    rig.data_out(&[0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0], &[7; 4096]);
    assert_eq!(rig.log(), [write(24, 8, false)]);
    assert_eq!(rig.data_in(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), [0, 0, 0, 255, 0, 0, 16, 0]);
    let error = IoError { kind: IoErrorKind::Medium, lba: Some(Lba(30)) };
    rig.disk.errors.push_back(Some(error));
    let sense = rig.sense_bytes(&[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0], &[]);
    assert_eq!((sense[0], sense[2], sense[12], &sense[3..7]), (0xf0, 3, 0x11, &[0, 0, 0, 3][..]));
}

#[test]
fn scattered_buffers_are_moved_in_chunks_of_whole_blocks() {
    let mut rig = Rig::new();
    rig.transport.piece = 100;
    let data: Vec<u8> = (0..16 * BLOCK).map(|at| (at % 251) as u8).collect();
    rig.data_out(&[0x2a, 0, 0, 0, 0, 8, 0, 0, 16, 0], &data);
    assert_eq!(rig.disk.bytes[8 * BLOCK..24 * BLOCK], data);
    assert!(rig.log().len() > 4, "16 segments of 100 bytes are 3 blocks");
    assert_eq!(rig.data_in(&[0x28, 0, 0, 0, 0, 8, 0, 0, 16, 0], 16 * BLOCK), data);
    rig.transport.piece = 20;
    let cdb = [0x28, 0, 0, 0, 0, 8, 0, 0, 1, 0];
    assert_eq!(rig.sense(&cdb, &[]), (0xb, 0x4b00), "a block in 26 pieces is more than the storage takes");
}

#[test]
fn a_transfer_is_at_most_as_long_as_page_b0_says() {
    let mut rig = Rig::new();
    let page = rig.data_in(&[0x12, 1, 0xb0, 0, 64, 0], 64);
    let max = u32::from_be_bytes(page[8..12].try_into().unwrap());
    assert_eq!(max, 128);
    let sense = rig.sense_bytes(&[0x28, 0, 0, 0, 0, 0, 0, 0, 129, 0], &[]);
    assert_eq!((sense[2], sense[12], &sense[15..18]), (5, 0x24, &[0xc0, 0, 7][..]));
}

/// host-std/tests/defects.md, 1: FUA reaches the storage. It does so whatever DPOFUA says, in every form that has the bit.
#[test]
fn fua_reaches_the_storage() {
    let mut rig = Rig::new();
    rig.data_out(&[0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0], &[1; BLOCK]);
    rig.data_out(&[0xaa, 0x08, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[1; BLOCK]);
    rig.data_out(&[0x8a, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], &[1; BLOCK]);
    assert_eq!(rig.log(), [write(0, 1, true); 3]);
    rig.disk.info.fua = false;
    rig.data_out(&[0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0], &[1; BLOCK]);
    assert_eq!(rig.log(), [write(0, 1, false), Op::Flush]);
    rig.data_in(&[0x28, 0x08, 0, 0, 0, 0, 0, 0, 1, 0], BLOCK);
    assert_eq!(rig.log(), [Op::Flush, read(0, 1)], "what a READ with FUA returns is stable");
}

/// host-std/tests/defects.md, 7: the flush that makes a write stable fails, and that is how the write ends.
#[test]
fn a_failed_sync_of_a_write_is_its_error_and_ends_it() {
    let fua: &[u8] = &[0x2a, 0x08, 0, 0, 0, 0, 0, 0, 1, 0];
    let plain: &[u8] = &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for (cdb, write_cache) in [(fua, 0x04), (plain, 0)] {
        let mut rig = Rig::new();
        rig.disk.info.fua = false;
        let list = [&[0, 0, 0, 0, 0x08, 0x12, write_cache][..], &[0; 17]].concat();
        rig.data_out(&[0x15, 0x10, 0, 0, 24, 0], &list);
        rig.log();
        rig.disk.errors.extend([None, Some(IoErrorKind::Medium.into())]);
        assert_eq!(rig.sense(cdb, &[1; BLOCK]), (3, 0x0c00));
        assert_eq!(rig.log(), [write(0, 1, false), Op::Flush]);
        assert!(rig.unit.is_idle());
    }
}

/// host-std/tests/defects.md, 8.
#[test]
fn write_and_verify_writes_and_verifies() {
    let mut rig = Rig::new();
    rig.transport.piece = 300;
    let data: Vec<u8> = (0..12 * BLOCK).map(|at| (at % 253) as u8).collect();
    let cdbs: [&[u8]; 3] = [
        &[0x2e, 0, 0, 0, 0, 4, 0, 0, 12, 0],
        &[0xae, 0x02, 0, 0, 0, 4, 0, 0, 0, 12, 0, 0],
        &[0x8e, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 12, 0, 0],
    ];
    for cdb in cdbs {
        rig.disk.bytes.fill(0);
        rig.data_out(cdb, &data);
        assert_eq!(rig.disk.bytes[4 * BLOCK..16 * BLOCK], data);
        let log = rig.log();
        let pairs = log.chunks(2).all(|pair| matches!(pair, [Op::Write { fua: true, .. }, Op::Read { .. }]));
        assert!(pairs, "written with FUA, and each chunk read back: {log:?}");
        rig.disk.corrupt = true;
        let sense = rig.sense_bytes(cdb, &data);
        assert_eq!((sense[2], sense[12]), (0xe, 0x1d));
        rig.log();
    }
}

#[test]
fn verify_compares_as_bytchk_says_and_names_the_block_that_differs() {
    let mut rig = Rig::new();
    let medium = rig.disk.bytes[10 * BLOCK..30 * BLOCK].to_vec();
    assert_eq!(rig.outcome(&[0x2f, 0, 0, 0, 0, 10, 0, 0, 20, 0], &[], 0), Outcome::Good);
    assert_eq!(
        rig.log()[..2],
        [Op::Flush, read(10, 8)],
        "cached blocks are written before the medium is read"
    );
    rig.data_out(&[0x2f, 0x02, 0, 0, 0, 10, 0, 0, 20, 0], &medium);
    let mut other = medium;
    other[17 * BLOCK + 3] ^= 1;
    let sense = rig.sense_bytes(&[0xaf, 0x02, 0, 0, 0, 10, 0, 0, 0, 20, 0, 0], &other);
    assert_eq!((sense[0], sense[2], sense[12], sense[6]), (0xf0, 0xe, 0x1d, 27));
    rig.disk.bytes[10 * BLOCK..20 * BLOCK].fill(9);
    let one_block = [0x8f, 0x06, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 10, 0, 0];
    rig.data_out(&one_block, &[9; BLOCK]);
    rig.disk.bytes[19 * BLOCK] = 8;
    assert_eq!(rig.sense_bytes(&one_block, &[9; BLOCK])[6], 19);
    assert_eq!(rig.sense(&[0x2f, 0x04, 0, 0, 0, 10, 0, 0, 1, 0], &[]), (5, 0x2400), "BYTCHK 10b");
    assert_eq!(rig.outcome(&[0x2f, 0x02, 0, 0, 0, 10, 0, 0, 2, 0], &[9; BLOCK], 0), Outcome::Overrun);
}

#[test]
fn compare_and_write_writes_only_where_all_of_it_matches() {
    let mut rig = Rig::new();
    let old = rig.disk.bytes[3 * BLOCK..5 * BLOCK].to_vec();
    let cdb = [0x89, 0x08, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0];
    rig.data_out(&cdb, &[&old[..], &[0x55; 2 * BLOCK]].concat());
    assert_eq!(rig.log(), [hold(3, 2), read(3, 2), write(3, 2, true)]);
    assert!(rig.disk.holds.is_empty());
    assert_eq!(rig.sector(4), [0x55; BLOCK]);
    let sense = rig.sense_bytes(&cdb, &[&[0x55; BLOCK + 7][..], &[0; BLOCK - 7], &[1; 2 * BLOCK]].concat());
    assert_eq!(
        (sense[2], sense[12], &sense[3..7]),
        (0xe, 0x1d, &[0, 0, 2, 7][..]),
        "offset of the first difference"
    );
    assert_eq!(rig.log(), [hold(3, 2), read(3, 2)]);
    assert!(rig.disk.holds.is_empty(), "it ends with the command, however that ends");
    rig.disk.info.holds = false;
    assert_eq!(rig.sense(&cdb, &[0; 4 * BLOCK]), (5, 0x2000), "others cannot be kept out");
    rig.disk.info.holds = true;
    assert_eq!(rig.sense(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0], &[]), (5, 0x2400));
}

/// A device that is killed after the write of a COMPARE AND WRITE, and before its answer, has written what would be compared.
#[test]
fn a_compare_and_write_that_had_compared_may_find_what_it_wrote() {
    let cdb = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0];
    let mut rig = Rig::new();
    let data = [rig.sector(3), vec![0x55; BLOCK]].concat();
    assert_eq!(rig.outcome(&cdb, &data, 0), Outcome::Good);
    assert_eq!(rig.transport.noted, [0]);
    let mut later = Rig::on(rig.disk);
    later.transport.begun = rig.transport.noted;
    assert_eq!(later.outcome(&cdb, &data, 0), Outcome::Good);
    assert_eq!(later.sector(3), [0x55; BLOCK]);
    assert_eq!(later.log().last(), Some(&write(3, 1, false)));
    later.transport.noted.clear();
    later.disk.bytes[3 * BLOCK] = 7;
    assert_eq!(later.sense(&cdb, &data), (0xe, 0x1d00), "somebody else has written since");
    later.disk.bytes[3 * BLOCK] = 0x55;
    later.transport.begun.clear();
    assert_eq!(later.sense(&cdb, &data), (0xe, 0x1d00), "a new one does compare");
    assert_eq!(later.transport.noted, [0_u64; 0], "what miscompares does not write");
}

#[test]
fn orwrite_sets_bits_and_clears_none() {
    let mut rig = Rig::new();
    rig.disk.info.staging_bytes = 1024;
    let before: Vec<u8> = (5..8).flat_map(|lba| rig.sector(lba)).collect();
    let data: Vec<u8> = (0..3 * BLOCK).map(|at| (at * 7) as u8).collect();
    let expected: Vec<u8> = before.iter().zip(&data).map(|(a, b)| a | b).collect();
    let cdb = [0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0];
    rig.log();
    rig.data_out(&cdb, &data);
    assert_eq!(rig.log(), [hold(5, 3), read(5, 2), write(5, 2, true), read(7, 1), write(7, 1, true)]);
    assert!(rig.disk.holds.is_empty());
    let after: Vec<u8> = (5..8).flat_map(|lba| rig.sector(lba)).collect();
    assert_eq!(after, expected);
    rig.data_out(&cdb, &data);
    assert_eq!(
        (5..8).flat_map(|lba| rig.sector(lba)).collect::<Vec<u8>>(),
        expected,
        "once more is the same"
    );
    assert_eq!(rig.outcome(&cdb, &data[1..], 0), Outcome::Overrun);
}

/// SBC-3, GET LBA STATUS: 0 says mapped or unknown, and is true of every block of every storage.
#[test]
fn the_status_of_a_block_is_mapped_or_unknown() {
    let mut rig = Rig::new();
    let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 7, 0xfe, 0, 0, 0, 255, 0, 0];
    let data = rig.data_in(&cdb, 255);
    assert_eq!(data, [0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0xfe, 0, 0, 0, 2, 0, 0, 0, 0]);
    let beyond = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 255, 0, 0];
    assert_eq!(rig.sense(&beyond, &[]), (5, 0x2100));
}

/// host-std/tests/defects.md, 12a: bit 3 of WRITE SAME is UNMAP, not FUA.
#[test]
fn write_same_of_zeroes_may_unmap_and_is_no_fua() {
    let mut rig = Rig::new();
    let extent = Extent::new(8, 16);
    rig.data_out(&[0x41, 0x08, 0, 0, 0, 8, 0, 0, 16, 0], &[0; BLOCK]);
    assert_eq!(rig.log(), [Op::WriteZeroes { extent, may_unmap: true }]);
    let with_ndob = [0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0];
    rig.data_out(&with_ndob, &[]);
    assert_eq!(rig.log(), [Op::WriteZeroes { extent, may_unmap: false }]);
    assert_eq!(rig.sense(&[0x41, 0x10, 0, 0, 0, 8, 0, 0, 16, 0], &[0; BLOCK]), (5, 0x2400), "ANCHOR");
    assert_eq!(
        rig.sense(&[0x41, 0x01, 0, 0, 0, 8, 0, 0, 16, 0], &[0; BLOCK]),
        (5, 0x2400),
        "no NDOB in (10)"
    );
    assert_eq!(rig.sense(&[0x41, 0, 0, 0, 0, 8, 0, 0, 0, 0], &[0; BLOCK]), (5, 0x2400), "WSNZ");
    rig.disk.info.discard = false;
    assert_eq!(rig.sense(&[0x41, 0x08, 0, 0, 0, 8, 0, 0, 16, 0], &[0; BLOCK]), (5, 0x2400), "LBPWS10=0");
}

/// cloud-hypervisor 7873: zeroes past the end; OpenVMM 4046: first block + count wraps.
#[test]
fn write_same_past_the_end_is_out_of_range() {
    let mut rig = Rig::new();
    for data in [[0; BLOCK], [5; BLOCK]] {
        assert_eq!(rig.sense(&[0x41, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0], &data), (5, 0x2100));
        assert_eq!(rig.sense(&[0x41, 0x08, 0, 0, 0x08, 0, 0, 0, 1, 0], &data), (5, 0x2100));
        let wraps = [0x93, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 2, 0, 0];
        assert_eq!(rig.sense(&wraps, &data), (5, 0x2100));
    }
    assert_eq!(rig.log(), []);
}

#[test]
fn write_same_repeats_a_pattern_through_the_staging_buffer() {
    let mut rig = Rig::new();
    let pattern: Vec<u8> = (0..BLOCK).map(|at| (at % 7) as u8).collect();
    rig.data_out(&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 20, 0, 0], &pattern);
    assert_eq!(rig.log(), [write(8, 8, false), write(16, 8, false), write(24, 4, false)]);
    assert!((8..28).all(|lba| rig.sector(lba) == pattern));
    assert_eq!((rig.sector(7)[0], rig.sector(28)[0]), (7, 28));
    rig.disk.info.staging_bytes = 0;
    assert_eq!(rig.sense(&[0x93, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 20, 0, 0], &pattern), (4, 0x4400));
}

fn unmap_list(descriptors: &[(u64, u32)]) -> Vec<u8> {
    let bytes = descriptors.len() * 16;
    let mut list = Vec::new();
    list.extend(((bytes + 6) as u16).to_be_bytes());
    list.extend((bytes as u16).to_be_bytes());
    list.extend([0; 4]);
    for (lba, blocks) in descriptors {
        list.extend(lba.to_be_bytes());
        list.extend(blocks.to_be_bytes());
        list.extend([0; 4]);
    }
    list
}

fn unmap(list_bytes: usize) -> [u8; 10] {
    [0x42, 0, 0, 0, 0, 0, 0, (list_bytes >> 8) as u8, list_bytes as u8, 0]
}

/// cloud-hypervisor 7873: a discard past the end.
#[test]
fn unmap_checks_every_descriptor_before_it_does_one() {
    let mut rig = Rig::new();
    let list = unmap_list(&[(8, 8), (100, 0), (64, 16)]);
    rig.data_out(&unmap(list.len()), &list);
    let mut done = rig.log();
    done.sort_by_key(|op| op.extent().unwrap().start);
    assert_eq!(done, [(8, 8), (64, 16)].map(|(start, n)| Op::Discard { extent: Extent::new(start, n) }));
    let list = unmap_list(&[(8, 8), (2047, 2)]);
    assert_eq!(rig.sense(&unmap(list.len()), &list), (5, 0x2100));
    let list = unmap_list(&[(1, 1); 9]);
    assert_eq!(rig.sense(&unmap(list.len()), &list), (5, 0x2600), "more than page B0h allows");
    assert_eq!(rig.log(), []);
}

/// host-std/tests/defects.md, 20: a list that is changed between its check and its use.
#[test]
fn an_unmap_list_that_changes_after_its_check_is_not_read_again() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    let list = unmap_list(&[(8, 8), (64, 16)]);
    rig.enqueue(1, scsi_model::Attribute::Simple, &unmap(list.len()), &list, 0);
    assert_eq!(rig.tags(), []);
    rig.memory.0.borrow_mut()[BUFFER..][..list.len()].fill(0xff);
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.tags(), []);
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.poll()[0].outcome, Outcome::Good);
    let mut done = rig.log();
    done.sort_by_key(|op| op.extent().unwrap().start);
    assert_eq!(done, [(8, 8), (64, 16)].map(|(start, n)| Op::Discard { extent: Extent::new(start, n) }));
}

/// All but one descriptor wait in the staging buffer: page B0h says how many may come.
#[test]
fn without_a_staging_buffer_unmap_takes_one_descriptor() {
    for (staging_bytes, most) in [(0, 1), (512, 8)] {
        let mut disk = Disk::new(Cache::WriteBack);
        disk.info.staging_bytes = staging_bytes;
        let mut rig = Rig::on(disk);
        assert_eq!(rig.data_in(&[0x12, 1, 0xb0, 0, 64, 0], 64)[24..28], u32::to_be_bytes(most));
        let pairs: Vec<(u64, u32)> = (0..u64::from(most)).map(|index| (8 * index, 8)).collect();
        let list = unmap_list(&pairs);
        rig.data_out(&unmap(list.len()), &list);
        assert_eq!(rig.log().len(), pairs.len());
        let list = unmap_list(&[&pairs[..], &[(80, 8)]].concat());
        assert_eq!(rig.sense(&unmap(list.len()), &list), (5, 0x2600));
        assert_eq!(rig.log(), []);
    }
}

#[test]
fn unmap_obeys_the_lengths_of_its_parameter_list() {
    let mut rig = Rig::new();
    let list = unmap_list(&[(8, 8), (64, 16)]);
    rig.data_out(&unmap(0), &[]);
    rig.data_out(&unmap(8), &[0; 8]);
    assert_eq!(rig.sense(&unmap(7), &list[..7]), (5, 0x1a00));
    assert_eq!(rig.log(), []);
    rig.data_out(&unmap(30), &list[..30]);
    assert_eq!(rig.log(), [Op::Discard { extent: Extent::new(8, 8) }], "the last is cut off, and ignored");
    assert_eq!(rig.outcome(&unmap(40), &list[..24], 0), Outcome::Overrun);
    let mut anchor = unmap(40);
    anchor[1] = 1;
    assert_eq!(rig.sense(&anchor, &list), (5, 0x2400));
    rig.disk.info.discard = false;
    assert_eq!(rig.sense(&unmap(40), &list), (5, 0x2000));
}

#[test]
fn synchronize_cache_flushes_and_checks_its_range() {
    let mut rig = Rig::new();
    rig.data_out(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    rig.data_out(&[0x35, 0x02, 0, 0, 0x07, 0xff, 0, 0, 1, 0], &[]);
    rig.data_out(&[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(rig.log(), [Op::Flush; 3]);
    assert_eq!(rig.sense(&[0x35, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0], &[]), (5, 0x2100));
    rig.disk.errors.push_back(Some(IoError { kind: IoErrorKind::Medium, lba: Some(Lba(77)) }));
    let sense = rig.sense_bytes(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!((sense[0], sense[2], sense[12], sense[6]), (0xf0, 3, 0x0c, 77));
}

/// host-std/tests/defects.md, 12.
#[test]
fn a_read_only_disk_flushes_and_refuses_writes() {
    let mut disk = Disk::new(Cache::WriteBack);
    disk.info.read_only = true;
    let mut rig = Rig::on(disk);
    rig.data_out(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(rig.log(), [Op::Flush]);
    let list = unmap_list(&[(8, 8)]);
    let writes: [(&[u8], &[u8]); 4] = [
        (&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; BLOCK]),
        (&[0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; BLOCK]),
        (&[0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; BLOCK]),
        (&unmap(24), &list),
    ];
    for (cdb, data) in writes {
        assert_eq!(rig.sense(cdb, data), (7, 0x2700));
    }
    assert_eq!(rig.log(), []);
    assert_eq!(rig.data_in(&[0x1a, 0x08, 0x08, 0, 24, 0], 24)[2], 0x90, "WP and DPOFUA");
}

#[test]
fn each_error_of_the_storage_has_its_sense() {
    let mut rig = Rig::new();
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let expected = [
        (IoErrorKind::Medium, (3, 0x0c00)),
        (IoErrorKind::NoSpace, (7, 0x2707)),
        (IoErrorKind::ReadOnly, (7, 0x2700)),
        (IoErrorKind::OutOfRange, (5, 0x2100)),
        (IoErrorKind::Memory, (0xb, 0x4b00)),
        (IoErrorKind::Latched, (4, 0x4400)),
        (IoErrorKind::Unsupported, (4, 0x4400)),
    ];
    for (kind, sense) in expected {
        rig.disk.errors.push_back(Some(kind.into()));
        assert_eq!(rig.sense(&write, &[0; BLOCK]), sense, "{kind:?}");
    }
}

#[test]
fn a_read_with_fua_that_meets_the_latch_reports_a_deferred_error() {
    let mut rig = Rig::new();
    rig.disk.errors.push_back(Some(IoErrorKind::Latched.into()));
    let sense = rig.sense_bytes(&[0x28, 0x08, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
    assert_eq!((sense[0], sense[2]), (0x71, 4));
}
