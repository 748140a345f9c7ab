//! What the disk says about itself, and the shape of command blocks.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "tests"
)]

mod rig;

use blk_core::storage::Cache;
use rig::{BLOCK, BUFFER, Disk, Rig};
use scsi_model::command::{Command, TABLE, decode, group_bytes};
use scsi_model::{Cdb, Config, LogicalUnit, Outcome, Unsupported};

#[test]
fn inquiry_says_who_it_is() {
    let mut rig = Rig::new();
    let data = rig.data_in(&[0x12, 0, 0, 0, 255, 0], 255);
    assert_eq!((data.len(), data[4]), (96, 91));
    assert_eq!((data[0], data[2], data[3], data[7]), (0, 6, 0x12, 2));
    assert_eq!(&data[8..36], b"BLK     bench disk      1   ");
    assert_eq!(rig.sense(&[0x12, 0, 0x80, 0, 255, 0], &[]), (5, 0x2400), "a page without EVPD");
}

/// CVE-2011-3346: the reply is cut to the allocation length and to the buffer; its own length fields are not.
#[test]
fn an_allocation_length_never_moves_more_than_there_is() {
    let mut rig = Rig::new();
    for allocation in [0, 4, 5, 36, 96, 255] {
        let data = rig.data_in(&[0x12, 0, 0, 0, allocation, 0], 255);
        assert_eq!(data.len(), usize::from(allocation).min(96));
        assert!(data.get(4).is_none_or(|additional| *additional == 91));
    }
    assert_eq!(rig.data_in(&[0x12, 0, 0, 0xff, 0xff, 0], 96).len(), 96, "the data is shorter, and fits");
    for (cdb, room) in [([0x12, 0, 0, 0xff, 0xff, 0], 95), ([0x1a, 0, 0x3f, 0, 255, 0], 7)] {
        assert_eq!(rig.outcome(&cdb, &[], room), Outcome::Overrun, "the buffer is too short for the data");
    }
    assert_eq!(rig.data_in(&[0x12, 0, 0, 0xff, 0xff, 0], BUFFER).len(), 96);
    let luns = [0xa0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
    assert_eq!(rig.data_in(&luns, BUFFER), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.data_in(&[0x1a, 0, 0x3f, 0, 7, 0], 7).len(), 7);
}

#[test]
fn every_listed_page_is_there_and_says_its_length() {
    let mut rig = Rig::new();
    let list = rig.data_in(&[0x12, 1, 0, 0, 255, 0], 255);
    assert_eq!(list[4..], [0x00, 0x80, 0x83, 0x86, 0xb0, 0xb1, 0xb2]);
    for page in &list[4..] {
        let data = rig.data_in(&[0x12, 1, *page, 0, 255, 0], 255);
        assert_eq!((data[1], usize::from(data[3])), (*page, data.len() - 4));
    }
    assert_eq!(rig.data_in(&[0x12, 1, 0x80, 0, 255, 0], 255)[4..], *b"S123");
    let designators = rig.data_in(&[0x12, 1, 0x83, 0, 255, 0], 255);
    assert_eq!(&designators[4..8], [2, 1, 0, 28]);
    assert_eq!(&designators[8..36], b"BLK     bench disk      S123");
    assert_eq!(designators[36..], [1, 3, 0, 8, 0x50, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(
        rig.data_in(&[0x12, 1, 0x86, 0, 255, 0], 255)[4..7],
        [0, 7, 1],
        "HEADSUP, ORDSUP, SIMPSUP; V_SUP"
    );
    assert_eq!(rig.sense(&[0x12, 1, 0x89, 0, 255, 0], &[]), (5, 0x2400));
}

#[test]
fn limits_and_provisioning_follow_the_storage() {
    let mut rig = Rig::new();
    let limits = rig.data_in(&[0x12, 1, 0xb0, 0, 255, 0], 255);
    assert_eq!((limits[4], limits[5], &limits[6..8]), (1, 8, &[0, 8][..]));
    assert_eq!(limits[20..32], [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 8, 0, 0, 0, 8]);
    assert_eq!(limits[36..44], (1_u64 << 22).to_be_bytes());
    assert_eq!(rig.data_in(&[0x12, 1, 0xb1, 0, 255, 0], 255)[4..6], [0, 1]);
    assert_eq!(rig.data_in(&[0x12, 1, 0xb2, 0, 255, 0], 255)[4..], [0, 0xe0, 2, 0], "LBPRZ=0");
    let capacity = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
    let data = rig.data_in(&capacity, 32);
    assert_eq!((data[7], &data[8..16]), (0xff, &[0, 0, 2, 0, 0, 3, 0x80, 0][..]), "LBPME, LBPRZ=0");
    rig.disk.info.discard = false;
    rig.disk.info.staging_bytes = 0;
    let limits = rig.data_in(&[0x12, 1, 0xb0, 0, 255, 0], 255);
    assert_eq!((limits[5], &limits[20..32]), (0, &[0; 12][..]));
    assert_eq!(rig.data_in(&[0x12, 1, 0xb2, 0, 255, 0], 255)[4..], [0, 0, 0, 0]);
    assert_eq!(rig.data_in(&capacity, 32)[14], 0);
    assert_eq!(rig.sense(&[0x2f, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]), (5, 0x2000), "no staging, no VERIFY");
}

#[test]
fn a_capacity_beyond_2_tib_asks_for_the_long_command() {
    let mut disk = Disk::new(Cache::WriteBack);
    disk.info.sectors = 1 << 33;
    let mut rig = Rig::on(disk);
    assert_eq!(rig.data_in(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), [0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0]);
    let data = rig.data_in(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32);
    assert_eq!(data[..8], ((1_u64 << 33) - 1).to_be_bytes());
}

/// CVE-2023-42467.
#[test]
fn a_logical_block_of_256_bytes_is_refused() {
    for bytes in [0, 1, 256, 520, 8192] {
        let mut info = Disk::new(Cache::WriteBack).info;
        info.logical_block_bytes = bytes;
        let unit = LogicalUnit::<4>::new(Config::new("", "", "", ""), &info);
        assert_eq!(unit.err(), Some(Unsupported), "{bytes}");
    }
    // And MODE SELECT cannot bring it in.
    let mut rig = Rig::new();
    let list = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(rig.sense(&[0x15, 0x10, 0, 0, 12, 0], &list), (5, 0x2600));
}

/// host-std/tests/defects.md, 4; CVE-2015-5158.
#[test]
fn a_command_block_shorter_than_its_group_says_is_refused() {
    for row in TABLE {
        let mut cdb = row.usage.to_vec();
        cdb[1..].fill(0);
        cdb[1] = row.service_action.map_or(0, |action| action as u8);
        assert_eq!(group_bytes(cdb[0]), Some(cdb.len()));
        assert!(!matches!(decode(&Cdb::new(&cdb)), Ok(Command::Unknown { .. })));
        for len in 0..cdb.len() {
            assert!(decode(&Cdb::new(&cdb[..len])).is_err(), "{:02x} of {len} bytes", cdb[0]);
        }
        cdb.resize(32, 0xff);
        assert!(
            !matches!(decode(&Cdb::new(&cdb)), Ok(Command::Unknown { .. })),
            "what follows is not looked at"
        );
    }
    let mut rig = Rig::new();
    assert_eq!(rig.sense(&[0x28, 0, 0, 0, 0, 0], &[]), (5, 0x2400));
}

#[test]
fn no_command_block_panics_and_the_unknown_ones_are_invalid_opcodes() {
    let mut rig = Rig::new();
    for opcode in 0..=u8::MAX {
        for fill in [0, 0x01, 0x10, 0x5a, 0xff] {
            for len in [1, 6, 10, 12, 16, 32, 300] {
                let mut cdb = vec![fill; len];
                cdb[0] = opcode;
                let _ = decode(&Cdb::new(&cdb));
                let outcome = rig.outcome(&cdb, &[fill; 4096], 4096);
                if !TABLE.iter().any(|row| row.opcode() == opcode) {
                    let Outcome::CheckCondition(sense) = outcome else { panic!("{opcode:02x}") };
                    assert!(sense[12] == 0x20 || sense[12] == 0x24, "{opcode:02x} {sense:02x?}");
                }
            }
        }
    }
}

#[test]
fn bits_that_are_not_evaluated_must_be_zero() {
    let mut rig = Rig::new();
    let naca = rig.sense_bytes(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0x04], &[]);
    assert_eq!((naca[2], naca[12], &naca[15..18]), (5, 0x24, &[0xca, 0, 9][..]), "NORMACA=0");
    let rdprotect = rig.sense_bytes(&[0x28, 0x20, 0, 0, 0, 0, 0, 0, 1, 0], &[]);
    assert_eq!(rdprotect[15..18], [0xcd, 0, 1]);
    assert_eq!(
        rig.data_in(&[0x08, 0xe0, 0, 0, 1, 0], BLOCK).len(),
        BLOCK,
        "where SCSI-2 had the unit's number"
    );
    assert_eq!(
        rig.data_in(&[0x28, 0x10, 0, 0, 0, 0, 0x1f, 0, 1, 0], BLOCK).len(),
        BLOCK,
        "DPO, GROUP NUMBER"
    );
}

fn report_opcodes(options: u8, opcode: u8, action: u16) -> [u8; 12] {
    let [high, low] = action.to_be_bytes();
    [0xa3, 0x0c, options, opcode, high, low, 0, 0, 0xff, 0xff, 0, 0]
}

#[test]
fn supported_operation_codes_are_those_of_the_table() {
    let mut rig = Rig::new();
    let data = rig.data_in(&report_opcodes(0, 0, 0), BUFFER);
    assert_eq!(u32::from_be_bytes(data[..4].try_into().unwrap()) as usize, TABLE.len() * 8);
    for (entry, row) in data[4..].chunks(8).zip(TABLE) {
        assert_eq!((entry[0], entry[3]), (row.opcode(), row.service_action.unwrap_or(0) as u8));
        assert_eq!(
            (entry[5], usize::from(entry[7])),
            (u8::from(row.service_action.is_some()), row.usage.len())
        );
    }
    let with_timeouts = rig.data_in(&report_opcodes(0x80, 0, 0), BUFFER);
    assert_eq!(with_timeouts.len(), 4 + TABLE.len() * 20);
    let write_same = rig.data_in(&report_opcodes(1, 0x93, 0), BUFFER);
    assert_eq!((write_same[1], write_same[3], &write_same[4..6]), (3, 16, &[0x93, 0x19][..]));
    let capacity = rig.data_in(&report_opcodes(2, 0x9e, 0x10), BUFFER);
    assert_eq!((capacity[1], &capacity[4..6]), (3, &[0x9e, 0x10][..]));
    rig.disk.info.discard = false;
    assert_eq!(rig.data_in(&report_opcodes(3, 0x42, 0), BUFFER), [0, 1, 0, 0]);
    assert_eq!(rig.sense(&[0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]), (5, 0x2000), "and so it is");
}

/// CVE-2024-42416: a service action beyond its five bits is compared, never an index.
#[test]
fn a_service_action_that_no_command_has_is_not_supported() {
    let mut rig = Rig::new();
    for action in [0x11, 0x1f, 0x20, 0xff, 0x110, 0xffff] {
        assert_eq!(rig.data_in(&report_opcodes(2, 0x9e, action), BUFFER), [0, 1, 0, 0], "{action:x}");
        assert_eq!(rig.data_in(&report_opcodes(3, 0x9e, action), BUFFER), [0, 1, 0, 0], "{action:x}");
    }
    assert_eq!(rig.sense(&report_opcodes(1, 0x9e, 0x10), &[]), (5, 0x2400));
    assert_eq!(rig.sense(&report_opcodes(2, 0x28, 0), &[]), (5, 0x2400));
    assert_eq!(rig.sense(&report_opcodes(4, 0x28, 0), &[]), (5, 0x2400));
    assert_eq!(rig.data_in(&report_opcodes(3, 0x28, 1), BUFFER), [0, 1, 0, 0]);
}
