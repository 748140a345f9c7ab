//! Block devices that lie on others: partitions, loop devices, device mapper, md, bcache. Walked through sysfs.

use std::path::Path;

use super::device::{Device, WriteCache, hidden, write_cache_of_slave};
use super::report::{Layer, LayerKind};
use super::system::{DevNo, attribute};
use super::{Walk, disk};

impl Walk<'_> {
    /// The block device `dev`, and what it lies on.
    pub(super) fn device(&mut self, dev: DevNo, depth: u32) {
        if !self.may_descend(depth) || !self.seen.insert(dev) {
            return;
        }
        let Some(device) = Device::open(self.system.root(), dev) else {
            let mut layer = Layer::new(LayerKind::Disk, dev.to_string(), depth);
            layer.unknown(
                format!("no block device {dev} in /sys/dev/block"),
                "whether it keeps what it is told to is not known",
                "run the probe where sysfs is mounted, not in a container that hides it",
            );
            self.layers.push(layer);
            return;
        };
        if device.has("partition") {
            self.partition(&device, depth);
        } else if device.has("loop") || device.name.starts_with("loop") {
            self.loop_device(&device, depth);
        } else if device.has("dm") {
            let layer = self.device_mapper(&device, depth);
            self.stacked(&device, layer, depth);
        } else if device.has("md") {
            self.stacked(&device, raid(&device, depth), depth);
        } else if device.has("bcache") {
            self.stacked(&device, bcache(&device, depth), depth);
        } else {
            self.layers.push(disk::layer(self.system, &device, depth));
        }
    }

    fn partition(&mut self, device: &Device, depth: u32) {
        let mut layer = Layer::new(LayerKind::Partition, &device.name, depth);
        let disk = attribute(&device.dir.join("../dev")).and_then(|text| DevNo::parse(&text));
        match disk {
            Some(_) => layer.safe("a partition", "flushes are passed to the disk, and cover all of it"),
            None => layer.unknown(
                "its disk cannot be found",
                "nothing is known below",
                "probe the disk on its own",
            ),
        }
        self.layers.push(layer);
        if let Some(disk) = disk {
            self.device(disk, depth + 1);
        }
    }

    fn loop_device(&mut self, device: &Device, depth: u32) {
        let mut layer = Layer::new(LayerKind::Loop, &device.name, depth);
        let Some(backing) = device.attribute("loop/backing_file") else {
            layer.unknown("no backing file", "the loop device is not set up", "losetup it, then probe again");
            self.layers.push(layer);
            return;
        };
        let read_only = device.attribute("ro").as_deref() == Some("1");
        match device.write_cache() {
            WriteCache::Back => {
                layer.safe("loop", "a flush is an fsync of the backing file (drivers/block/loop.c, `lo_req_flush`)");
            }
            WriteCache::Through if read_only => layer.safe("loop, read-only", "there is nothing to lose"),
            WriteCache::Through => layer.loses(
                "queue/write_cache is \"write through\"",
                "no flush is sent, and the backing file is never synced: an administrator has overridden it, or the \
                 backing filesystem has no fsync",
                "write \"write back\" to queue/write_cache",
            ),
            WriteCache::Hidden => hidden(&mut layer),
        }
        if device.attribute("loop/dio").as_deref() == Some("1") {
            layer.note("direct I/O", "the backing file's page cache is bypassed; a flush is still needed");
        } else {
            layer
                .note("buffered", "the backing file's page cache holds the data a second time until a flush");
        }
        // The kernel appends this to the path of a file without a name; a file may also be called so.
        if let Some(path) = backing.strip_suffix(" (deleted)")
            && !Path::new(&backing).exists()
        {
            layer.loses(
                format!("backing file {path} is deleted"),
                "nothing will be left of it after a power cut",
                "copy the device to a file that has a name",
            );
            self.layers.push(layer);
            return;
        }
        self.lower_file(layer, Path::new(&backing), depth);
    }

    /// A device that lies on the devices named in its `slaves` directory.
    fn stacked(&mut self, device: &Device, mut layer: Layer, depth: u32) {
        let slaves = device.slaves();
        match device.write_cache() {
            WriteCache::Back => layer.safe("queue/write_cache is \"write back\"", "flushes are passed down"),
            WriteCache::Hidden => hidden(&mut layer),
            WriteCache::Through
                if slaves.iter().any(|slave| write_cache_of_slave(slave) == WriteCache::Back) =>
            {
                layer.loses(
                    "queue/write_cache is \"write through\", and a device below has a volatile cache",
                    "the kernel sends no flush at all: an administrator has overridden it, or the mapping drops flushes",
                    "write \"write back\" to queue/write_cache",
                );
            }
            WriteCache::Through => layer.note(
                "queue/write_cache is \"write through\"",
                "the kernel sends no flush; it is right where no device below has a volatile cache",
            ),
        }
        if slaves.is_empty() {
            layer.unknown(
                "no devices in its slaves directory",
                "what it lies on is not known",
                "probe the devices that it is made of",
            );
        }
        self.layers.push(layer);
        for slave in slaves {
            if let Some(dev) = attribute(&slave.join("dev")).and_then(|text| DevNo::parse(&text)) {
                self.device(dev, depth + 1);
            }
        }
    }

    fn device_mapper(&self, device: &Device, depth: u32) -> Layer {
        let name = device.attribute("dm/name").unwrap_or_default();
        let mut layer = Layer::new(LayerKind::DeviceMapper, format!("{} ({name})", device.name), depth);
        let Some(mut targets) = self.system.dm_targets(device.dev) else {
            layer.unknown(
                "the table cannot be read",
                "some target types drop writes or hold them in memory",
                "run the probe as root, or look at the table with dmsetup table",
            );
            return layer;
        };
        targets.sort();
        targets.dedup();
        for target in targets {
            dm_target(&mut layer, &target);
        }
        layer
    }
}

