//! Disks, and the block devices that lie on them.

use super::*;

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
