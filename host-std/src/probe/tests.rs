//! Synthetic systems, one for each branch, and this machine's own.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::IFlags;
use tempfile::TempDir;

use super::system::{DevNo, Direct, Extents, FileFacts, FileKind, System};
use super::*;

/// A system of files that a test describes, and of a /proc and a /sys that it writes.
struct Tree {
    root: TempDir,
    files: HashMap<PathBuf, FileFacts>,
    dm: Option<Vec<String>>,
    nvme: Option<bool>,
}

impl System for Tree {
    fn root(&self) -> &Path {
        self.root.path()
    }

    fn file(&self, path: &Path) -> io::Result<FileFacts> {
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
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
        Self { root: TempDir::new().unwrap(), files: HashMap::new(), dm: None, nvme: None }
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
        self.write("proc/self/mountinfo", text);
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
fn options_that_leave_flushes_out_are_unsafe() {
    for options in ["rw,nobarrier", "rw,barrier=0", "rw,fsync_mode=nobarrier", "rw,journal_flush_disabled"] {
        let report = Tree::ext4(options, "write back").image();
        assert_eq!(report.verdict, Verdict::Unsafe, "{options}");
        assert_eq!(mode(&report, "directsync").verdict, Verdict::Unsafe);
        assert!(mode(&report, "writeback").why.contains("mounted"), "the mode names its reason");
    }
    assert_eq!(Tree::ext4("rw,barrier=1", "write back").image().verdict, Verdict::Safe);
}

#[test]
fn data_writeback_and_data_journal_are_notes() {
    let report = Tree::ext4("rw,data=writeback", "write back").image();
    says(&report, Verdict::Note, "data=writeback");
    assert_eq!(report.verdict, Verdict::Safe);
    says(&Tree::ext4("rw,data=journal", "write back").image(), Verdict::Note, "page cache");
}

#[test]
fn a_write_through_queue_is_reported_and_judged_by_what_the_disk_says() {
    let tree = Tree::ext4("rw", "write through");
    let report = tree.image();
    says(&report, Verdict::Note, "no flush at all");
    says(&report, Verdict::Unknown, "cannot be asked");
    assert_eq!(report.verdict, Verdict::Unknown, "absence of evidence is not safety");

    tree.write("sys/block/sda/device/scsi_disk/0:0:0:0/cache_type", "write back\n");
    says(&tree.image(), Verdict::Unsafe, "overridden the kernel");

    tree.write("sys/block/sda/device/scsi_disk/0:0:0:0/cache_type", "write through\n");
    let report = tree.image();
    says(&report, Verdict::Note, "temporary write through");
    assert_eq!(report.verdict, Verdict::Safe);
}

#[test]
fn an_nvme_disk_is_asked_whether_it_has_a_cache() {
    let mut tree = Tree::new();
    tree.disk("nvme0n1", dev(259, 0), "write through");
    tree.node("/dev/nvme0n1", dev(259, 0));
    for (answer, expected) in
        [(Some(true), Verdict::Unsafe), (Some(false), Verdict::Safe), (None, Verdict::Unknown)]
    {
        tree.nvme = answer;
        assert_eq!(tree.report("/dev/nvme0n1").verdict, expected, "{answer:?}");
    }
}

#[test]
fn a_usb_bridge_without_a_cache_page_is_unknown() {
    let mut tree = Tree::new();
    let dir = "sys/devices/usb1/1-1/host0/block/sdb";
    tree.write(&format!("{dir}/dev"), "8:16\n");
    tree.write(&format!("{dir}/queue/write_cache"), "write through\n");
    tree.write(&format!("{dir}/device/scsi_disk/0:0:0:0/cache_type"), "write through\n");
    tree.link("sys/dev/block/8:16", dir);
    tree.node("/dev/sdb", dev(8, 16));
    says(&tree.report("/dev/sdb"), Verdict::Unknown, "USB bridge");
}

#[test]
fn a_virtual_disk_is_unknown_and_its_missing_or_overridden_flush_is_named() {
    let mut tree = Tree::new();
    tree.disk("vda", dev(254, 0), "write back");
    tree.write("sys/block/vda/cache_type", "write back\n");
    tree.write("sys/block/vda/device/vendor", "0x1af4\n");
    tree.node("/dev/vda", dev(254, 0));
    let report = tree.report("/dev/vda");
    says(&report, Verdict::Unknown, "host below");
    assert_eq!(report.verdict, Verdict::Unknown);
    assert!(!report.to_string().contains("0x1af4"), "a number is no model");

    tree.write("sys/block/vda/queue/write_cache", "write through\n");
    says(&tree.report("/dev/vda"), Verdict::Unsafe, "overridden");

    tree.write("sys/block/vda/cache_type", "write through\n");
    tree.write("sys/block/vda/device/features", "00100010000000\n");
    says(&tree.report("/dev/vda"), Verdict::Unknown, "no flush command");
    tree.write("sys/block/vda/device/features", "00100010010100\n");
    says(&tree.report("/dev/vda"), Verdict::Note, "write-through");
}

#[test]
fn a_disk_whose_model_is_a_hypervisors_is_unknown() {
    let tree = Tree::ext4("rw", "write back");
    tree.write("sys/block/sda/device/vendor", "QEMU    \n");
    tree.write("sys/block/sda/device/model", "QEMU HARDDISK   \n");
    assert_eq!(tree.image().verdict, Verdict::Unknown);
}

#[test]
fn memory_is_unsafe() {
    let mut tree = Tree::new();
    for (name, minor) in [("zram0", 0), ("ram0", 1), ("nullb0", 2)] {
        tree.disk(name, dev(253, minor), "write back");
        tree.node("/dev/x", dev(253, minor));
        assert_eq!(tree.report("/dev/x").verdict, Verdict::Unsafe, "{name}");
    }
    let tree = Tree::ext4("rw", "write back");
    tree.write("sys/block/sda/device/model", "scsi_debug\n");
    assert_eq!(tree.image().verdict, Verdict::Unsafe);
}

#[test]
fn tmpfs_is_never_durable() {
    let mut tree = Tree::new();
    tree.mounts("22 1 0:30 / / rw - tmpfs tmpfs rw,size=1g\n");
    tree.regular("/image", dev(0, 30)).direct = Direct::No;
    let report = tree.image();
    says(&report, Verdict::Unsafe, "lives in memory");
    assert_eq!(mode(&report, "none").possible, Possible::No);
    assert_eq!(mode(&report, "writethrough").verdict, Verdict::Unsafe);
}

#[test]
fn a_filesystem_whose_mount_is_hidden_is_known_by_its_magic_number() {
    let mut tree = Tree::new();
    tree.regular("/image", dev(0, 30)).fs_magic = 0x0102_1994;
    let report = tree.image();
    says(&report, Verdict::Unknown, "mountinfo");
    says(&report, Verdict::Unsafe, "tmpfs");
}

#[test]
fn an_overlay_is_judged_by_its_options_and_its_upper_directory() {
    let mut tree = Tree::ext4("rw", "write back");
    let mounts = |options: &str| {
        format!("22 1 8:0 / / rw - ext4 /dev/sda rw\n30 22 0:50 / /o rw - overlay overlay rw,{options}\n")
    };
    tree.add("/up per", FileKind::Directory, SDA);
    tree.regular("/o/image", dev(0, 50));

    tree.mounts(&mounts("lowerdir=/l,upperdir=/up\\040per,workdir=/w"));
    let report = tree.report("/o/image");
    assert_eq!(report.verdict, Verdict::Safe, "{report}");
    let expected =
        [LayerKind::File, LayerKind::Filesystem, LayerKind::File, LayerKind::Filesystem, LayerKind::Disk];
    assert_eq!(kinds(&report), expected);

    tree.mounts(&mounts("lowerdir=/l,upperdir=/up\\040per,workdir=/w,volatile"));
    says(&tree.report("/o/image"), Verdict::Unsafe, "overlay mounted volatile");

    tree.mounts(&mounts("lowerdir=/l,upperdir=/elsewhere,workdir=/w"));
    says(&tree.report("/o/image"), Verdict::Unknown, "another mount namespace");
}

#[test]
fn what_others_serve_is_unknown() {
    for (fs_type, text) in [
        ("nfs4", "async"),
        ("fuse.sshfs", "silent success"),
        ("9p", "host"),
        ("virtiofs", "host"),
        ("zfs", "sync=disabled"),
        ("madefs", "not known"),
    ] {
        let mut tree = Tree::new();
        tree.mounts(&format!("22 1 0:30 / / rw - {fs_type} server:/export rw\n"));
        tree.regular("/image", dev(0, 30));
        let report = tree.image();
        says(&report, Verdict::Unknown, text);
        assert_eq!(report.verdict, Verdict::Unknown, "{fs_type}");
    }
    let mut tree = Tree::new();
    tree.mounts("22 1 0:30 / / rw - cifs //server/share rw,nostrictsync\n");
    tree.regular("/image", dev(0, 30));
    assert_eq!(tree.image().verdict, Verdict::Unsafe);
}

#[test]
fn btrfs_is_followed_to_all_of_its_devices() {
    let mut tree = Tree::new();
    tree.mounts("22 1 0:30 /sub / rw - btrfs /dev/sda rw\n");
    tree.disk("sda", SDA, "write back");
    tree.disk("sdb", dev(8, 16), "write back");
    tree.disk("sdc", dev(8, 32), "write back");
    tree.node("/dev/sda", SDA);
    tree.regular("/image", dev(0, 31)).flags = IFlags::NOCOW | IFlags::COMPRESSED;
    tree.link("sys/fs/btrfs/0-1/devices/sdc", "sys/block/sdc");
    tree.link("sys/fs/btrfs/0-2/devices/sda", "sys/block/sda");
    tree.link("sys/fs/btrfs/0-2/devices/sdb", "sys/block/sdb");
    let report = tree.image();
    let names: Vec<&str> = report.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!(names, ["/image", "btrfs on /", "sda", "sdb"]);
    says(&report, Verdict::Note, "nocow");
    says(&report, Verdict::Note, "compressed");
}

#[test]
fn an_external_log_is_part_of_the_stack() {
    let mut tree = Tree::new();
    tree.mounts("22 1 8:0 / / rw - xfs /dev/sda rw,logdev=/dev/ram0\n");
    tree.disk("sda", SDA, "write back");
    tree.disk("ram0", dev(1, 0), "write back");
    tree.regular("/image", SDA);
    says(&tree.image(), Verdict::Unknown, "logdev=/dev/ram0");
    tree.node("/dev/ram0", dev(1, 0));
    assert_eq!(tree.image().verdict, Verdict::Unsafe, "a log in memory");
}

#[test]
fn a_partition_leads_to_its_disk() {
    let mut tree = Tree::new();
    tree.mounts("22 1 8:1 / / rw - xfs /dev/sda1 rw\n");
    tree.disk("sda", SDA, "write back");
    tree.partition("sda", "sda1", dev(8, 1));
    tree.regular("/image", dev(8, 1));
    let expected = [LayerKind::File, LayerKind::Filesystem, LayerKind::Partition, LayerKind::Disk];
    let report = tree.image();
    assert_eq!(kinds(&report), expected);
    assert_eq!(report.verdict, Verdict::Safe);
}

#[test]
fn a_loop_device_leads_to_its_backing_file_and_on() {
    let mut tree = Tree::ext4("rw", "write back");
    tree.disk("loop0", dev(7, 0), "write back");
    tree.write("sys/block/loop0/loop/backing_file", "/image\n");
    tree.write("sys/block/loop0/loop/dio", "0\n");
    tree.node("/dev/loop0", dev(7, 0));
    let report = tree.report("/dev/loop0");
    let expected =
        [LayerKind::File, LayerKind::Loop, LayerKind::File, LayerKind::Filesystem, LayerKind::Disk];
    assert_eq!(kinds(&report), expected);
    assert_eq!(report.verdict, Verdict::Safe, "{report}");
    assert_eq!(report.layers.iter().map(|layer| layer.depth).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    says(&report, Verdict::Note, "buffered");

    tree.write("sys/block/loop0/queue/write_cache", "write through\n");
    says(&tree.report("/dev/loop0"), Verdict::Unsafe, "backing file is never synced");
    tree.write("sys/block/loop0/queue/write_cache", "write back\n");

    tree.write("sys/block/loop0/loop/backing_file", "/gone (deleted)\n");
    says(&tree.report("/dev/loop0"), Verdict::Unsafe, "is deleted");
    tree.write("sys/block/loop0/loop/backing_file", "/hidden\n");
    says(&tree.report("/dev/loop0"), Verdict::Unknown, "/hidden cannot be looked at");
}

#[test]
fn stacks_that_bite_their_tail_or_have_no_bottom_end() {
    let mut tree = Tree::new();
    tree.disk("loop0", dev(7, 0), "write back");
    tree.write("sys/block/loop0/loop/backing_file", "/dev/loop0\n");
    tree.node("/dev/loop0", dev(7, 0));
    assert!(tree.report("/dev/loop0").layers.len() < 8);

    for minor in 0..100 {
        let name = format!("loop{minor}");
        if minor != 0 {
            tree.disk(&name, dev(7, minor), "write back");
        }
        tree.write(&format!("sys/block/{name}/loop/backing_file"), &format!("/dev/loop{}\n", minor + 1));
        tree.node(&format!("/dev/{name}"), dev(7, minor));
    }
    says(&tree.report("/dev/loop0"), Verdict::Unknown, "more than");
}

/// md0 on sda and sdb.
fn md(level: &str, policy: &str, degraded: &str) -> Tree {
    let mut tree = Tree::new();
    tree.disk("sda", SDA, "write back");
    tree.disk("sdb", dev(8, 16), "write back");
    tree.partition("sdb", "sdb1", dev(8, 17));
    tree.disk("md0", dev(9, 0), "write back");
    tree.write("sys/block/md0/md/level", level);
    tree.write("sys/block/md0/md/consistency_policy", policy);
    tree.write("sys/block/md0/md/degraded", degraded);
    tree.slave("md0", "sda");
    tree.slave("md0", "sdb/sdb1");
    tree.node("/dev/md0", dev(9, 0));
    tree
}

#[test]
fn md_follows_its_members_and_names_the_write_hole() {
    let report = md("raid1\n", "bitmap\n", "0\n").report("/dev/md0");
    assert_eq!(report.verdict, Verdict::Safe, "{report}");
    let expected = [LayerKind::File, LayerKind::Raid, LayerKind::Disk, LayerKind::Partition, LayerKind::Disk];
    assert_eq!(kinds(&report), expected);

    let report = md("raid5\n", "resync\n", "0\n").report("/dev/md0");
    says(&report, Verdict::Note, "write hole");
    assert_eq!(report.verdict, Verdict::Safe);
    says(&md("raid5\n", "resync\n", "1\n").report("/dev/md0"), Verdict::Unsafe, "write hole");
    says(&md("raid5\n", "journal\n", "1\n").report("/dev/md0"), Verdict::Safe, "write hole is closed");
    assert_eq!(md("faulty\n", "none\n", "0\n").report("/dev/md0").verdict, Verdict::Unknown);
}

#[test]
fn a_stacked_device_that_hides_a_volatile_cache_below_is_unsafe() {
    let tree = md("raid1\n", "bitmap\n", "0\n");
    tree.write("sys/block/md0/queue/write_cache", "write through\n");
    says(&tree.report("/dev/md0"), Verdict::Unsafe, "a device below has a volatile cache");
    tree.write("sys/block/sda/queue/write_cache", "write through\n");
    says(&tree.report("/dev/md0"), Verdict::Unsafe, "a device below has a volatile cache");
    tree.write("sys/block/sdb/queue/write_cache", "write through\n");
    says(&tree.report("/dev/md0"), Verdict::Note, "it is right where no device below");
}

#[test]
fn device_mapper_is_judged_by_its_targets() {
    let mut tree = Tree::new();
    tree.disk("sda", SDA, "write back");
    tree.disk("dm-0", dev(252, 0), "write back");
    tree.write("sys/block/dm-0/dm/name", "vg-disk\n");
    tree.slave("dm-0", "sda");
    tree.node("/dev/dm-0", dev(252, 0));
    for (targets, expected) in [
        (None, Verdict::Unknown),
        (Some(vec!["linear", "crypt"]), Verdict::Safe),
        (Some(vec!["linear", "flakey"]), Verdict::Unsafe),
        (Some(vec!["zero"]), Verdict::Unsafe),
        (Some(vec!["snapshot"]), Verdict::Unknown),
        (Some(vec!["made-up"]), Verdict::Unknown),
    ] {
        tree.dm = targets.map(|targets| targets.into_iter().map(str::to_owned).collect());
        let report = tree.report("/dev/dm-0");
        assert_eq!(report.verdict, expected, "{report}");
        assert_eq!(report.layers[1].name, "dm-0 (vg-disk)");
    }
}

#[test]
fn bcache_and_remote_devices() {
    let mut tree = Tree::new();
    tree.disk("sda", SDA, "write back");
    tree.disk("bcache0", dev(251, 0), "write back");
    tree.write("sys/block/bcache0/bcache/cache_mode", "writethrough [writeback] writearound none\n");
    tree.slave("bcache0", "sda");
    tree.node("/dev/bcache0", dev(251, 0));
    says(&tree.report("/dev/bcache0"), Verdict::Safe, "cache mode writeback");

    tree.disk("nbd0", dev(43, 0), "write through");
    tree.node("/dev/nbd0", dev(43, 0));
    says(&tree.report("/dev/nbd0"), Verdict::Unknown, "did not offer");
}

#[test]
fn a_device_that_sysfs_does_not_show_is_unknown() {
    let mut tree = Tree::new();
    tree.node("/dev/sdx", dev(65, 0));
    says(&tree.report("/dev/sdx"), Verdict::Unknown, "no block device 65:0");
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

/// This machine: a file in the build's temporary directory, its directory, and what is in memory.
mod here {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_real_file_is_walked_to_a_disk_or_found_to_be_in_memory() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("image");
        let file = fs::File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 65536], 1 << 18).unwrap();
        file.sync_all().unwrap();
        let report = probe(&path).unwrap();
        assert_eq!(report.layers[0].kind, LayerKind::File);
        assert_eq!(report.layers[1].kind, LayerKind::Filesystem);
        says(&report, Verdict::Note, &format!("{} of {} bytes are holes", (1 << 20) - 65536, 1 << 20));
        assert!(report.layers.len() > 2 || report.verdict != Verdict::Safe, "{report}");
        let report = probe(directory.path()).unwrap();
        says(&report, Verdict::Note, "a directory");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the probe leaves nothing behind");
    }

    #[test]
    fn shared_memory_is_unsafe() {
        if !Path::new("/dev/shm").is_dir() {
            eprintln!("skipped: no /dev/shm");
            return;
        }
        let report = probe(Path::new("/dev/shm")).unwrap();
        assert_eq!(report.verdict, Verdict::Unsafe, "{report}");
    }
}
