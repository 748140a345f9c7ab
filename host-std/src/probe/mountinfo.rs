//! /proc/thread-self/mountinfo, as proc_pid_mountinfo(5) describes it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// The mount's number, as `STATX_MNT_ID` gives it.
    pub(super) id: u64,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// The filesystem type, without a subtype: `fuse` for `fuse.sshfs`.
    pub(super) fs_type: String,
    /// What is mounted: a device, a server, a word.
    pub(super) source: PathBuf,
    /// The options of the mount and then those of the filesystem.
    options: Vec<String>,
}

impl Mount {
    /// Whether the option `name` is given, without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|option| option == name)
    }

    /// The value of the option `name`.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// One line: `id parent major:minor root point options [tag..] - type source super_options`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let point = path(fields.nth(3)?);
        let mut options = split(fields.next()?);
        fields.find(|&field| field == b"-")?;
        let fs_type = text(fields.next()?);
        let source = path(fields.next()?);
        options.extend(split(fields.next().unwrap_or_default()));
        let fs_type = fs_type.split('.').next().unwrap_or_default().to_owned();
        Some(Self { id, point, fs_type, source, options })
    }
}

/// The mounts of a mountinfo file, in its order. Lines that cannot be read are left out.
pub(super) fn parse(bytes: &[u8]) -> Vec<Mount> {
    bytes.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect()
}

/// The mount that `path`, a canonical one, lies on: the one with the number `id` where the kernel told it, else the
/// longest mount point above the path, and of several on one point the last, which hides the others.
pub(super) fn find<'a>(mounts: &'a [Mount], path: &Path, id: Option<u64>) -> Option<&'a Mount> {
    mounts.iter().find(|mount| Some(mount.id) == id).or_else(|| {
        mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    })
}

/// Undoes the octal escapes by which the kernel's `mangle()` keeps space, tab, newline, backslash and `#` out of a field.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Splits an option list before its escapes are undone. A comma within a value is escaped as `\054` by overlayfs.
fn split(field: &[u8]) -> Vec<String> {
    field.split(|&byte| byte == b',').map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,barrier=0\n\
30 22 0:40 / /srv rw - tmpfs none rw\n\
31 22 8:17 /sub /srv/my\\040disks\\134\\011x rw,noatime shared:2 master:3 - xfs /dev/sdb\\0431 rw,nobarrier\n\
32 22 0:41 / /srv rw - fuse.sshfs host:/a\\012b rw,user_id=0\n\
garbage\n\
33 22 0:42 / /o rw - overlay overlay rw,upperdir=/u\\054p,workdir=/w,volatile\n";

    #[test]
    fn octal_escapes_are_undone() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 5, "a line that cannot be read is left out");
        assert_eq!(mounts[2].point, Path::new("/srv/my disks\\\tx"));
        assert_eq!(mounts[2].source, Path::new("/dev/sdb#1"));
        assert_eq!(mounts[3].source, Path::new("host:/a\nb"));
        assert_eq!(mounts[4].value("upperdir"), Some("/u,p"), "an escaped comma does not end an option");
    }

    #[test]
    fn what_is_no_escape_stays_as_it_is() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999\\400"), b"\\999\\400");
        assert_eq!(unescape(b"\\"), b"\\");
        assert_eq!(unescape(b"\\377\\000"), [255, 0]);
    }

    #[test]
    fn optional_tags_are_skipped_and_both_option_lists_are_searched() {
        let mounts = parse(TEXT);
        assert_eq!(mounts[0].value("barrier"), Some("0"));
        assert!(!mounts[0].has("barrier") && !mounts[0].has("nobarrier"));
        assert!(mounts[2].has("noatime") && mounts[2].has("nobarrier"));
        assert_eq!(mounts[3].fs_type, "fuse");
    }

    #[test]
    fn the_mount_is_the_one_the_kernel_names_else_the_longest_and_last() {
        let mounts = parse(TEXT);
        let id = |path: &str, id| find(&mounts, Path::new(path), id).map(|mount| mount.id);
        assert_eq!(id("/srv/x", None), Some(32), "the later mount hides the earlier one");
        assert_eq!(id("/srv/x", Some(30)), Some(30), "the kernel knows better");
        assert_eq!(id("/srv/x", Some(99)), Some(32));
        assert_eq!(id("/srvx", None), Some(22), "/srv is no parent of /srvx");
        assert_eq!(id("/srv/my disks\\\tx/image", None), Some(31));
    }
}
