//! Synthetic systems, one for each branch, and this machine's own.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use tempfile::TempDir;

use super::extents::Extents;
use super::system::{DevNo, Direct, FileFacts, FileKind, System};
use super::*;

mod devices;
mod filesystems;
mod here;

/// A system of files that a test describes, and of a /proc and a /sys that it writes.
struct Tree {
    root: TempDir,
    files: HashMap<PathBuf, FileFacts>,
    dm: Option<Vec<String>>,
    nvme: Option<bool>,
    swallows: bool,
}

impl System for Tree {
    fn root(&self) -> &Path {
        self.root.path()
    }

    fn file(&self, path: &Path) -> io::Result<FileFacts> {
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn swallows_syncs(&self) -> bool {
        self.swallows
    }

    fn dm_targets(&self, _: DevNo) -> Option<Vec<String>> {
        self.dm.clone()
    }

    fn nvme_volatile_cache(&self, _: &str) -> Option<bool> {
        self.nvme
    }
}

const fn dev(major: u32, minor: u32) -> DevNo {
    DevNo { major, minor }
}

const SDA: DevNo = dev(8, 0);

impl Tree {
    fn new() -> Self {
        Self { root: TempDir::new().unwrap(), files: HashMap::new(), dm: None, nvme: None, swallows: false }
    }

    /// An ext4 with `options` on the disk sda with `write_cache`, and on it the image /image.
    fn ext4(options: &str, write_cache: &str) -> Self {
        let mut tree = Self::new();
        tree.mounts(&format!("22 1 8:0 / / rw - ext4 /dev/sda {options}\n"));
        tree.disk("sda", SDA, write_cache);
        tree.regular("/image", SDA);
        tree
    }

    fn mounts(&self, text: &str) {
        self.write("proc/thread-self/mountinfo", text);
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(self.root.path().join(target), path).unwrap();
    }

    /// A disk at sys/block/NAME, as sysfs would have it.
    fn disk(&self, name: &str, dev: DevNo, write_cache: &str) {
        let dir = format!("sys/block/{name}");
        self.write(&format!("{dir}/dev"), &format!("{dev}\n"));
        self.write(&format!("{dir}/queue/write_cache"), &format!("{write_cache}\n"));
        self.link(&format!("sys/dev/block/{dev}"), &dir);
    }

    fn partition(&self, disk: &str, name: &str, dev: DevNo) {
        let dir = format!("sys/block/{disk}/{name}");
        self.write(&format!("{dir}/dev"), &format!("{dev}\n"));
        self.write(&format!("{dir}/partition"), "1\n");
        self.link(&format!("sys/dev/block/{dev}"), &dir);
    }

    fn slave(&self, device: &str, slave: &str) {
        let name = Path::new(slave).file_name().unwrap().to_str().unwrap();
        self.link(&format!("sys/block/{device}/slaves/{name}"), &format!("sys/block/{slave}"));
    }

    fn add(&mut self, path: &str, kind: FileKind, dev: DevNo) -> &mut FileFacts {
        let facts = FileFacts {
            path: path.into(),
            kind,
            dev,
            mount_id: None,
            fs_magic: 0,
            size_bytes: 1 << 20,
            direct: Direct::Yes { memory_bytes: 4, offset_bytes: 512 },
            extents: Some(Extents::default()),
            flags: IFlags::empty(),
            dax: false,
        };
        self.files.insert(path.into(), facts);
        self.files.get_mut(Path::new(path)).unwrap()
    }

    fn regular(&mut self, path: &str, dev: DevNo) -> &mut FileFacts {
        self.add(path, FileKind::Regular, dev)
    }

    fn node(&mut self, path: &str, device: DevNo) {
        self.add(path, FileKind::Block(device), dev(0, 6));
    }

    fn report(&self, path: &str) -> Report {
        probe_on(self, Path::new(path)).unwrap()
    }

