//! The layer that the path names: an image, a directory for images, a device node.

use rustix::fs::IFlags;

use super::extents::Extents;
use super::report::{Layer, LayerKind};
use super::system::{Direct, FileFacts, FileKind};

/// Bytes of the smallest sector that a guest is shown.
const SECTOR_BYTES: u64 = blk_core::units::SECTOR_BYTES as u64;

pub(super) fn layer(facts: &FileFacts, depth: u32) -> Layer {
    let mut layer = Layer::new(LayerKind::File, facts.path.display().to_string(), depth);
    match facts.kind {
        FileKind::Regular => {
            size(&mut layer, facts.size_bytes);
            if let Some(extents) = facts.extents {
                layout(&mut layer, extents, facts.size_bytes);
            } else {
                layer.note(
                    "the layout cannot be read",
                    "holes would make stable writes slow, and could fail them",
                );
            }
            flags(&mut layer, facts);
        }
        FileKind::Directory => {
            layer.note("a directory", "what follows holds for images to be made in it");
            flags(&mut layer, facts);
        }
        FileKind::Block(dev) => {
            layer.note(
                format!("block device {dev}, {} bytes", facts.size_bytes),
                "no filesystem lies between: fdatasync is a flush, and an O_DIRECT|O_DSYNC write is FUA, or a write and \
                 a flush",
            );
        }
        FileKind::Other => {}
    }
    direct(&mut layer, facts.direct);
    layer
}

fn size(layer: &mut Layer, size_bytes: u64) {
    if size_bytes == 0 {
        layer.note_with("the file is empty", "it is a disk of no sectors", "give it a size with truncate -s");
    } else if !size_bytes.is_multiple_of(SECTOR_BYTES) {
        layer.note_with(
            format!("{size_bytes} bytes, not a multiple of {SECTOR_BYTES}"),
            "the bytes after the last whole sector are out of the guest's reach",
            "extend the file to a multiple of its logical block",
        );
    } else {
        layer.note(format!("{size_bytes} bytes"), "a whole number of sectors");
    }
}

fn layout(layer: &mut Layer, extents: Extents, size_bytes: u64) {
    let Extents { holes_bytes, unwritten_bytes, shared_bytes, delayed_bytes, encoded_bytes } = extents;
    if holes_bytes != 0 {
        layer.note_with(
            format!("sparse: {holes_bytes} of {size_bytes} bytes are holes"),
            "a stable write into a hole commits the filesystem's journal too, which is slow, and a full host fails it",
            "allocate and write the whole image where speed matters (dd if=/dev/zero conv=notrunc on a new one)",
        );
    }
    if unwritten_bytes != 0 {
        layer.note_with(
            format!("{unwritten_bytes} bytes are allocated and unwritten"),
            "a stable write there commits the filesystem's journal too; fallocate alone does not help",
            "write zeroes over a new image where speed matters",
        );
    }
    if shared_bytes != 0 {
        layer.note(
            format!("{shared_bytes} bytes are shared with other files"),
            "the first write there copies, and may run out of space",
        );
    }
    if delayed_bytes != 0 {
        layer.note_with(
            format!("{delayed_bytes} bytes have no place on the disk yet"),
            "they are in the page cache only and are lost in a power cut before an fdatasync",
            "sync the image once before it is used",
        );
    }
    if encoded_bytes != 0 {
        layer.note(
            format!("{encoded_bytes} bytes are compressed or encrypted in place"),
            "O_DIRECT may quietly go through the page cache",
        );
    }
    if extents == Extents::default() && size_bytes != 0 {
        layer.note("every byte is allocated and written", "an overwrite needs no journal commit");
    }
}

fn flags(layer: &mut Layer, facts: &FileFacts) {
    if facts.flags.contains(IFlags::NOCOW) {
        layer.note(
            "attribute nocow (C)",
            "overwrites in place, without checksums: a torn write is not detected by the filesystem",
        );
    }
    if facts.flags.contains(IFlags::COMPRESSED) {
        layer.note_with(
            "attribute compressed (c)",
            "O_DIRECT may quietly go through the page cache, and every overwrite moves data",
            "chattr -c on a new, empty image",
        );
    }
    if facts.flags.intersects(IFlags::IMMUTABLE | IFlags::APPEND) {
        layer.note_with("immutable or append-only", "a guest cannot write to it", "chattr -ia");
    }
    if facts.dax {
        layer.note("DAX", "file data bypasses the page cache; fdatasync still commits it");
    }
}

fn direct(layer: &mut Layer, direct: Direct) {
    match direct {
        Direct::No => layer.note(
            "O_DIRECT is not supported",
            "the cache modes none and directsync cannot be used; writethrough and writeback can",
        ),
        Direct::Unknown => layer.note_with(
            "whether O_DIRECT is supported is not known",
            "the cache modes none and directsync may fail",
            "run the probe as a user who may open the image",
        ),
        Direct::Yes { offset_bytes: 0, .. } => {
            layer.note("O_DIRECT is supported", "its alignment is not told (no STATX_DIOALIGN): take 4096");
        }
        Direct::Yes { memory_bytes, offset_bytes } => {
            layer.note(
                format!("O_DIRECT, with offsets aligned to {offset_bytes} and memory to {memory_bytes} bytes"),
                if u64::from(offset_bytes) > SECTOR_BYTES {
                    "a 512-byte guest write is a read, a change and a write of its neighbours: show the guest blocks of that \
                     size"
                } else {
                    "any sector of a guest can be written on its own"
                },
            );
        }
    }
}
