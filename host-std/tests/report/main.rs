//! `blk-host report`: the page has every cell with its diagram, and needs nothing but itself. A browser opens each cell at the sizes
//! of a phone and of a wide screen; that test wants chromium, and is ignored without being asked for:
//!
//! ```text
//! cargo test -p host-std --test report -- --ignored
//! ```

mod browser;
mod webdriver;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

fn blk_host(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.args(arguments).stdin(Stdio::null()).output().expect("the program runs")
}

fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A table with every kind of cell, as `--json` prints it.
fn table(directory: &TempDir, arguments: &[&str]) -> PathBuf {
    let path = directory.path().join("table.json");
    let output = blk_host(&[&["--json", "--quiet", "--length", "2"], arguments].concat());
    assert!(output.status.success(), "{}", said(&output));
    std::fs::write(&path, output.stdout).expect("a file");
    path
}

/// Some of what the bench `serve` prints.
const BENCH: &str = r#"{ "rows": [
    { "place": "tmpfs", "row": "4 KiB read, depth 1", "bytes": 4096, "depth": 1, "ratio": 2.61, "confined": 0.98, "servers": [
        { "server": "blk-host", "per_second": 41400.0 }, { "server": "blk-host --sandbox=off", "per_second": 42000.0 },
        { "server": "qemu-storage-daemon", "per_second": 30600.0 } ] },
    { "place": "tmpfs", "row": "4 KiB write + flush, depth 1", "bytes": 4096, "depth": 1, "ratio": 2.5, "confined": null, "servers": [
        { "server": "blk-host", "per_second": 36000.0 }, { "server": "qemu-storage-daemon", "per_second": 18000.0 } ] },
    { "place": "disk, direct I/O", "row": "128 KiB read, depth 8", "bytes": 131072, "depth": 8, "ratio": 0.91, "confined": null,
      "servers": [ { "server": "blk-host", "per_second": 6640.0 }, { "server": "qemu-storage-daemon", "per_second": 7100.0 } ] } ],
    "confined": 0.979, "flushes": [],
    "reads_beside_a_flush": [ { "server": "blk-host", "median_us": 40, "p99_us": 60, "reads": 9, "flushes": 2 } ] }"#;

/// A report of a table and of [`BENCH`].
fn report(directory: &TempDir, table: &Path) -> PathBuf {
    let (page, bench) = (directory.path().join("report.html"), directory.path().join("bench.json"));
    std::fs::write(&bench, BENCH).expect("a file");
    let output = blk_host(&["report", text(&page), "--json", text(table), "--bench", text(&bench)]);
    assert!(output.status.success(), "{}", said(&output));
    page
}

#[test]
fn every_cell_has_a_diagram_with_its_power_cut_and_the_page_needs_nothing_else() {
    let directory = directory();
    let table = table(&directory, &["--prove-only"]);
    let page = std::fs::read_to_string(report(&directory, &table)).expect("the page");
    let ids: Vec<_> =
        page.split(" popovertarget=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    // Each dialog has a button that closes it.
    assert_eq!(ids.len(), 2 * (35 + 6));
    for id in ids {
        let dialog = page.split(&format!("id=\"{id}\" popover")).nth(1).unwrap_or_else(|| panic!("{id}"));
        let dialog = dialog.split("<div class=\"dialog\"").next().unwrap_or_default();
        assert!(dialog.contains("<svg") && dialog.contains("power cut"), "{id}");
        let loses = id.ends_with("-unsafe") || (id.starts_with("then") && id != "then-pci-ide-writethrough");
        assert_eq!(dialog.contains("headline lost"), loses, "{id}");
        assert_eq!(dialog.contains("as promised."), !loses, "{id}");
    }
    for forbidden in ["<script", "http:", "https:", "src=", "url(", "@import"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("qemu-storage-daemon") || page.contains("ratio 2.61"));
}

#[test]
fn what_cannot_be_read_or_written_is_named_and_nothing_is_overwritten() {
    let directory = directory();
    let path = |name: &str| text(&directory.path().join(name)).to_owned();
    std::fs::write(path("mine.html"), "mine").expect("a file");
    std::fs::write(path("old.json"), "{\"cells\": []}").expect("a file");
    let (mine, new, old) = (path("mine.html"), path("new.html"), path("old.json"));
    let (none, nowhere) = (path("none.json"), path("no/where.html"));
    for (arguments, words) in [
        (&["report"][..], &["OUT.html"][..]),
        (&["report", &mine, "--json", &old], &["mine.html", "another path"]),
        (&["report", &nowhere, "--json", &old], &["where.html", "no directory"]),
        (&["report", &new, "--json", &none], &["--json", "none.json"]),
        (&["report", &new, "--json", &old], &["--json", "old.json", "blk-host --json", "missing field"]),
        (&["report", &new, "--bench", &old], &["--bench", "old.json", "bench"]),
        (&["report", &new, "--json", &old, "--front", "ahci"], &["--json", "--front"]),
    ] {
        let output = blk_host(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(words.iter().all(|word| said(&output).contains(word)), "{arguments:?}: {}", said(&output));
    }
    assert_eq!(std::fs::read_to_string(&mine).expect("still there"), "mine");
    assert!(!Path::new(&new).exists());
}

#[test]
fn a_signal_ends_it_with_a_page_of_what_there_is() {
    let directory = directory();
    let page = directory.path().join("report.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.args(["report", "--length", "8", "--prove-only", text(&page)]);
    let mut child =
        command.stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let mut line = String::new();
    BufReader::new(child.stderr.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert!(line.contains("states explored"), "{line}");
    rustix::process::kill_process(Pid::from_child(&child), Signal::INT).expect("a signal");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let page = std::fs::read_to_string(page).expect("the page");
    assert!(page.contains("Stopped before all was proven.") && page.contains("not proven"));
}
