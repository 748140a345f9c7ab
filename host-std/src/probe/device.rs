//! A block device, as sysfs shows it.

use std::path::{Path, PathBuf};

use super::filesystem::directories;
use super::report::Layer;
use super::system::{DevNo, attribute};

/// The directory of a block device in sysfs.
pub(super) struct Device {
    pub(super) dir: PathBuf,
    pub(super) name: String,
    pub(super) dev: DevNo,
}

/// What `queue/write_cache` says: whether the kernel sends flushes (block/blk-sysfs.c, `queue_wc_show`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteCache {
    Back,
    Through,
    /// The attribute cannot be read.
    Hidden,
}

impl Device {
    /// The device `dev` in the sysfs under `root`.
    pub(super) fn open(root: &Path, dev: DevNo) -> Option<Self> {
        let dir = root.join(format!("sys/dev/block/{dev}")).canonicalize().ok()?;
        // A slash in a device's name is an exclamation mark in sysfs.
        let name = dir.file_name()?.to_string_lossy().replace('!', "/");
        Some(Self { dir, name, dev })
    }

    /// An attribute's text.
    pub(super) fn attribute(&self, name: &str) -> Option<String> {
        attribute(&self.dir.join(name))
    }

    /// Whether the device has such a directory or attribute.
    pub(super) fn has(&self, name: &str) -> bool {
        self.dir.join(name).exists()
    }

    pub(super) fn write_cache(&self) -> WriteCache {
        write_cache(&self.dir)
    }

    /// The devices that this one lies on.
    pub(super) fn slaves(&self) -> Vec<PathBuf> {
        directories(&self.dir.join("slaves"))
    }
}

/// The write cache of the device, or of the disk of the partition, at `dir`.
fn write_cache(dir: &Path) -> WriteCache {
    let queue = if dir.join("partition").exists() { dir.join("../queue") } else { dir.join("queue") };
    match attribute(&queue.join("write_cache")).as_deref() {
        Some("write back") => WriteCache::Back,
        Some("write through") => WriteCache::Through,
        _ => WriteCache::Hidden,
    }
}

/// Through the link, so that `..` of a partition is its disk.
pub(super) fn write_cache_of_slave(slave: &Path) -> WriteCache {
    slave.canonicalize().map_or(WriteCache::Hidden, |dir| write_cache(&dir))
}

pub(super) fn hidden(layer: &mut Layer) {
    layer.unknown(
        "queue/write_cache cannot be read",
        "whether the kernel sends flushes is not known",
        "run the probe where sysfs is mounted",
    );
}
