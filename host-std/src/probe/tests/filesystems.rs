//! Filesystems, their options, and what they lie on.

use super::*;

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

    for option in ["volatile", "fsync=volatile"] {
        tree.mounts(&mounts(&format!("lowerdir=/l,upperdir=/up\\040per,workdir=/w,{option}")));
        says(&tree.report("/o/image"), Verdict::Unsafe, "overlay mounted volatile");
    }

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
