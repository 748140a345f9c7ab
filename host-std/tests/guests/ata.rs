//! The ATA fronts lose power: the matrix of file systems and cache modes, with FUA and without, and the defects that it or a crash
//! state has to find.

use crate::crash;
use crate::guest::{Boot, Front, Guest};
use crate::matrix::Cell;
use crate::server::{Serve, Server};
use crate::{full, say};

const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];
const FUA: &str = "libata.fua=1";

/// All cells of a front, or one for each cache mode, with the file systems in turn; and those with FUA.
fn rows(front: Front, turn: usize) {
    for (row, cache) in ["writeback", "none", "writethrough", "directsync"].into_iter().enumerate() {
        for (column, filesystem) in FILESYSTEMS.into_iter().enumerate() {
            if full() || (row + turn) % FILESYSTEMS.len() == column {
                Cell::new(front, filesystem, cache).passes();
            }
        }
    }
    // Linux uses the FUA of a drive that has NCQ alone (`ata_dev_config_fua`).
    for (column, filesystem) in FILESYSTEMS.into_iter().enumerate() {
        if front == Front::Ahci && (full() || column == turn) {
            Cell { arguments: FUA, ..Cell::new(front, filesystem, "writeback") }.passes();
        }
    }
}

#[test]
fn matrix_ahci() {
    rows(Front::Ahci, 0);
}

#[test]
fn matrix_ide() {
    rows(Front::Ide, 1);
}

/// The journal's commit is a queued write with FUA.
#[test]
fn an_ignored_fua_of_ncq_is_found() {
    const MUTANT: &str = "FuaIgnored";
    let cell = Cell {
        arguments: FUA,
        mutant: Some(MUTANT),
        states: 30,
        ..Cell::new(Front::Ahci, "ext4", "writeback")
    };
    let report = cell.run();
    assert!(report.lost > 0, "not found: {report:?}");
    say!("AHCI: {MUTANT}: found, {} losses", report.lost);
}

/// A write is held up until the guest loses patience, resets the link, and does it again. Does the first one land later, over what
/// was written and flushed since?
fn reset(front: Front, mutant: Option<&'static str>) -> usize {
    let options = ",fault=write@1:6s".to_owned();
    let server =
        Server::start(Serve { options, record: true, mutant, ..Serve::new(front, "writeback", 64 << 20) });
    let mut guest = Guest::boot(&Boot::new(front.machine(), front, &server.socket()));
    guest.sh("echo 1 >/sys/block/sda/device/timeout");
    guest.sh("agent one /dev/sda 8 1");
    guest.sh("agent one /dev/sda 8 2 && dd if=/dev/null of=/dev/sda conv=notrunc,fsync 2>/dev/null");
    let from = server.mark("version 2 is stable");
    guest.sh("sleep 6");
    let log = guest.kernel_log();
    assert!(log.contains("resetting link"), "{log}");
    guest.power_off();
    let recording = server.recording();
    let (_, _files) = server.stop();
    crash::stale(&recording, from, 8, 2)
}

#[test]
fn a_reset_that_forgets_what_is_in_flight_is_found() {
    const MUTANT: &str = "ResetWithoutDrain";
    assert_eq!(reset(Front::Ahci, None), 0, "without a defect");
    let stale = reset(Front::Ahci, Some(MUTANT));
    assert!(stale > 0, "not found");
    say!("AHCI: {MUTANT}: found, in {stale} crash states an old write has landed over a stable one");
}

/// What the drive still has in its cache when that is turned off (SET FEATURES 82h) is stable from then on.
fn cache_off(front: Front, mutant: Option<&'static str>) -> usize {
    let server = Server::start(Serve { record: true, mutant, ..Serve::new(front, "writeback", 64 << 20) });
    let mut guest = Guest::boot(&Boot::new(front.machine(), front, &server.socket()));
    guest.sh("agent one /dev/sda 8 1");
    guest.sh("echo 'write through' >$(echo /sys/class/scsi_disk/*/cache_type)");
    assert_eq!(guest.cat("/sys/block/sda/queue/write_cache"), "write through");
    let from = server.mark("the cache is off");
    guest.sh("agent one /dev/sda 16 1");
    guest.power_off();
    let recording = server.recording();
    let (_, _files) = server.stop();
    crash::stale(&recording, from, 8, 1)
}

#[test]
fn a_cache_that_is_turned_off_without_a_flush_is_found() {
    const MUTANT: &str = "CacheOffWithoutFlush";
    for front in [Front::Ahci, Front::Ide] {
        assert_eq!(cache_off(front, None), 0, "without a defect");
        let lost = cache_off(front, Some(MUTANT));
        assert!(lost > 0, "not found");
        say!("{}: {MUTANT}: found, lost in {lost} crash states", front.name());
    }
}
