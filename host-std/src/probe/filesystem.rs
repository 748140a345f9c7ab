//! The filesystem layer: whether fdatasync on it commits the data and has the disk flush its cache.

use std::path::{Path, PathBuf};

use super::Walk;
use super::mountinfo::{self, Mount};
use super::report::{Layer, LayerKind};
use super::system::{DevNo, FileFacts, FileKind, attribute};

/// What a type of filesystem makes of fdatasync.
enum Promise {
    /// It commits data and metadata and then flushes the disk.
    Commits,
    /// There is no medium.
    Memory,
    /// Some other party answers, for the reason given and with the remedy given.
    Elsewhere(&'static str, &'static str),
    /// The upper directory's filesystem answers.
    Overlay,
    /// Nothing is written.
    ReadOnly,
}

/// The filesystem types that are known, as /proc/filesystems names them.
fn promise(fs_type: &str) -> Option<Promise> {
    const NFS: &str =
        "fdatasync is a COMMIT to the server, but a server that exports async acknowledges it from memory";
    const FUSE: &str = "the process that serves it decides; one that does not implement FSYNC makes fdatasync a silent success";
    const HOST: &str = "fdatasync is passed to the host, whose own stack is out of sight";
    const CLUSTER: &str = "fdatasync is passed to servers whose own stacks are out of sight";
    Some(match fs_type {
        "ext3" | "ext4" | "xfs" | "btrfs" | "f2fs" | "nilfs2" | "bcachefs" => Promise::Commits,
        // They have no journal, and still sync data, metadata and then the disk
        // (`ext2_fsync` through `generic_buffers_fsync`, `fat_file_fsync`, `exfat_file_fsync`).
        "ext2" | "vfat" | "msdos" | "exfat" => Promise::Commits,
        "tmpfs" | "ramfs" | "devtmpfs" | "hugetlbfs" | "rootfs" => Promise::Memory,
        "overlay" => Promise::Overlay,
        "squashfs" | "erofs" | "iso9660" | "cramfs" | "romfs" => Promise::ReadOnly,
        "nfs" | "nfs4" => {
            Promise::Elsewhere(NFS, "see that the server exports with sync, and probe on the server")
        }
        "cifs" | "smb3" => {
            Promise::Elsewhere(CLUSTER, "probe on the server; see that it has `strict sync = yes`")
        }
        "fuse" | "fuseblk" => {
            Promise::Elsewhere(FUSE, "ask the documentation of the serving program for fsync")
        }
        "virtiofs" | "9p" => Promise::Elsewhere(HOST, "run the probe on the host, on the shared directory"),
        "ceph" | "lustre" | "gfs2" | "ocfs2" | "afs" | "orangefs" => {
            Promise::Elsewhere(CLUSTER, "probe the servers' disks")
        }
        "zfs" => Promise::Elsewhere(
            "fdatasync is honoured unless the dataset has sync=disabled, which cannot be read from here",
            "zfs get sync: it must be standard or always; then probe the disks of the pool",
        ),
        _ => return None,
    })
}

impl Walk<'_> {
    /// The filesystem that `facts` lies on, and what that lies on.
    pub(super) fn filesystem(&mut self, facts: &FileFacts, depth: u32) {
        let mount = mountinfo::find(&self.mounts, &facts.path, facts.mount_id).cloned();
        let fs_type = match &mount {
            Some(mount) => mount.fs_type.clone(),
            None => magic_name(facts.fs_magic).to_owned(),
        };
        let name = match &mount {
            Some(mount) => format!("{fs_type} on {}", mount.point.display()),
            None => fs_type.clone(),
        };
        let mut layer = Layer::new(LayerKind::Filesystem, name, depth);
        if mount.is_none() {
            layer.unknown(
                "no mount of it in /proc/thread-self/mountinfo",
                "its options, such as nobarrier, cannot be read",
                "run the probe in the mount namespace that the path belongs to",
            );
        }
        let upper = mount.as_ref().and_then(|mount| mount.value("upperdir")).map(PathBuf::from);
        let known = promise(&fs_type);
        match &known {
            Some(Promise::Commits) => commits(&mut layer, mount.as_ref()),
            Some(Promise::Memory) => layer.loses(
                format!("{fs_type} lives in memory"),
                "fdatasync succeeds and stores nothing",
                "move the image to a filesystem on a disk",
            ),
            Some(Promise::Elsewhere(why, remedy)) => {
                elsewhere(&mut layer, mount.as_ref(), &fs_type, why, remedy)
            }
            Some(Promise::ReadOnly) => layer.safe("read-only", "there is nothing to lose"),
            Some(Promise::Overlay) => overlay(&mut layer, mount.as_ref(), upper.is_some()),
            None => layer.unknown(
                format!("filesystem type {fs_type}"),
                "it is not known whether its fdatasync commits data and flushes the disk",
                "move the image to ext4, xfs or btrfs, or to a block device of its own",
            ),
        }
        match (known, upper) {
            (Some(Promise::Overlay), Some(upper)) => self.lower_file(layer, &upper, depth),
            (Some(Promise::Commits | Promise::ReadOnly) | None, _) => {
                self.below_filesystem(layer, facts, mount.as_ref(), depth);
            }
            _ => self.layers.push(layer),
        }
    }

    /// The block devices that a filesystem lies on.
    fn below_filesystem(&mut self, mut layer: Layer, facts: &FileFacts, mount: Option<&Mount>, depth: u32) {
        let mut devices: Vec<DevNo> = Vec::new();
        if facts.dev.major != 0 {
            devices.push(facts.dev);
        } else if let Some(source) = mount.map(|mount| mount.source.as_path()) {
            // btrfs and others that may span disks give files an anonymous device.
            devices.extend(self.btrfs_devices(source));
            if devices.is_empty() {
                devices.extend(self.node(source));
            }
        }
        if devices.is_empty() {
            layer.unknown(
                "its block devices cannot be found",
                "whether they keep what they are told to is not known",
                "run the probe as root, or on the devices",
            );
        }
        for option in ["logdev", "rtdev"] {
            let Some(path) = mount.and_then(|mount| mount.value(option)) else { continue };
            match self.node(Path::new(path)) {
                Some(dev) => devices.push(dev),
                None => layer.unknown(
                    format!("{option}={path} cannot be looked at"),
                    "the filesystem's durability rests on that device too",
                    "probe that device on its own",
                ),
            }
        }
        self.layers.push(layer);
        for dev in devices {
            self.device(dev, depth + 1);
        }
    }

    /// The number of the block device whose node is at `path`.
    fn node(&self, path: &Path) -> Option<DevNo> {
        match self.system.file(path).ok()?.kind {
            FileKind::Block(dev) => Some(dev),
            _ => None,
        }
    }

    /// All devices of the btrfs filesystem that has `source` among its devices.
    fn btrfs_devices(&self, source: &Path) -> Vec<DevNo> {
        let Some(wanted) = self.node(source) else { return Vec::new() };
        for filesystem in directories(&self.system.root().join("sys/fs/btrfs")) {
            let devices: Vec<DevNo> = directories(&filesystem.join("devices"))
                .iter()
                .filter_map(|device| DevNo::parse(&attribute(&device.join("dev"))?))
                .collect();
            if devices.contains(&wanted) {
                return devices;
            }
        }
        Vec::new()
    }
}

