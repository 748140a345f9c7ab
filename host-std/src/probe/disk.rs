//! The lowest layer that this machine sees: a disk, or what stands in for one.

use super::device::{Device, WriteCache, hidden};
use super::filesystem::directories;
use super::report::{Layer, LayerKind};
use super::system::{System, attribute};

pub(super) fn layer(system: &dyn System, device: &Device, depth: u32) -> Layer {
    let name = device.name.as_str();
    let model = ["device/vendor", "device/model"]
        .iter()
        // virtio and others have a number there.
        .filter_map(|name| device.attribute(name).filter(|text| !text.starts_with("0x")))
        .collect::<Vec<_>>()
        .join(" ");
    let title = if model.is_empty() { name.to_owned() } else { format!("{name} ({model})") };
    let kind = kind(name, &model);
    let mut layer = Layer::new(kind, title, depth);
    match kind {
        LayerKind::Memory => layer.loses(
            "a block device in memory",
            "flushes succeed and store nothing",
            "keep images on a disk",
        ),
        LayerKind::Remote => remote(&mut layer, device),
        _ => {
            if let Some(what) = virtual_disk(name, &model) {
                layer.unknown(
                    what,
                    "whether the host below makes a flush stable cannot be seen from here",
                    "run the probe on the host, on the disk's image; see that its cache mode is not unsafe",
                );
            }
            write_cache(&mut layer, system, device);
        }
    }
    geometry(&mut layer, device);
    layer
}

/// What a device's name (Documentation/admin-guide/devices.txt) and model say that it is.
fn kind(name: &str, model: &str) -> LayerKind {
    let is = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|next: char| next.is_ascii_digit()))
    };
    if is("ram") || is("zram") || is("nullb") || model.contains("scsi_debug") {
        LayerKind::Memory
    } else if is("nbd") || is("rbd") || is("drbd") || is("ublkb") {
        LayerKind::Remote
    } else {
        LayerKind::Disk
    }
}

/// Whether the disk is one that a hypervisor emulates.
fn virtual_disk(name: &str, model: &str) -> Option<String> {
    const MODELS: [&str; 9] = [
        "QEMU",
        "VMware",
        "VBOX",
        "Virtual",
        "Msft",
        "Amazon Elastic",
        "PersistentDisk",
        "CROSVM",
        "OpenVMM",
    ];
    if name.starts_with("vd") {
        Some("a virtual machine's disk (virtio)".to_owned())
    } else if name.starts_with("xvd") {
        Some("a virtual machine's disk (Xen)".to_owned())
    } else {
        MODELS
            .iter()
            .any(|known| model.contains(known))
            .then(|| format!("a virtual machine's disk (model {model:?})"))
    }
}

fn remote(layer: &mut Layer, device: &Device) {
    let (why, remedy) = if device.write_cache() == WriteCache::Through && device.name.starts_with("nbd") {
        (
            "no flush is sent: the server did not offer it (NBD_FLAG_SEND_FLUSH), or an administrator has overridden it; \
             stable only if the server is write-through",
            "use a server that offers flush, on a stack that is safe",
        )
    } else {
        ("whether the server makes a flush stable cannot be seen from here", "probe the server's own stack")
    };
    layer.unknown("a block device served from elsewhere", why, remedy);
}

/// Whether the kernel sends this disk flushes, and whether it may leave them out.
fn write_cache(layer: &mut Layer, system: &dyn System, device: &Device) {
    match device.write_cache() {
        WriteCache::Back => {
            layer.safe(
                "queue/write_cache is \"write back\"",
                "the kernel sends the disk a flush for each fdatasync; that its firmware obeys is taken on trust",
            );
            if device.attribute("queue/fua").as_deref() == Some("1") {
                layer.note("FUA", "an O_DIRECT|O_DSYNC overwrite is one FUA write, without a flush");
            } else {
                layer.note("no FUA", "an O_DSYNC write is a write and a flush");
            }
        }
        WriteCache::Hidden => hidden(layer),
        WriteCache::Through => write_through(layer, system, device),
    }
}

