//! Standard output that is closed ends a program quietly; one that is full is an error.

use std::fs::OpenOptions;
use std::process::Stdio;

use rustix::pipe::pipe;

use crate::{Server, blk_host, folder, serve, text};

/// Each command that prints.
fn commands(server: &Server) -> Vec<Vec<String>> {
    let control = server.path("control").display().to_string();
    let recording = server.path("recording").display().to_string();
    let folder = server.dir.path().display().to_string();
    [
        &["--length", "1", "--prove-only", "--quiet", "--front", "ahci", "--mode", "none"][..],
        &["--length", "1", "--prove-only", "--quiet", "--front", "ahci", "--mode", "none", "--json"],
        &["probe", &folder],
        &["probe", "--json", &folder],
        &["replay", &recording],
        &["replay", "--json", &recording],
        &["replay", "--crash-states", "5", "--list", "--quiet", &recording],
        &["ctl", "--control", &control, "stats"],
        &["ctl", "--control", &control, "--json", "stats"],
        &["serve", "--print-attach", "--socket", "s", "--image", "image"],
    ]
    .into_iter()
    .map(|command| command.iter().map(ToString::to_string).collect())
    .collect()
}

fn recorded() -> Server {
    let server = Server::logged(&["image", "--record", "recording"]);
    let mut client = server.client();
    for at in 0..8 {
        client.write(at * 8, &[7; 4096]).unwrap();
    }
    drop(client);
    server
}

#[test]
fn a_reader_who_has_enough_ends_it_quietly() {
    let server = recorded();
    for arguments in commands(&server) {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = blk_host().args(&arguments).stdout(Stdio::from(writer)).output().unwrap();
        let complaint = text(&output.stderr);
        assert_eq!((output.status.code(), complaint.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    let server = recorded();
    for arguments in commands(&server) {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = blk_host().args(&arguments).stdout(full).output().unwrap();
        let complaint = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
        assert!(complaint.contains("standard output") && complaint.contains("No space left"), "{complaint}");
    }
}

#[test]
fn a_complaint_that_nobody_can_read_does_not_change_the_status() {
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = blk_host().args(["probe", "/nonexistent"]).stderr(full()).stdout(full()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn a_server_whose_announcement_fails_serves_all_the_same() {
    let dir = folder();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut command = serve(&dir, &["--image", "image"]);
    let mut server = Server::start(dir, command.stdout(full).stderr(log));
    server.client().write(0, &[7; 4096]).unwrap();
    assert_eq!(server.stop().code(), Some(0));
    assert!(server.log().contains("standard output: cannot print"), "{}", server.log());
}