    fn image(&self) -> Report {
        self.report("/image")
    }
}

/// Whether some finding with this verdict has `text` in it.
#[track_caller]
fn says(report: &Report, verdict: Verdict, text: &str) {
    let found = report.layers.iter().flat_map(|layer| &layer.findings).any(|finding| {
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        finding.verdict == verdict && format!("{}: {}. {remedy}", finding.what, finding.why).contains(text)
    });
    assert!(found, "no {verdict} finding says {text:?}:\n{report}");
}

fn kinds(report: &Report) -> Vec<LayerKind> {
    report.layers.iter().map(|layer| layer.kind).collect()
}

fn mode<'a>(report: &'a Report, name: &str) -> &'a ModeReport {
    report.modes.iter().find(|mode| mode.mode == name).unwrap()
}

#[test]
fn ext4_on_a_disk_that_is_flushed_is_safe_in_every_mode_but_unsafe() {
    let report = Tree::ext4("rw", "write back").image();
    assert_eq!(report.verdict, Verdict::Safe, "{report}");
    assert_eq!(kinds(&report), [LayerKind::File, LayerKind::Filesystem, LayerKind::Disk]);
    for mode in &report.modes {
        let expected = if mode.mode == "unsafe" { Verdict::Unsafe } else { Verdict::Safe };
        assert_eq!((mode.verdict, mode.possible), (expected, Possible::Yes), "{mode:?}");
    }
}

#[test]
fn a_process_whose_syncs_are_swallowed_is_unsafe() {
    let mut tree = Tree::ext4("rw", "write back");
    tree.swallows = true;
    let report = tree.image();
    says(&report, Verdict::Unsafe, "eatmydata");
    assert_eq!(report.layers[0].kind, LayerKind::Process);
    assert_eq!(mode(&report, "writethrough").verdict, Verdict::Unsafe);
}

#[test]
fn the_file_layer_tells_layout_size_and_alignment() {
    let mut tree = Tree::ext4("rw", "write back");
    let facts = tree.regular("/image", SDA);
    facts.size_bytes = 1000;
    facts.direct = Direct::Yes { memory_bytes: 512, offset_bytes: 4096 };
    facts.flags = IFlags::IMMUTABLE;
    facts.extents = Some(Extents {
        holes_bytes: 100,
        unwritten_bytes: 200,
        shared_bytes: 300,
        delayed_bytes: 400,
        encoded_bytes: 500,
    });
    let report = tree.image();
    for text in [
        "not a multiple",
        "100 of 1000",
        "200 bytes",
        "300 bytes",
        "400 bytes",
        "500 bytes",
        "4096",
        "chattr -ia",
    ] {
        says(&report, Verdict::Note, text);
    }
    tree.regular("/image", SDA).direct = Direct::Unknown;
    assert_eq!(mode(&tree.image(), "none").possible, Possible::Unknown);
}

#[test]
fn errors_name_the_file_and_what_to_do() {
    let mut tree = Tree::new();
    let error = probe_on(&tree, Path::new("/none")).unwrap_err();
    assert!(matches!(error, ProbeError::NotFound(_)));
    assert!(error.to_string().contains("/none") && error.to_string().contains("truncate"), "{error}");
    tree.add("/fifo", FileKind::Other, SDA);
    assert!(matches!(probe_on(&tree, Path::new("/fifo")), Err(ProbeError::NotAnImage(_))));
    assert!(matches!(probe(Path::new("/proc/none/such")), Err(ProbeError::NotFound(_))));
    assert!(matches!(probe(Path::new("/dev/null")), Err(ProbeError::NotAnImage(_))));
}

#[test]
fn exit_status_tells_safe_unsafe_and_unknown_apart() {
    let status = [Verdict::Safe, Verdict::Unsafe, Verdict::Unknown, Verdict::Note].map(Verdict::exit_status);
    assert_eq!(status, [0, 1, 3, 3]);
    assert!(Verdict::Note < Verdict::Safe && Verdict::Safe < Verdict::Unknown);
    assert!(Verdict::Unknown < Verdict::Unsafe);
}

#[test]
fn a_report_serialises_and_prints() {
    let report = Tree::ext4("rw,nobarrier", "write back").image();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["verdict"], "unsafe");
    assert_eq!(json["layers"][1]["kind"], "filesystem");
    assert_eq!(json["layers"][1]["findings"][0]["what"], "mounted nobarrier");
    assert_eq!(json["modes"][4]["mode"], "unsafe");
    let text = report.to_string();
    assert!(text.starts_with("/image: unsafe\n"), "{text}");
    assert!(text.contains("remedy: remount it without that option"), "{text}");
}
