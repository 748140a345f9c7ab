//! The program `blk-host`, as an operator meets it: results on standard output, errors with a remedy, exit codes that
//! mean something.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

fn blk_host(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(arguments: &[&str]) -> (Value, Option<i32>) {
    let output = blk_host(arguments);
    let value = serde_json::from_slice(&output.stdout);
    (value.unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr))), output.status.code())
}

#[test]
fn the_table_has_every_cell_and_each_is_as_it_must_be() {
    let (table, code) = json(&["--json", "--quiet", "--length", "1", "--prove-only"]);
    assert_eq!(code, Some(0));
    assert_eq!(table["as_it_must_be"], true);
    let cells = table["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 7 * 5);
    for cell in cells {
        let safe = cell["mode"] != "unsafe";
        assert_eq!(cell["proof"]["safe"], safe, "{cell}");
        assert!(cell["proof"]["states"].as_u64() > Some(0), "{cell}");
        assert_eq!(
            cell["proof"]["counterexamples"].as_object().map(serde_json::Map::is_empty),
            Some(safe),
            "{cell}"
        );
    }
}

#[test]
fn the_five_failing_cells_of_2009_fail_with_counterexamples() {
    let (table, code) = json(&["--json", "--quiet", "--length", "2", "--prove-only"]);
    assert_eq!(code, Some(0));
    let failing = |cell: &&Value| cell["proof"]["safe"] == false;
    let history = table["history"].as_array().expect("history");
    let failed: Vec<_> = history.iter().filter(failing).map(|cell| (&cell["front"], &cell["mode"])).collect();
    let expected = [
        ("PCI IDE", "writeback"),
        ("PCI IDE", "none"),
        ("virtio-blk", "writethrough"),
        ("virtio-blk", "writeback"),
        ("virtio-blk", "none"),
    ];
    assert_eq!(
        failed,
        expected.map(|(front, mode)| (Value::from(front), Value::from(mode))).each_ref().map(|(a, b)| (a, b))
    );
    for cell in history.iter().filter(failing) {
        let told = cell["proof"]["counterexamples"].to_string();
        assert!(told.contains("power cut"), "{told}");
    }
}

#[test]
fn a_run_counts_what_reached_the_host_in_every_mode() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let image = directory.path().join("disk.img");
    let image = image.to_str().expect("a path in UTF-8");
    let (table, code) = json(&["--json", "--quiet", "--run-only", "--image", image]);
    assert_eq!(code, Some(0));
    for cell in table["cells"].as_array().expect("cells") {
        let count = |of: &str, what: &str| cell["run"][of][what].as_u64().expect("a count");
        let (writes, fua, flushes) =
            (count("guest", "writes"), count("guest", "fua_writes"), count("guest", "flushes"));
        let (fdatasyncs, dsync) = (count("host", "fdatasyncs"), count("host", "dsync_writes"));
        match cell["mode"].as_str().expect("a mode") {
            "unsafe" => assert_eq!((fdatasyncs, dsync), (0, 0), "{cell}"),
            "writethrough" | "directsync" => assert_eq!((fdatasyncs, dsync), (flushes, writes), "{cell}"),
            // FUA is one stable write, or a write and a flush.
            _ => {
                assert_eq!((fdatasyncs + dsync, dsync == fua || dsync == 0), (flushes + fua, true), "{cell}")
            }
        }
        assert!(cell["run"]["verified_bytes"].as_u64() > Some(0));
        if cell["run"]["kernel"].is_null() {
            println!("{}: not traced in the kernel: no root, no loop device or no tracefs", cell["mode"]);
            continue;
        }
        // What left the host: a device without FUA gets a write and a flush instead.
        let reached = count("kernel", "flushes") + count("kernel", "fua_writes");
        match cell["mode"].as_str().expect("a mode") {
            "unsafe" => assert_eq!(reached, 0, "{cell}"),
            "writethrough" | "directsync" => assert!(reached >= flushes + writes, "{cell}"),
            _ => assert!(reached >= flushes + fua, "{cell}"),
        }
    }
    assert_eq!(table["as_it_must_be"], Value::Null, "nothing was proven");
    assert!(!Path::new(image).exists(), "the image is gone at the end");
}

#[test]
fn an_existing_file_is_never_written_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("precious.img");
    std::fs::write(&image, b"precious").expect("a file");
    let output = blk_host(&["--run-only", "--image", image.to_str().expect("a path in UTF-8")]);
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(
        message.contains("precious.img") && message.contains("--image") && message.contains("does not exist"),
        "{message}"
    );
    assert_eq!(std::fs::read(&image).expect("still there"), b"precious");
}

#[test]
fn the_help_has_examples_and_exit_statuses() {
    let help = text(&blk_host(&["--help"]).stdout);
    assert!(help.contains("Examples:") && help.contains("Exit status:"), "{help}");
}

