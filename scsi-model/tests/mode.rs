//! Mode parameters, and the write cache that they switch.

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
use blk_core::storage::{Cache, IoErrorKind};
use rig::{BLOCK, Disk, Rig};
use scsi_model::{Attribute, Outcome, ResetCause};

/// MODE SELECT(6) of the caching page.
fn caching(flags: u8) -> ([u8; 6], Vec<u8>) {
    let mut list = vec![0; 24];
    list[4..7].copy_from_slice(&[0x08, 0x12, flags]);
    ([0x15, 0x10, 0, 0, 24, 0], list)
}

fn control(flags: u8) -> Vec<u8> {
    let mut list = vec![0; 16];
    list[4..8].copy_from_slice(&[0x0a, 0x0a, flags, 0x10]);
    list
}

fn wce(rig: &mut Rig) -> bool {
    let on = rig.data_in(&[0x1a, 0x08, 0x08, 0, 24, 0], 24)[6] & 0x04 != 0;
    assert_eq!(rig.unit.write_cache(), on);
    on
}

#[test]
fn every_page_is_there_with_its_header_and_block_descriptor() {
    let mut rig = Rig::new();
    let all = rig.data_in(&[0x1a, 0, 0x3f, 0, 255, 0], 255);
    assert_eq!((all.len(), all[0], all[2], all[3]), (68, 67, 0x10, 8), "DPOFUA");
    assert_eq!(all[4..12], [0, 0, 8, 0, 0, 0, 2, 0]);
    assert_eq!([all[12], all[24], all[44], all[56]], [0x01, 0x08, 0x0a, 0x1c]);
    assert_eq!((all[26], all[46], all[47], all[58]), (0x04, 0x02, 0x10, 0x08));
    assert_eq!(rig.data_in(&[0x1a, 0x08, 0x3f, 0xff, 255, 0], 255).len(), 60, "DBD");
    let ten = rig.data_in(&[0x5a, 0x10, 0x08, 0, 0, 0, 0, 0, 255, 0], 255);
    assert_eq!((ten[1], ten[3], ten[4], ten[7]), (42, 0x10, 1, 16), "LONGLBA");
    assert_eq!(ten[8..24], [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    for page in [0x00, 0x02, 0x19, 0x3e] {
        assert_eq!(rig.sense(&[0x1a, 0x08, page, 0, 255, 0], &[]), (5, 0x2400), "{page:x}");
    }
    assert_eq!(rig.sense(&[0x1a, 0x08, 0x08, 1, 255, 0], &[]), (5, 0x2400), "a subpage");
    assert_eq!(rig.sense(&[0x1a, 0x08, 0xc8, 0, 255, 0], &[]), (5, 0x3900), "saved values");
}

#[test]
fn the_changeable_bits_are_those_that_mode_select_changes() {
    let mut rig = Rig::new();
    let masks = rig.data_in(&[0x1a, 0x08, 0x7f, 0, 255, 0], 255);
    let set: Vec<_> = masks[4..]
        .iter()
        .enumerate()
        .filter(|(at, byte)| **byte != 0 && ![0, 1, 12, 13, 32, 33, 44, 45].contains(at))
        .collect();
    assert_eq!(set, [(14, &0x04), (34, &0x04)], "WCE and D_SENSE");
    let (cdb, mut list) = caching(0x05);
    assert_eq!(rig.sense_bytes(&cdb, &list)[12..18], [0x26, 0, 0, 0x88, 0, 6], "RCD");
    list[6] = 0x04;
    list[23] = 0x80;
    assert_eq!(rig.sense_bytes(&cdb, &list)[12..18], [0x26, 0, 0, 0x8f, 0, 23]);
}

/// host-std/tests/defects.md, 11.
#[test]
fn turning_the_cache_off_flushes_and_makes_writes_stable() {
    let mut disk = Disk::new(Cache::WriteBack);
    disk.info.fua = false;
    let mut rig = Rig::on(disk);
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert!(wce(&mut rig));
    let (cdb, list) = caching(0);
    rig.data_out(&cdb, &list);
    assert_eq!(rig.log(), [Op::Flush]);
    assert!(!wce(&mut rig));
    rig.data_out(&cdb, &list);
    assert_eq!(rig.log(), [Op::Flush], "turned off once more, it still asks whether anything was lost");
    rig.data_out(&write, &[1; BLOCK]);
    assert!(matches!(rig.log()[..], [Op::Write { .. }, Op::Flush]));
    rig.data_out(&[0x93, 0x01, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0], &[]);
    assert!(matches!(rig.log()[..], [Op::WriteZeroes { .. }, Op::Flush]));
    let list = [&[0, 22, 0, 16, 0, 0, 0, 0][..], &[0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0]].concat();
    rig.data_out(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list);
    assert!(matches!(rig.log()[..], [Op::Discard { .. }, Op::Flush]));
    let (cdb, list) = caching(0x04);
    rig.data_out(&cdb, &list);
    assert_eq!(rig.log(), [], "turning it on needs no flush");
    rig.data_out(&write, &[1; BLOCK]);
    assert!(matches!(rig.log()[..], [Op::Write { .. }]));
}

#[test]
fn the_cache_stays_on_when_its_flush_fails() {
    let mut rig = Rig::new();
    let (cdb, list) = caching(0);
    rig.disk.errors.push_back(Some(IoErrorKind::Medium.into()));
    assert_eq!(rig.sense(&cdb, &list), (3, 0x0c00));
    assert!(wce(&mut rig));
}

#[test]
fn the_cache_switch_waits_for_writes_in_flight_and_holds_younger_ones() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let (cdb, list) = caching(0);
    rig.enqueue(1, Attribute::Simple, &write, &[1; BLOCK], 0);
    rig.enqueue(2, Attribute::Simple, &cdb, &list, 0);
    rig.enqueue(3, Attribute::Simple, &write, &[3; BLOCK], 0);
    assert_eq!(rig.tags(), []);
    assert!(matches!(rig.log()[..], [Op::Write { fua: false, .. }]));
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.tags(), [1]);
    assert_eq!(rig.log(), [Op::Flush]);
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.tags(), [2]);
    assert!(matches!(rig.log()[..], [Op::Write { fua: true, .. }]), "the cache is off now");
}

