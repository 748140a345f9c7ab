//! `blk-host demo`: a power cut under a Linux guest, as a stranger sees it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::cache::Cache;
use crate::say;

/// On a file system that knows O_DIRECT.
fn folder() -> TempDir {
    tempfile::Builder::new().prefix("demo").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

fn demo(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.args(["demo", "--uml"]).arg(Cache::get().uml()).arg("--dir").arg(folder).args(arguments);
    command.stdin(Stdio::null());
    command
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).expect("a folder").next().is_none()
}

#[test]
fn the_demo_shows_what_is_lost_and_what_is_kept() {
    let folder = folder();
    let output = demo(folder.path(), &[]).output().expect("blk-host runs");
    let (table, progress) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{table}\n{progress}");
    for (file, synced) in (1..=8).map(|number| (format!("│ f{number} "), number <= 6)) {
        let row = table.lines().find(|line| line.starts_with(&file)).unwrap_or_else(|| panic!("{table}"));
        let fates: Vec<_> = row.split(['┆', '│']).map(str::trim).skip(3).take(2).collect();
        assert_eq!(fates, if synced { ["LOST", "kept"] } else { ["lost", "lost"] }, "{table}");
    }
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    for step in ["a guest boots", "f6 are synced; the power is cut", "the guest comes back"] {
        assert!(progress.contains(step), "{progress}");
    }
    assert!(is_empty(folder.path()), "the disks are gone");
    let time = table.rsplit(['(', ')']).nth(1).unwrap_or_default();
    say!("demo: {time}");
}

#[test]
fn a_disk_in_mode_none_that_does_not_flush_ends_the_demo_with_1() {
    let folder = folder();
    let mut command = demo(folder.path(), &["--json", "--quiet"]);
    let output = command.env("BLK_HOST_MUTANT", "FlushWithoutHostFlush").output().expect("blk-host runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(result["as_promised"], false, "{result}");
    assert!(result["disks"]["none"]["synced_files_lost"].as_u64() > Some(0), "{result}");
}

#[test]
fn a_signal_ends_the_demo_and_its_guests() {
    let folder = folder();
    let mut child = demo(folder.path(), &[]).stderr(Stdio::piped()).spawn().expect("blk-host starts");
    let progress = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let boots = progress.map_while(Result::ok).find(|line| line.contains("a guest boots"));
    assert!(boots.is_some(), "no guest boots");
    let process = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(process, Signal::INT).expect("it can be stopped");
    assert_eq!(child.wait().expect("a child").code(), Some(130));
    assert!(is_empty(folder.path()), "the disks are gone");
    // A guest that is there works in that folder.
    let processes = std::fs::read_dir("/proc").expect("processes").flatten();
    let mut cwds = processes.filter_map(|process| std::fs::read_link(process.path().join("cwd")).ok());
    assert!(!cwds.any(|cwd| cwd.starts_with(folder.path())), "a guest is left");
}
