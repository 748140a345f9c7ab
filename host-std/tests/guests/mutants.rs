//! A harness that finds nothing proves nothing: three defects, each of which it has to find.

use std::time::Duration;

use crate::crash;
use crate::guest::{Boot, Front, Guest, Machine, SOON};
use crate::matrix::Cell;
use crate::say;
use crate::server::{Serve, Server};

fn finds(front: Front, filesystem: &'static str, mutant: &'static str) {
    let cell =
        Cell { mutant: Some(mutant), states: 30, steps: 24, ..Cell::new(front, filesystem, "writeback") };
    let report = cell.run();
    assert!(report.lost > 0, "{mutant} was not found: {report:?}");
    // Behind the state's name comes what is missing, and what fsck says.
    let mut example = report.examples.iter().flat_map(|example| example.lines().skip(1)).map(str::trim);
    let example = example.find(|line| !line.is_empty()).unwrap_or_default();
    say!("{mutant}: found, {} losses, for example {example}", report.lost);
}

#[test]
fn a_flush_without_fdatasync_is_found() {
    finds(Front::Blk, "ext4", "FlushWithoutHostFlush");
}

/// The journal's commit is a write with FUA, which only SCSI has.
#[test]
fn an_ignored_fua_is_found() {
    finds(Front::Scsi, "ext4", "FuaIgnored");
}

/// A write is under way as the guest resets the unit; the guest is told that nothing is, and writes anew. Does the old one land
/// later? The recording knows what was in flight with what.
fn reset(mutant: Option<&'static str>) -> usize {
    let options = ",fault=write@1:3s".to_owned();
    let serve = Serve { options, record: true, mutant, ..Serve::new(Front::Scsi, "writeback", 64 << 20) };
    let server = Server::start(serve);
    let mut guest = Guest::boot(&Boot::new(Machine::Uml, Front::Scsi, &server.socket()));
    guest.sh("agent one /dev/sda 8 1 >/tmp/one & sleep 0.5; agent reset /dev/sda && wait && cat /tmp/one");
    guest.sh("agent one /dev/sda 8 2 && dd if=/dev/null of=/dev/sda conv=notrunc,fsync 2>/dev/null");
    let from = server.mark("version 2 is stable");
    let output = guest.follow("sleep 4", SOON + Duration::from_secs(4), |_| None);
    assert_eq!(output.status, 0);
    guest.power_off();
    let recording = server.recording();
    let (_, _files) = server.stop();
    crash::stale(&recording, from, 8, 2)
}

#[test]
fn a_reset_that_does_not_drain_is_found() {
    assert_eq!(reset(None), 0, "without a defect");
    let stale = reset(Some("ResetWithoutDrain"));
    assert!(stale > 0, "not found");
    say!("ResetWithoutDrain: found, in {stale} crash states an old write has landed over a stable one");
}

/// The machine is reset with a write under way, which the driver knows nothing of: QEMU stops the ring, and waits for the answer.
/// What boots then writes anew. Does the old write land later?
fn reboot(mutant: Option<&'static str>) -> usize {
    // With the defect it outlasts the boot.
    let delay = if mutant.is_some() { 600 } else { 15 };
    let serve = Serve {
        options: format!(",fault=write@1:{delay}s"),
        record: true,
        mutant,
        ..Serve::new(Front::Blk, "writeback", 64 << 20)
    };
    let server = Server::start(serve);
    let socket = server.socket();
    let mut guest = Guest::boot(&Boot { reboot: true, ..Boot::new(Machine::Qemu11, Front::Blk, &socket) });
    guest.start("agent one /dev/vda 8 1 >/dev/null & sleep 1; exec reboot -f");
    guest.ready();
    let wrote = guest.sh("until test -b /dev/vda; do sleep 0.1; done; agent one /dev/vda 8 2");
    assert_eq!(wrote, "=WROTE 8 2");
    guest.sh("dd if=/dev/null of=/dev/vda conv=notrunc,fsync 2>/dev/null");
    let from = server.mark("version 2 is stable");
    // Dropped, both are killed: nothing waits for the old write.
    crash::stale(&server.recording(), from, 8, 2)
}

#[test]
fn a_stop_that_does_not_drain_is_found_by_a_reboot() {
    assert_eq!(reboot(None), 0, "without a defect");
    let stale = reboot(Some("StopWithoutDrain"));
    assert!(stale > 0, "not found");
    say!(
        "StopWithoutDrain: found by a reboot, in {stale} crash states an old write has landed over a stable one"
    );
}