/// A long run, once it has said that it explores, and how many steps it has.
fn begun(arguments: &[&str], directory: &Path) -> (Child, BufReader<ChildStderr>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.args(arguments).env("TMPDIR", directory).stdin(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program runs");
    let mut told = BufReader::new(child.stderr.take().expect("a pipe"));
    let mut line = String::new();
    told.read_line(&mut line).expect("a line");
    assert!(line.contains("steps") && line.contains("states explored"), "{line}");
    (child, told)
}

fn signal(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).expect("a signal");
}

/// Files below a directory that a process has open, those without a name included.
fn open_below(process: u32, directory: &Path) -> usize {
    let links = std::fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").flatten();
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to.starts_with(directory))).count()
}

#[test]
fn a_signal_ends_it_within_a_second_with_the_table_so_far() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut child, _told) = begun(&["--length", "8"], directory.path());
    assert!(open_below(child.id(), directory.path()) > 0, "the image is where TMPDIR says");
    let sent = Instant::now();
    signal(&child, Signal::INT);
    let status = child.wait().expect("it ends");
    let took = sent.elapsed();
    assert_eq!(status.code(), Some(130));
    // Twice that where the machine is busy with other tests.
    assert!(took < Duration::from_secs(2), "{took:?}");
    let mut printed = String::new();
    child.stdout.take().expect("a pipe").read_to_string(&mut printed).expect("text");
    assert!(printed.contains("IDE PIO") && printed.contains("Stopped: of 41 cells"), "{printed}");
}

#[test]
fn nothing_is_left_of_a_run_that_is_killed() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("disk.img");
    let image = image.to_str().expect("a path in UTF-8");
    for arguments in [&["--length", "8"][..], &["--length", "8", "--image", image]] {
        let (mut child, _told) = begun(arguments, directory.path());
        signal(&child, Signal::KILL);
        child.wait().expect("it ends");
        let left: Vec<_> = std::fs::read_dir(directory.path()).expect("a directory").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn the_table_fits_80_columns_and_shows_each_kind_of_loss_once() {
    let printed = text(&blk_host(&["--quiet", "--length", "2", "--prove-only"]).stdout);
    assert!(printed.lines().all(|line| line.chars().count() <= 80), "{printed}");
    assert_eq!(printed.matches("Loses data, as declared: unsafe on ").count(), 1, "{printed}");
    assert_eq!(printed.matches("Lost data in 2009: ").count(), 3, "{printed}");
    assert!(printed.contains("Every cell is as it must be."), "{printed}");
    let wide = text(&blk_host(&["--quiet", "--wide", "--run-only", "--mode", "none"]).stdout);
    assert!(wide.contains("guest sees") && wide.contains("fdatasync"), "{wide}");
    assert!(wide.contains("Nothing was proven.") && !wide.contains("as it must be"), "{wide}");
}

#[test]
fn probe_answers_for_a_path_and_fails_for_none() {
    let (report, code) = json(&["probe", "--json", env!("CARGO_TARGET_TMPDIR")]);
    assert!(matches!(code, Some(0 | 1 | 3)), "{code:?}");
    assert!(report["layers"].as_array().is_some_and(|layers| !layers.is_empty()), "{report}");
    let output = blk_host(&["probe", "/nonexistent/image"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nonexistent/image"), "{}", text(&output.stderr));
}

/// What the demonstration needs is looked for before anything is made.
#[test]
fn the_demo_names_the_package_that_is_missing_and_the_path_that_is_wrong() {
    let directory = tempfile::tempdir().expect("a directory");
    let nowhere = directory.path().join("nowhere");
    let nowhere = nowhere.to_str().expect("a path in UTF-8");
    let this = env!("CARGO_BIN_EXE_blk-host");
    let cases: [(&[&str], &[&str]); 4] = [
        (&[], &["linux.uml", "package user-mode-linux", "apt-get install", "--fetch", "--uml"]),
        (&["--uml", nowhere], &["--uml", nowhere, "no such file"]),
        (&["--uml", this, "--dir", nowhere], &["--dir", nowhere, "TMPDIR"]),
        (&["--uml", this, "--fetch"], &["--uml", "--fetch"]),
    ];
    for (arguments, expected) in cases {
        let mut command = Command::new(this);
        command.arg("demo").args(arguments).env("PATH", nowhere).env("BLK_HOST_CACHE", nowhere);
        let output = command.stdin(Stdio::null()).output().expect("the program runs");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        for part in expected {
            assert!(message.contains(part), "{arguments:?}: no {part} in: {message}");
        }
    }
}

/// It would mount file systems, and power off.
#[test]
fn what_the_demo_runs_in_its_guests_does_nothing_elsewhere() {
    let output = blk_host(&["demo-guest", "write"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("blk-host demo"), "{}", text(&output.stderr));
    assert!(!text(&blk_host(&["--help"]).stdout).contains("demo-guest"), "it is hidden");
}
