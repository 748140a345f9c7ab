//! What a guest sees when the host fails: an error or a pause, as the policy says; never a false success, never a hang.

mod garbage;
#[path = "../serving/mod.rs"]
mod serving;
mod space;

use std::time::{Duration, Instant};

use crate::guest::{Boot, Front, Guest, Machine, SOON};
use crate::server::{Serve, Server};
use crate::{full, say};

fn start(options: &str) -> (Server, Guest) {
    let serve = Serve { options: options.into(), ..Serve::new(Front::Blk, "writeback", 64 << 20) };
    let server = Server::start(serve);
    let guest = Guest::boot(&Boot::new(Machine::Uml, Front::Blk, &server.socket()));
    (server, guest)
}

#[test]
fn a_failed_flush_is_an_error_for_good() {
    let (server, mut guest) = start(",fault=flush@2:eio,werror=stop");
    let sync = "dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync 2>&1";
    assert_eq!(guest.run(sync).status, 0, "the first flush");
    for _ in 0..2 {
        let output = guest.run(sync);
        assert_ne!(output.status, 0, "a flush that failed, and all after it");
        assert!(output.text().contains("Input/output error"), "EIO: {}", output.text());
    }
    let read = guest.run("dd if=/dev/vda of=/dev/null bs=4096 count=1 iflag=direct 2>&1");
    assert_eq!(read.status, 0, "reads go on: {}", read.text());
    assert!(!server.stats()["images"][0]["latched"].is_null(), "{}", server.stats());
    guest.power_off();
    say!("a failed flush: the guest is told, and never hears of success again");
}

#[test]
fn a_failed_write_is_reported() {
    let (_server, mut guest) = start(",fault=write@1:eio,werror=report");
    let output = guest.run("agent one /dev/vda 0 1");
    assert_ne!(output.status, 0);
    assert!(output.text().contains("os error 5"), "EIO: {}", output.text());
    assert_eq!(guest.sh("agent one /dev/vda 0 2"), "=WROTE 0 2");
    guest.power_off();
    say!("werror=report: the guest sees EIO once");
}

/// The guest waits, and knows of nothing, until the operator has made room.
fn stopped_and_resumed(options: &str, state: &str) {
    let (server, mut guest) = start(options);
    guest.start("agent one /dev/vda 0 1");
    let deadline = Instant::now() + SOON;
    while server.stats()["state"] != "paused" {
        assert!(Instant::now() < deadline, "not paused: {}", server.stats());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(guest.silent(Duration::from_secs(1)), "the guest waits");
    let reason = server.stats()["reason"].to_string();
    assert!(reason.contains(state), "{reason}");
    server.ctl(&["resume"]);
    let output = guest.finish(SOON);
    assert_eq!((output.text().as_str(), output.status), ("=WROTE 0 1", 0), "after the resume");
    assert_eq!(guest.sh("agent read /dev/vda 0"), "=HOLDS 0 1");
    guest.power_off();
}

#[test]
fn a_failed_write_stops_the_device_until_it_is_resumed() {
    stopped_and_resumed(",fault=write@1:eio,werror=stop", "");
    stopped_and_resumed(",fault=write@1:enospc,werror=enospc", "");
    say!("werror=stop and enospc: the guest waits for the operator, and its write is done then");
}

/// A client that vanishes in the middle of writes leaves a server for the next one.
#[test]
fn a_guest_that_vanishes_leaves_the_server_to_the_next() {
    let server = Server::start(Serve::new(Front::Blk, "writeback", 64 << 20));
    let mut guest = Guest::boot(&Boot::new(Machine::Uml, Front::Blk, &server.socket()));
    guest.start("agent hammer /dev/vda 60 8 1");
    std::thread::sleep(Duration::from_secs(1));
    drop(guest);
    let mut guest = Guest::boot(&Boot::new(Machine::Uml, Front::Blk, &server.socket()));
    let output = guest.sh("agent hammer /dev/vda 2 8 2");
    assert!(output.ends_with("bad 0"), "{output}");
    guest.power_off();
    let (status, _) = server.stop();
    assert!(status.success(), "{status}");
    say!("a guest that vanishes leaves the server to the next one");
}

/// QEMU connects again; what was in flight is done once, what was acknowledged is there, and the guest sees no error.
#[test]
fn kill_9_under_load() {
    let kills = if full() { 50 } else { 8 };
    let mut server = Server::start(Serve { queues: 2, ..Serve::new(Front::Blk, "writeback", 64 << 20) });
    let socket = server.socket();
    let boot = Boot { processors: 2, reconnect: true, ..Boot::new(Machine::Qemu11, Front::Blk, &socket) };
    let mut guest = Guest::boot(&boot);
    let seconds = kills * 3 / 2 + 5;
    guest.start(&format!("agent hammer /dev/vda {seconds} 16 3"));
    let mut resubmitted = 0;
    let end = Instant::now() + Duration::from_secs(seconds);
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(700 + fastrand::u64(..600)));
        assert!(Instant::now() < end, "the load ended before kill {kill}");
        resubmitted += server.stats()["server"]["resubmitted"].as_u64().expect("a count");
        server.kill_and_restart();
    }
    let output = guest.finish(Duration::from_secs(600));
    let text = output.text();
    assert_eq!(output.status, 0, "{text}\n{}", server.log());
    let numbers: Vec<u64> = text.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [writes, checks, bad] = numbers[..] else { panic!("{text}") };
    assert!(writes > kills * 10 && checks > writes, "{text}");
    assert_eq!(bad, 0, "{text}");
    let dmesg = guest.kernel_log();
    assert!(!dmesg.contains("I/O error"), "{dmesg}");
    guest.power_off();
    say!(
        "kill -9: {kills} times under load, {resubmitted} requests done again; {writes} writes, {checks} checks, bad 0"
    );
}
