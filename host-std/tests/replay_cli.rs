//! `blk-host replay`, as an operator meets it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment};
use blk_core::storage::CacheMode;
use blk_core::units::{Extent, GuestAddr, Tag};
use host_std::backend::{Backend as _, FileBackend, FileOptions, Handle};
use host_std::memory::MappedMemory;
use host_std::record::Recorder;
use serde_json::Value;

const IMAGE_BYTES: usize = 1 << 20;

fn replay(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.arg("replay").args(arguments).stdin(Stdio::null()).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(handle: &mut dyn Handle, memory: &MappedMemory, op: Op) {
    let bytes = if let Op::Write { extent, .. } = op { extent.bytes().unwrap() as u32 } else { 0 };
    let segment = [Segment::Guest { addr: GuestAddr(0), len: bytes }];
    let segments = if bytes == 0 { &[][..] } else { &segment };
    let _ = handle.submit(memory, Tag::default(), op, segments).expect("not busy");
    while handle.poll(memory).map(|completion| completion.result.expect("it succeeds")).is_none() {
        std::thread::yield_now();
    }
}

/// Records ten files of 8 KiB, each flushed and marked, and a last one that is not.
fn record(dir: &Path) -> String {
    let image = dir.join("image");
    std::fs::write(&image, vec![0; IMAGE_BYTES]).unwrap();
    let file = FileBackend::open(&image, &FileOptions::new(CacheMode::WriteBack)).unwrap();
    let log = dir.join("log");
    let recorder = Recorder::open(Arc::new(file), &log).unwrap();
    let mut handle = recorder.handle().unwrap();
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), 1 << 16)]).unwrap();
    for number in 0..=10_u64 {
        memory.write(GuestAddr(0), &[number as u8 + 1; 8192]).unwrap();
        run(&mut *handle, &memory, Op::Write { extent: Extent::new(number * 16, 16), fua: false });
        if number < 10 {
            run(&mut *handle, &memory, Op::Flush);
            recorder.mark(&format!("ack f{number}")).unwrap();
        }
    }
    log.to_str().unwrap().into()
}

#[test]
fn a_summary_counts_what_was_recorded_also_where_the_tail_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let log = record(dir.path());
    let output = replay(&[&log, "--json"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, value) in
        [("writes", 11), ("flushes", 10), ("marks", 10), ("sessions", 1), ("ended", 1), ("cut_bytes", 0)]
    {
        assert_eq!(summary[name], value, "{name}");
    }
    assert_eq!((&summary["last_mark"], &summary["starts_with"]), (&"ack f9".into(), &"zeroes".into()));
    let bytes = std::fs::read(&log).unwrap();
    std::fs::write(&log, &bytes[..bytes.len() - 5]).unwrap();
    let output = replay(&[&log]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("cut off     23 bytes"), "{}", text(&output.stdout));
}

#[test]
fn the_last_position_is_the_image_and_an_earlier_one_lacks_what_came_later() {
    let dir = tempfile::tempdir().unwrap();
    let log = record(dir.path());
    let last = host_std::replay::Log::open(&log).unwrap().positions();
    let image = std::fs::read(dir.path().join("image")).unwrap();
    let out = dir.path().join("out");
    let rebuild = |position: u64| {
        let _ = std::fs::remove_file(&out);
        let output = replay(&[&log, "--at", &position.to_string(), "--out", out.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        std::fs::read(&out).unwrap()
    };
    assert!(rebuild(last) == image);
    let first = rebuild(6);
    assert!(first[..8192] == image[..8192] && first[8192..].iter().all(|byte| *byte == 0));
    let output = replay(&[&log, "--at", "1", "--out", out.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "the file exists");
    assert!(text(&output.stderr).contains("--out"), "{}", text(&output.stderr));
    let output = replay(&[&log, "--at", "100000", "--out", "nowhere"]);
    assert!(text(&output.stderr).contains(&format!("from 0 to {last}")), "{}", text(&output.stderr));
}

#[test]
fn crash_states_are_listed_written_and_rebuilt_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = record(dir.path());
    let states = dir.path().join("states");
    let output = replay(&[
        &log,
        "--crash-states",
        "40",
        "--seed",
        "3",
        "--json",
        "--out-dir",
        states.to_str().unwrap(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 40, "{}", lines.len());
    for line in &lines {
        let (position, number) = (line["position"].as_u64().unwrap(), line["number"].as_u64().unwrap());
        let image = std::fs::read(states.join(format!("{position}-{number}.img"))).unwrap();
        assert_eq!(image.len(), IMAGE_BYTES);
        for file in 0..line["marks"].as_u64().unwrap() as usize {
            assert!(image[file * 8192..(file + 1) * 8192].iter().all(|byte| *byte == file as u8 + 1));
        }
    }
    let listed = |seed: &str| {
        text(&replay(&[&log, "--crash-states", "40", "--seed", seed, "--json", "--list"]).stdout)
    };
    assert_eq!(listed("3"), text(&output.stdout), "the same seed, the same states");
    assert_ne!(listed("4"), listed("3"));
    let name = format!("{}:{}", lines[20]["position"], lines[20]["number"]);
    let again = dir.path().join("again");
    let output = replay(&[&log, "--state", &name, "--seed", "3", "--out", again.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let written = states.join(format!("{}.img", name.replace(':', "-")));
    assert!(std::fs::read(again).unwrap() == std::fs::read(written).unwrap());
}

#[test]
fn what_cannot_be_is_an_error_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let log = record(dir.path());
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[500] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    for (arguments, expected) in [
        (&[log.as_str()][..], "truncate -s"),
        (&["/etc/hostname"], "not a recording"),
        (&["/no/such/file"], "cannot open it"),
        (&[log.as_str(), "--state", "7"], "1200:3"),
        (&[log.as_str(), "--at", "7"], "--out"),
    ] {
        let output = replay(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
    }
}