/// A type of device-mapper target (Documentation/admin-guide/device-mapper).
fn dm_target(layer: &mut Layer, target: &str) {
    match target {
        "linear" | "striped" | "crypt" | "mirror" | "raid" | "multipath" | "thin" | "thin-pool" | "era" | "delay"
        | "unstriped" | "switch" | "clone" | "ebs" | "zoned" | "vdo" | "log-writes" => {
            layer.safe(format!("target {target}"), "flushes are passed down, after its own metadata");
        }
        "cache" | "writecache" => layer.safe(
            format!("target {target}"),
            "a flush makes its metadata stable; acknowledged data may lie on the cache device only, which must not be lost",
        ),
        "integrity" => layer.safe(
            "target integrity",
            "flushes are passed down; without its journal a torn write reads back as an error",
        ),
        "verity" | "snapshot-origin" => layer.safe(format!("target {target}"), "it holds nothing back"),
        "snapshot" | "snapshot-merge" => layer.unknown(
            format!("target {target}"),
            "a snapshot that is not persistent is gone after a power cut",
            "dmsetup table: the word after the cow device must be P, not N",
        ),
        "zero" | "error" | "flakey" | "dust" => layer.loses(
            format!("target {target}"),
            "it is made for tests: it drops or fails writes",
            "use a mapping made for data",
        ),
        other => layer.unknown(
            format!("target {other}"),
            "it is not known whether it passes flushes down",
            "look it up in the kernel's documentation of device mapper",
        ),
    }
}

/// An md array (Documentation/admin-guide/md.rst).
fn raid(device: &Device, depth: u32) -> Layer {
    let level = device.attribute("md/level").unwrap_or_default();
    let mut layer = Layer::new(LayerKind::Raid, format!("{} ({level})", device.name), depth);
    let degraded = device.attribute("md/degraded").and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let policy = device.attribute("md/consistency_policy").unwrap_or_default();
    match level.as_str() {
        "raid0" | "linear" | "raid1" | "raid10" => layer.safe(level.as_str(), "flushes go to every member"),
        "raid4" | "raid5" | "raid6" => match policy.as_str() {
            "journal" | "ppl" => layer.safe(
                format!("{level} with consistency policy {policy}"),
                "flushes go to every member, and the write hole is closed",
            ),
            _ if degraded != 0 => layer.loses(
                format!("{level}, degraded, with consistency policy {policy:?}"),
                "write hole: a power cut in mid-stripe leaves parity wrong, and the missing member's acknowledged data \
                 with it",
                "replace the failed member; add a write journal (mdadm --add-journal)",
            ),
            _ => {
                layer.safe(level.as_str(), "flushes go to every member");
                layer.note_with(
                    format!("consistency policy {policy:?}"),
                    "write hole: after a power cut, parity is wrong until it is resynchronised; if a member fails before \
                     that, acknowledged data is lost",
                    "add a write journal (mdadm --add-journal), or use --consistency-policy=ppl on raid5",
                );
            }
        },
        _ => layer.unknown(
            format!("md level {level:?}"),
            "it is not known whether it passes flushes down",
            "use a level from raid0 to raid10",
        ),
    }
    if degraded != 0 {
        layer.note_with(
            format!("degraded: {degraded} members missing"),
            "redundancy is lost",
            "replace them",
        );
    }
    layer
}

fn bcache(device: &Device, depth: u32) -> Layer {
    let mut layer = Layer::new(LayerKind::Bcache, &device.name, depth);
    // The mode in use is in brackets.
    let modes = device.attribute("bcache/cache_mode").unwrap_or_default();
    let mode = modes.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
    match mode.as_str() {
        "writethrough" | "writearound" | "none" => {
            layer.safe(format!("cache mode {mode}"), "acknowledged data is on the backing device");
        }
        "writeback" => layer.safe(
            "cache mode writeback",
            "flushes are honoured; acknowledged data may lie on the cache device only, which must not be lost",
        ),
        _ => layer.unknown(format!("cache mode {mode}"), "nothing is known of it", "cat bcache/cache_mode"),
    }
    layer
}