#[test]
fn there_is_no_cache_to_turn_on_over_a_write_through_host() {
    let mut rig = Rig::on(Disk::new(Cache::WriteThrough));
    assert!(!wce(&mut rig));
    assert_eq!(rig.data_in(&[0x1a, 0x08, 0x48, 0, 24, 0], 24)[6], 0, "not changeable");
    let (cdb, list) = caching(0x04);
    assert_eq!(rig.sense_bytes(&cdb, &list)[12..18], [0x26, 0, 0, 0x8a, 0, 6]);
    let (cdb, list) = caching(0);
    rig.data_out(&cdb, &list);
}

#[test]
fn a_reset_restores_the_defaults_and_says_so() {
    let mut rig = Rig::new();
    let (cdb, list) = caching(0);
    rig.data_out(&cdb, &list);
    rig.data_out(&[0x15, 0x10, 0, 0, 16, 0], &control(0x06));
    assert_eq!(rig.data_in(&[0x1a, 0x08, 0x88, 0, 24, 0], 24)[6], 0x04, "the default");
    rig.unit.reset(ResetCause::LogicalUnit);
    assert_eq!(rig.sense_bytes(&[0; 6], &[])[..14], [0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 3]);
    assert!(wce(&mut rig));
}

#[test]
fn d_sense_switches_the_format() {
    let mut rig = Rig::new();
    rig.data_out(&[0x15, 0x10, 0, 0, 16, 0], &control(0x06));
    let sense = rig.sense_bytes(&[0x28, 0, 0, 0, 0x10, 0, 0, 0, 1, 0], &[]);
    assert_eq!(sense[..4], [0x72, 5, 0x21, 0]);
    rig.data_out(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 20, 0], &[&[0; 4][..], &control(0x02)].concat());
    assert_eq!(rig.sense_bytes(&[0x28, 0, 0, 0, 0x10, 0, 0, 0, 1, 0], &[])[0], 0x70);
}

/// CVE-2021-3930: page 3Fh is for MODE SENSE alone.
#[test]
fn mode_select_refuses_pages_that_are_not_there() {
    let mut rig = Rig::new();
    for page in [0x00, 0x02, 0x3e, 0x3f, 0x48, 0x7f, 0xff] {
        let (cdb, mut list) = caching(0x04);
        list[4] = page;
        assert_eq!(rig.sense(&cdb, &list), (5, 0x2600), "{page:x}");
    }
}

#[test]
fn mode_select_checks_every_length() {
    let mut rig = Rig::new();
    let (cdb, list) = caching(0x04);
    for (len, expected) in [(1, 0x1a00), (3, 0x1a00), (5, 0x1a00), (23, 0x1a00)] {
        assert_eq!(rig.sense(&[0x15, 0x10, 0, 0, len, 0], &list[..usize::from(len)]), (5, expected), "{len}");
    }
    rig.data_out(&[0x15, 0x10, 0, 0, 0, 0], &[]);
    rig.data_out(&[0x15, 0x10, 0, 0, 4, 0], &[0; 4]);
    let mut wrong = list.clone();
    wrong[5] = 0x13;
    assert_eq!(rig.sense(&cdb, &wrong), (5, 0x2600), "a page length that is not ours");
    assert_eq!(rig.sense(&[0x55, 0x10, 0, 0, 0, 0, 0, 0x10, 0, 0], &[0; 4096]), (5, 0x1a00));
    assert_eq!(rig.outcome(&cdb, &list[..23], 0), Outcome::Overrun);
    assert_eq!(rig.sense(&[0x15, 0x11, 0, 0, 24, 0], &list), (5, 0x2400), "SP");
    assert_eq!(rig.sense(&[0x15, 0x00, 0, 0, 24, 0], &list), (5, 0x2400), "PF");
    let with_descriptor = [&[0, 0, 0, 8, 0, 0, 8, 0, 0, 0, 2, 0][..], &list[4..]].concat();
    rig.data_out(&[0x15, 0x10, 0, 0, 32, 0], &with_descriptor);
    let mut resized = with_descriptor.clone();
    resized[7] = 1;
    assert_eq!(rig.sense(&[0x15, 0x10, 0, 0, 32, 0], &resized), (5, 0x2600));
    let mut cut = with_descriptor;
    cut[3] = 9;
    assert_eq!(rig.sense(&[0x15, 0x10, 0, 0, 32, 0], &cut), (5, 0x2600));
}

#[test]
fn a_list_with_one_bad_page_changes_nothing() {
    let mut rig = Rig::new();
    let (_, caching_off) = caching(0);
    let both = [&caching_off[..], &[0x0a, 0x0a, 0x42, 0x10], &[0; 8]].concat();
    assert_eq!(rig.sense(&[0x15, 0x10, 0, 0, 36, 0], &both), (5, 0x2600));
    assert!(wce(&mut rig));
    assert_eq!(rig.log(), []);
}
