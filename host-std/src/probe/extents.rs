//! Layout of a file: holes, unwritten extents, shared ones. By FIEMAP, or else by SEEK_HOLE.

use std::fs::File;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use super::ioctl;

/// How a file's bytes are laid out. Counts of bytes within the file's size, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents {
    /// Not allocated.
    pub(super) holes_bytes: u64,
    /// Allocated and never written.
    pub(super) unwritten_bytes: u64,
    /// Shared with another file: the next write moves it.
    pub(super) shared_bytes: u64,
    /// Not yet given a place on the disk: dirty in the page cache.
    pub(super) delayed_bytes: u64,
    /// Compressed or encrypted in place.
    pub(super) encoded_bytes: u64,
}

/// How the first `size_bytes` bytes of `file` are laid out, by FIEMAP or else by SEEK_HOLE.
pub(super) fn of(file: &File, size_bytes: u64) -> Option<Extents> {
    extents_by_fiemap(file, size_bytes).or_else(|| holes_by_seek(file, size_bytes))
}

/// Unwritten extents count as holes here, and nothing else is told.
fn holes_by_seek(file: &File, size_bytes: u64) -> Option<Extents> {
    let mut found = Extents::default();
    let mut at = 0;
    while at < size_bytes {
        let hole = rustix::fs::seek(file, SeekFrom::Hole(at)).ok()?.min(size_bytes);
        let data = match rustix::fs::seek(file, SeekFrom::Data(hole)) {
            Ok(data) => data.min(size_bytes),
            // There is no more data.
            Err(Errno::NXIO) => size_bytes,
            Err(_) => return None,
        };
        found.holes_bytes += data.saturating_sub(hole);
        if data <= at {
            break;
        }
        at = data;
    }
    Some(found)
}

/// Extents asked for at a time.
const EXTENTS: usize = 128;

/// `struct fiemap` of linux/fiemap.h with room for [`EXTENTS`] extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const FIEMAP_HEADER_BYTES: usize = 32;
const _: () = assert!(size_of::<FiemapExtent>() == 56);
const _: () = assert!(size_of::<Fiemap>() == FIEMAP_HEADER_BYTES + EXTENTS * 56);
/// `FS_IOC_FIEMAP`: the number's size is that of the header alone.
const FIEMAP: Opcode = opcode::read_write::<[u8; FIEMAP_HEADER_BYTES]>(b'f', 11);
const FIEMAP_LAST: u32 = 0x1;
const FIEMAP_DELAYED: u32 = 0x4;
const FIEMAP_ENCODED: u32 = 0x8;
const FIEMAP_UNWRITTEN: u32 = 0x800;
const FIEMAP_SHARED: u32 = 0x2000;

fn extents_by_fiemap(file: &File, size_bytes: u64) -> Option<Extents> {
    let mut found = Extents::default();
    let mut at = 0;
    while at < size_bytes {
        let mut map = Box::new(Fiemap {
            start: at,
            length: size_bytes - at,
            flags: 0,
            mapped: 0,
            count: EXTENTS as u32,
            reserved: 0,
            extents: [FiemapExtent::default(); EXTENTS],
        });
        // SAFETY: FS_IOC_FIEMAP reads and writes the header and writes at most `count` extents behind it
        // (fs/ioctl.c, `ioctl_fiemap`), which are within `Fiemap`; all its fields are plain integers.
        unsafe { ioctl::call::<FIEMAP, _>(file, &mut *map) }.ok()?;
        let mut last = true;
        for extent in map.extents.iter().take(map.mapped as usize) {
            let end = extent.logical.saturating_add(extent.length).min(size_bytes);
            let start = extent.logical.clamp(at, end.max(at));
            let end = end.max(start);
            found.holes_bytes += start - at;
            let length = end - start;
            for (flag, count) in [
                (FIEMAP_DELAYED, &mut found.delayed_bytes),
                (FIEMAP_ENCODED, &mut found.encoded_bytes),
                (FIEMAP_UNWRITTEN, &mut found.unwritten_bytes),
                (FIEMAP_SHARED, &mut found.shared_bytes),
            ] {
                *count += if extent.flags & flag != 0 { length } else { 0 };
            }
            at = end;
            // An extent of no length would be asked for for ever.
            last = extent.flags & FIEMAP_LAST != 0 || extent.length == 0;
        }
        if last {
            found.holes_bytes += size_bytes - at;
            break;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::FallocateFlags;

    use super::*;

    #[test]
    fn holes_and_unwritten_extents_are_told_apart() {
        let file = tempfile::tempfile().unwrap();
        let size_bytes = 1 << 20;
        file.set_len(size_bytes).unwrap();
        file.write_all_at(&[1; 65536], 131_072).unwrap();
        file.sync_all().unwrap();
        let holes_bytes = size_bytes - 65536;
        let expected = Extents { holes_bytes, ..Extents::default() };
        assert_eq!(holes_by_seek(&file, size_bytes), Some(expected));
        let Some(found) = extents_by_fiemap(&file, size_bytes) else {
            eprintln!("skipped: no FIEMAP on this filesystem");
            return;
        };
        assert_eq!(found, expected);
        if rustix::fs::fallocate(&file, FallocateFlags::empty(), 262_144, 131_072).is_err() {
            eprintln!("skipped: no fallocate on this filesystem");
            return;
        }
        let found = extents_by_fiemap(&file, size_bytes).unwrap();
        assert_eq!((found.holes_bytes, found.unwritten_bytes), (holes_bytes - 131_072, 131_072));
    }

    #[test]
    fn more_extents_than_one_call_returns_are_all_counted() {
        let file = tempfile::tempfile().unwrap();
        let pieces = 3 * EXTENTS as u64;
        for piece in 0..pieces {
            file.write_all_at(&[1; 65536], piece * 131_072).unwrap();
        }
        file.sync_all().unwrap();
        let size_bytes = pieces * 131_072;
        file.set_len(size_bytes).unwrap();
        let Some(found) = extents_by_fiemap(&file, size_bytes) else {
            eprintln!("skipped: no FIEMAP on this filesystem");
            return;
        };
        assert_eq!(found.holes_bytes, pieces * 65536);
    }
}
