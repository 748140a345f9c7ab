//! An image that is made, or extended, because the option `size` asks for it: once it is locked, and not for one that is refused.
//!
//! ```text
//! create (0600) -> open -> lock -> extend -> measure -> served
//!                   |       |        |          |          |
//!                   +-------+--------+----------+----------+--> undone: as long as before, or removed, if it was made here
//! ```
//!
//! Not undone: what another program has locked since. That is its image.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, fchmod, fstat, ftruncate, open, stat, unlink};
use rustix::io::Errno;

use super::image_lock;
use super::open_error::OpenError;

/// What an image was before it was made or extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Absent,
    Bytes(u64),
}

/// Makes an empty file for an image of `bytes` bytes, if there is nothing at `path`.
pub(super) fn create(path: &Path, bytes: u64) -> Result<Option<OwnedFd>, OpenError> {
    let owner_only = Mode::RUSR | Mode::WUSR;
    // Plain: with O_DIRECT the file would be made also where that cannot be used.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = match open(path, flags, owner_only) {
        Err(Errno::EXIST) => return Ok(None),
        made => made.map_err(|errno| refused(path, bytes, errno))?,
    };
    // The umask can have taken bits away that we need.
    if let Err(errno) = fchmod(&file, owner_only) {
        remove_unless_used(path, &file);
        return Err(refused(path, bytes, errno));
    }
    Ok(Some(file))
}

/// Makes a file of `now` bytes longer, unless it is long enough.
pub(super) fn extend(path: &Path, file: BorrowedFd<'_>, now: u64, bytes: u64) -> Result<(), OpenError> {
    if bytes <= now {
        return Ok(());
    }
    ftruncate(file, bytes).map_err(|errno| refused(path, bytes, errno))
}

/// Puts an image back as it was. The caller holds its lock by `file`.
pub(super) fn undo(path: &Path, file: BorrowedFd<'_>, before: Before) {
    let undone = match before {
        Before::Absent => remove(path, file),
        Before::Bytes(bytes) => ftruncate(file, bytes),
    };
    if let Err(error) = undone {
        tracing::warn!(image = %path.display(), %error, "cannot be put back as it was before this start");
    }
}

/// Removes a file that was made here and that nobody has locked.
pub(super) fn remove_unless_used(path: &Path, file: &OwnedFd) {
    if image_lock::take(file.as_fd(), false).is_ok() {
        undo(path, file.as_fd(), Before::Absent);
    }
}

/// Removes the file, if it is the one at `path` still.
fn remove(path: &Path, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let (there, ours) = (stat(path)?, fstat(file)?);
    if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) { unlink(path) } else { Ok(()) }
}

fn refused(path: &Path, bytes: u64, errno: Errno) -> OpenError {
    let remedy = match errno {
        Errno::NOENT | Errno::NOTDIR => "make its folder first",
        Errno::NOSPC | Errno::DQUOT => "make room there",
        Errno::FBIG | Errno::INVAL => {
            "give what the file system and the limit on file sizes (ulimit -f) allow"
        }
        Errno::ACCESS | Errno::PERM | Errno::ROFS => "check the permissions of its folder",
        _ => "make it yourself, and leave size out",
    };
    OpenError::Size { path: path.into(), bytes, errno, remedy }
}