/// The entries of a directory, in the order of their names; none if it cannot be read.
pub(super) fn directories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

fn commits(layer: &mut Layer, mount: Option<&Mount>) {
    let Some(mount) = mount else { return };
    let off = if mount.has("nobarrier") {
        Some("nobarrier")
    } else if mount.value("barrier") == Some("0") {
        Some("barrier=0")
    } else if mount.value("fsync_mode") == Some("nobarrier") {
        Some("fsync_mode=nobarrier")
    } else if mount.has("journal_flush_disabled") {
        Some("journal_flush_disabled")
    } else {
        None
    };
    match off {
        Some(option) => layer.loses(
            format!("mounted {option}"),
            "fdatasync leaves the data in the disk's volatile cache: no flush is sent",
            "remount it without that option",
        ),
        None => layer
            .safe(mount.fs_type.as_str(), "fdatasync and O_DSYNC commit the data and have the disk flush it"),
    }
    match mount.value("data") {
        Some("writeback") => layer.note(
            "mounted data=writeback",
            "after a power cut, blocks that were allocated and never synced may show old data; synced data is safe",
        ),
        Some("journal") => layer.note(
            "mounted data=journal",
            "O_DIRECT quietly goes through the page cache, and data is written twice",
        ),
        _ => {}
    }
    if mount.has("journal_async_commit") {
        layer.note("mounted journal_async_commit", "a commit is trusted by its checksum");
    }
    if ["ext2", "vfat", "msdos", "exfat"].contains(&mount.fs_type.as_str()) {
        layer.note("no journal", "after a power cut it must be checked before it is used");
    }
}

fn elsewhere(layer: &mut Layer, mount: Option<&Mount>, fs_type: &str, why: &str, remedy: &str) {
    if mount.is_some_and(|mount| mount.has("nostrictsync")) {
        layer.loses(
            "mounted nostrictsync",
            "fdatasync does not have the server flush anything (mount.cifs(8))",
            "remount it without that option",
        );
        return;
    }
    let source = mount.map(|mount| mount.source.display().to_string()).unwrap_or_default();
    layer.unknown(format!("{fs_type} from {source:?}"), why, remedy);
}

fn overlay(layer: &mut Layer, mount: Option<&Mount>, has_upper: bool) {
    // Given as `volatile`, and shown so until kernels showed `fsync=volatile` (seen on 6.18).
    if mount.is_some_and(|mount| mount.has("volatile") || mount.value("fsync") == Some("volatile")) {
        layer.loses(
            "overlay mounted volatile",
            "every sync is skipped and reported as done (`ovl_should_sync`)",
            "mount it without volatile, or put the image on a volume outside the overlay",
        );
    } else if has_upper {
        layer.safe("overlay", "syncs are passed to the file in the upper directory");
    } else if mount.is_some() {
        layer.safe("overlay without an upper directory", "it is read-only: there is nothing to lose");
    }
}

/// Names a filesystem by its magic number (linux/magic.h), for paths whose mount is out of sight.
fn magic_name(magic: u64) -> &'static str {
    match magic {
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0xf2f5_2010 => "f2fs",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0xff53_4d42 => "cifs",
        0x2fc1_2fc1 => "zfs",
        _ => "unknown",
    }
}
