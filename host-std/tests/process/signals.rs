//! Signals: what ends a server in order, and what does not end it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{Server, blk_host, folder, text, wait_for};

#[test]
fn a_hangup_stops_in_order() {
    let mut server = Server::logged(&["image"]);
    server.client().write(0, &[7; 4096]).unwrap();
    server.signal(Signal::HUP);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(!server.path("s").exists() && !server.path("control").exists());
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_stays_so() {
    let dir = folder();
    let program = blk_host().get_program().to_owned();
    let mut command = Command::new("sh");
    let script = "trap '' HUP; exec \"$0\" serve --quiet --socket s --control control --image image";
    command.args(["-c", script]).arg(program).current_dir(dir.path());
    let mut server = Server::start(dir, &mut command);
    server.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.child.try_wait().unwrap().is_none(), "it has ended");
    assert_eq!(server.stop().code(), Some(0));
}

#[test]
fn two_signals_at_once_are_one_stop() {
    let mut server = Server::logged(&["image", "--fault", "flush:1s;seed=1"]);
    server.client().write(0, &[7; 4096]).unwrap();
    server.signal(Signal::TERM);
    wait_for("the stop", || server.log().contains("stopping").then_some(()));
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
}

#[test]
fn a_stop_says_what_it_waits_for() {
    let mut server = Server::logged(&["image", "--fault", "flush:7s;seed=1"]);
    let mut client = server.client();
    client.write(0, &[7; 4096]).unwrap();
    assert_eq!(server.stop().code(), Some(0));
    let log = server.log();
    let line = log.lines().find(|line| line.contains("the end waits for"));
    assert!(line.is_some_and(|line| line.contains("disk0")), "{log}");
}

#[test]
fn a_signal_ends_the_wait_for_a_lock_and_nothing_is_left() {
    let holder = Server::logged(&["image"]);
    let log = fs::File::create(holder.path("log2")).unwrap();
    let mut command = blk_host();
    command.current_dir(holder.dir.path()).stderr(log);
    command.args(["serve", "--quiet", "--socket", "s2", "--control", "control2", "--image", "image"]);
    let mut child = command.spawn().unwrap();
    let log = || text(&fs::read(holder.path("log2")).unwrap());
    wait_for("the wait", || log().contains("in use by another program").then_some(()));
    let began = Instant::now();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let status = wait_for("its end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{}", log());
    assert!(began.elapsed() < Duration::from_secs(5), "it waited for the lock: {}", log());
    assert!(!holder.path("s2").exists() && !holder.path("control2").exists());
    UnixStream::connect(holder.path("control")).unwrap();
}

#[test]
fn a_limit_on_file_sizes_fails_a_write_and_a_limit_on_descriptors_is_raised() {
    let dir = folder();
    let program = blk_host().get_program().to_owned();
    let mut command = Command::new("sh");
    // 1 MiB, in units of 512 bytes.
    let script = "ulimit -f 2048; ulimit -Sn 200; exec \"$0\" serve --quiet --socket s --control control \
                  --image image,werror=report";
    command.args(["-c", script]).arg(program).current_dir(dir.path());
    let mut server = Server::start(dir, &mut command);
    let mut client = server.client();
    assert!(client.write(16384, &[7; 4096]).is_err(), "a write beyond the limit");
    client.write(0, &[7; 4096]).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(files[3], files[4], "{limits}");
    drop(client);
    assert_eq!(server.stop().code(), Some(0));
}