/// What the disk itself says of its cache, where it can be asked.
fn says_volatile(system: &dyn System, device: &Device) -> Option<bool> {
    if device.name.starts_with("nvme") {
        return system.nvme_volatile_cache(&device.name);
    }
    // virtio-blk has `cache_type` of its own, read from the device; SCSI disks have one that was read from the caching page
    // (drivers/block/virtio_blk.c, `cache_type_show`; drivers/scsi/sd.c, likewise).
    let scsi =
        directories(&device.dir.join("device/scsi_disk")).into_iter().map(|dir| dir.join("cache_type"));
    let text = device.attribute("cache_type").or_else(|| scsi.filter_map(|path| attribute(&path)).next())?;
    Some(text.starts_with("write back"))
}

fn write_through(layer: &mut Layer, system: &dyn System, device: &Device) {
    const OVERRIDE: &str = "if an administrator wrote it, write \"write back\" to queue/write_cache";
    let what = "queue/write_cache is \"write through\": the kernel sends no flush at all";
    let usb = device.dir.components().any(|part| part.as_os_str().to_string_lossy().starts_with("usb"));
    match says_volatile(system, device) {
        Some(true) => layer.loses(
            what,
            "the disk itself says that it has a volatile cache: an administrator has overridden the kernel",
            "write \"write back\" to queue/write_cache, and take out the rule that writes \"write through\" there",
        ),
        Some(false) if usb => layer.unknown(
            what,
            "a USB bridge that does not report the disk's cache is assumed to have none",
            "hdparm -W0 the disk behind the bridge, or do not use it for images",
        ),
        Some(false) if device.name.starts_with("vd") => virtio_without_flush(layer, device, what),
        Some(false) => {
            layer.safe(what, "the disk itself says that it has no volatile cache");
            layer.note_with(
                "no volatile cache",
                "true of disks that protect theirs from power loss; a cache_type of \"temporary write through\" that an \
                 administrator has written reads the same",
                OVERRIDE,
            );
        }
        None => {
            layer.note_with(
                what,
                "true of a disk without a volatile cache; an administrator can have written it too",
                OVERRIDE,
            );
            layer.unknown(
                "the disk cannot be asked about its cache",
                "which of the two it is cannot be told",
                "run the probe as root; compare with what the disk says of itself (nvme id-ctrl: vwc; hdparm -I; sdparm \
                 --get=WCE)",
            );
        }
    }
}

/// A virtio disk that is write-through: by its own word, or because it has no flush command.
fn virtio_without_flush(layer: &mut Layer, device: &Device, what: &str) {
    // `features` in sysfs is a string of bits from bit 0 on; VIRTIO_BLK_F_FLUSH is bit 9 (VIRTIO 1.2, 5.2.3).
    let flush = device.attribute("device/features").and_then(|bits| bits.chars().nth(9));
    match flush {
        Some('0') => layer.unknown(
            what,
            "the device offers no flush command. It must then be write-through (VIRTIO 1.2, 5.2.6.2), which some monitors \
             are not: they offer no flush so as to be fast",
            "have the host offer a flush command (a cache mode other than unsafe)",
        ),
        _ => layer.note(what, "the device says that its writes are write-through"),
    }
}

fn geometry(layer: &mut Layer, device: &Device) {
    let queue =
        |name: &str| device.attribute(&format!("queue/{name}")).and_then(|text| text.parse::<u64>().ok());
    let (Some(logical), Some(physical)) = (queue("logical_block_size"), queue("physical_block_size")) else {
        return;
    };
    let medium = if queue("rotational") == Some(1) { "rotational" } else { "not rotational" };
    let discard = match queue("discard_granularity") {
        None | Some(0) => "no discard".to_owned(),
        Some(bytes) => format!("discard by {bytes} bytes"),
    };
    layer.note(
        format!("{logical}-byte logical and {physical}-byte physical blocks, {medium}, {discard}"),
        if physical > logical {
            "a write smaller than a physical block is a read, a change and a write in the disk: show the guest that physical \
             size"
        } else {
            "every block can be written on its own"
        },
    );
}
