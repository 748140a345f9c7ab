//! Standard error that takes nothing costs lines, and nothing else.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::pipe;

use crate::{Server, folder, serve, text, wait_for};

/// A client meets an error of the host and goes; the next one is served; the stop makes its flush, and says so in its status.
fn serves_and_stops(stderr: impl Fn() -> OwnedFd, loses_lines: bool) {
    // The device flushes when a client goes, and at the end.
    for (fault, status) in [("write@2:enospc;seed=1", 0), ("write@2:enospc;flush@3:eio;seed=1", 1)] {
        let dir = folder();
        let mut command = serve(&dir, &["--quiet", "--image", "image,werror=report", "--fault", fault]);
        let mut server = Server::start(dir, command.stderr(stderr()));
        let mut client = server.client();
        client.write(0, &[1; 4096]).unwrap();
        assert!(client.write(8, &[2; 4096]).is_err());
        client.flush().unwrap();
        drop(client);
        let mut next = server.client();
        next.write(8, &[3; 4096]).unwrap();
        next.flush().unwrap();
        next.write(16, &[4; 4096]).unwrap();
        drop(next);
        wait_for("the end of the client", || {
            (server.report()["devices"][0]["server"]["connected"] == false).then_some(())
        });
        if loses_lines {
            assert!(server.report()["log_lines_lost"].as_u64() > Some(0));
        }
        let began = Instant::now();
        assert_eq!(server.stop().code(), Some(status), "{fault}");
        assert!(began.elapsed() < Duration::from_secs(20));
        assert!(!server.path("s").exists());
    }
}

#[test]
fn a_log_whose_reader_is_dead_costs_lines_only() {
    serves_and_stops(|| pipe().unwrap().1, true);
}

#[test]
fn a_log_on_a_full_disk_costs_lines_only() {
    serves_and_stops(|| OpenOptions::new().write(true).open("/dev/full").unwrap().into(), true);
}

#[test]
fn a_log_that_nobody_reads_costs_lines_only() {
    let (reader, writer) = pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    serves_and_stops(|| writer.try_clone().unwrap(), false);
    drop(reader);
}

#[test]
fn what_was_lost_is_told_once_the_log_has_a_reader_again() {
    let dir = folder();
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let read = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).unwrap();
    let first = read();
    let writer = OpenOptions::new().write(true).open(&fifo).unwrap();
    let mut command = serve(&dir, &["--quiet", "--image", "image"]);
    let server = Server::start(dir, command.stderr(writer));
    drop(first);
    drop(server.client());
    wait_for("a lost line", || (server.report()["log_lines_lost"].as_u64() > Some(0)).then_some(()));
    let mut second = read();
    let mut log = String::new();
    wait_for("a line that tells of it", || {
        drop(server.client());
        let mut bytes = vec![0; 4096];
        let count = second.read(&mut bytes).unwrap_or(0);
        log.push_str(&text(&bytes[..count]));
        log.contains("lines of the log are lost").then_some(())
    });
}

#[test]
fn a_line_that_repeats_itself_is_cut_short_and_its_number_told() {
    let server = Server::logged(&["image"]);
    for _ in 0..100 {
        drop(UnixStream::connect(server.path("s")).unwrap());
    }
    wait_for("the last client", || {
        (server.report()["devices"][0]["server"]["clients"].as_u64() >= Some(100)).then_some(())
    });
    wait_for("what was left out", || {
        server.log().contains("more lines like this were left out").then_some(())
    });
    let log = server.log();
    let lines = log.lines().filter(|line| line.ends_with(": a client has connected")).count();
    assert!((10..90).contains(&lines), "{log}");
}

#[test]
fn each_line_names_its_device_and_image_and_has_no_escapes() {
    let server = Server::logged(&["image", "--fault", "write@1:eio;flush@1:eio;seed=1"]);
    let mut client = server.client();
    assert!(client.write(0, &[1; 4096]).is_err() && client.flush().is_err());
    drop(client);
    wait_for("the end of the client", || server.log().contains("the client has gone").then_some(()));
    let log = server.log();
    assert!(!log.contains('\x1b'), "{log}");
    for (line, named) in [
        ("faults are injected", "image{path=image}"),
        ("a client has connected", "device{name=\"disk0\"}"),
        ("the client has gone", "device{name=\"disk0\"}"),
        ("the host failed a request", "device{name=\"disk0\"}"),
    ] {
        let line = log.lines().find(|known| known.contains(line)).unwrap_or_else(|| panic!("{line}: {log}"));
        assert!(line.contains(named) && line.contains("disk0"), "{line}");
    }
}
