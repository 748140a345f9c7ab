//! Both fronts, three file systems, four cache modes: what a guest was told is stable survives every power cut that is tried.

use std::time::{Duration, Instant};

use crate::crash::{self, Report};
use crate::guest::{Boot, Front, Guest};
use crate::server::{Serve, Server};
use crate::workload::{Found, Promises, answer, is_said};
use crate::{full, say};

/// What these file systems need of a disk, of which only a logical block is never torn. ext4 (1 KiB) and btrfs (4 KiB) have a
/// checksum over a superblock that they write in place, and cannot be mounted if a power cut tears it. XFS writes its metadata in
/// blocks of 4 KiB, each with the sequence number of its last change in front; its recovery leaves a block alone that has a number
/// as new as the log's (`xlog_recover_buf_commit_pass2`), so one whose first sector alone was written stays torn.
const LOGICAL_BLOCK: u32 = 4096;

/// A cell of the matrix, or the same with a defect.
#[derive(Clone)]
pub(crate) struct Cell {
    pub(crate) front: Front,
    pub(crate) filesystem: &'static str,
    pub(crate) cache: &'static str,
    /// More arguments of the kernel.
    pub(crate) arguments: &'static str,
    pub(crate) mutant: Option<&'static str>,
    pub(crate) states: usize,
    pub(crate) steps: u32,
}

impl Cell {
    /// In the full run there are a thousand crash states where there is a cache, and a tenth of that where there is none: each
    /// position then leaves little to choose.
    pub(crate) fn new(front: Front, filesystem: &'static str, cache: &'static str) -> Self {
        let cached = matches!(cache, "writeback" | "none");
        let states = match (full(), cached) {
            (true, true) => 1000,
            (true, false) => 100,
            (false, _) => 20,
        };
        Self {
            front,
            filesystem,
            cache,
            arguments: "",
            mutant: None,
            states,
            steps: if full() { 200 } else { 24 },
        }
    }

    /// As small as the file system can be.
    fn bytes(&self) -> u64 {
        match self.filesystem {
            "ext4" => 64 << 20,
            "xfs" => 320 << 20,
            _ => 128 << 20,
        }
    }

    fn mkfs(&self) -> String {
        let disk = self.front.disk();
        match self.filesystem {
            "ext4" => format!("mkfs.ext4 -qF /dev/{disk}"),
            filesystem => format!("mkfs.{filesystem} -f /dev/{disk} >/dev/null"),
        }
    }

    /// A guest makes the file system, works on it and says what it is told; then crash states are checked.
    pub(crate) fn run(&self) -> Report {
        let begin = Instant::now();
        let seed = fastrand::u64(..);
        let serve = Serve {
            record: true,
            mutant: self.mutant,
            options: format!(",logical-block={LOGICAL_BLOCK}"),
            ..Serve::new(self.front, self.cache, self.bytes())
        };
        let server = Server::start(serve);
        let from = self.work(&server, seed);
        let recording = server.recording();
        let (status, _files) = server.stop();
        assert!(status.success(), "the server ended with {status}");
        let report = crash::check(&recording, from, self.filesystem, self.states, seed);
        let arguments = self.arguments;
        let Report { states, positions, promises, files, lost, damaged, .. } = &report;
        say!(
            "{:11} {:5} {:12} {arguments:12} {states:4} crash states at {positions} positions, {promises} acknowledged fsyncs to keep, \
             {files} files read: lost {lost}, damaged {damaged} ({} s, seed {seed})",
            self.front.name(),
            self.filesystem,
            self.cache,
            begin.elapsed().as_secs(),
        );
        report
    }

    /// Runs it, and nothing may be lost.
    pub(crate) fn passes(&self) {
        let report = self.run();
        let examples = report.examples.join("\n");
        assert!(report.states >= self.states, "{} crash states", report.states);
        assert!(report.promises > 0 && report.files > 0, "{report:?}");
        assert_eq!((report.lost, report.damaged), (0, 0), "{examples}");
    }

    /// Returns the position from which on the file system is in use.
    fn work(&self, server: &Server, seed: u64) -> u64 {
        let socket = server.socket();
        let mut guest = Guest::boot(&Boot {
            filesystem: self.filesystem,
            arguments: self.arguments,
            ..Boot::new(self.front.machine(), self.front, &socket)
        });
        let disk = self.front.disk();
        let cached = matches!(self.cache, "writeback" | "none");
        let expected = if cached { "write back" } else { "write through" };
        assert_eq!(guest.cat(&format!("/sys/block/{disk}/queue/write_cache")), expected, "{}", self.cache);
        let logical = guest.cat(&format!("/sys/block/{disk}/queue/logical_block_size"));
        assert_eq!(logical, LOGICAL_BLOCK.to_string());
        guest.sh(&self.mkfs());
        let mount = format!("mount -t {} /dev/{disk} /mnt", self.filesystem);
        guest.sh(&format!("{mount} && sync"));
        let from = server.mark("mounted");
        let mut said = Vec::new();
        // What is noted was said before: whatever the guest had been told by then is in the record before the mark.
        let work = format!("agent work /mnt {seed} {}", self.steps);
        let output = guest.follow(&work, Duration::from_secs(600), |line| {
            if is_said(line) {
                server.mark(line);
                said.push(line.to_owned());
            }
            answer(line)
        });
        assert_eq!(output.status, 0, "{}", output.text());
        if cached && self.mutant.is_none() && (self.front.is_blk() || self.front.is_ata()) {
            let stable = server.stats()["images"][0]["host"]["fua_writes"].as_u64().expect("a count");
            let fua = self.arguments.contains("fua=1");
            assert_eq!(
                stable > 0,
                fua,
                "{stable} writes stable by themselves: flushes, or FUA, are not tested"
            );
        }
        guest.sh(&format!("umount /mnt && echo 3 >/proc/sys/vm/drop_caches && {mount}"));
        let found = Found::new(&guest.run("agent files /mnt").lines);
        let promises = Promises::new(said.iter().map(String::as_str));
        assert!(promises.acknowledged as u32 > self.steps / 2, "{} acknowledged", promises.acknowledged);
        assert_eq!(promises.broken(&found), Vec::<String>::new(), "without any power cut");
        guest.sh("umount /mnt");
        guest.power_off();
        from
    }
}

fn column(front: Front, filesystem: &'static str) {
    for cache in ["writeback", "none", "writethrough", "directsync"] {
        Cell::new(front, filesystem, cache).passes();
    }
}

#[test]
fn matrix_blk_ext4() {
    column(Front::Blk, "ext4");
}

#[test]
fn matrix_blk_xfs() {
    column(Front::Blk, "xfs");
}

#[test]
fn matrix_blk_btrfs() {
    column(Front::Blk, "btrfs");
}

#[test]
fn matrix_scsi_ext4() {
    column(Front::Scsi, "ext4");
}

#[test]
fn matrix_scsi_xfs() {
    column(Front::Scsi, "xfs");
}

#[test]
fn matrix_scsi_btrfs() {
    column(Front::Scsi, "btrfs");
}
