//! Records that survive a loss of power, in a file beside the image: what devices remember that is no part of the disk.
//!
//! A record has two copies, and is stored by writing one after the other, each made stable before the next is begun:
//!
//! ```text
//! write first copy -> fdatasync -> write second copy -> fdatasync -> completes
//! cut: old, by the second          new, by the first
//! ```
//!
//! - One copy at most is torn by a loss of power, and the other then is the record as it was or as it was stored. When the file is
//!   opened, the one that is behind is made like the other before anything else is stored.
//! - So a copy that is damaged otherwise loses nothing, and what no loss of power explains is damage: the file is refused.
//! - The records are read once, when the file is opened; the memory of this process has them from then on.
//! - The file is made when the image is opened, since a confined process opens nothing later. Its lock is the image's, and one of its
//!   own, so that no two images have one file.
//! - In the cache mode that promises nothing, nothing is made stable.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use blk_core::units::StateKey;
use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, fallocate, fstat, fsync, ftruncate, open, stat, unlink,
};
use rustix::io::Errno;

use super::image::{Image, Kind};
use super::image_lock;
use super::open_error::OpenError;
use super::options::{FileOptions, StatePlace};
use super::state_layout::{COPY_BYTES, FILE_BYTES, PLACES, RecordCopy, offset};
use super::syscalls::Syscalls;
use crate::mutex::lock;

/// The records of an image.
pub(super) struct StateFile {
    path: PathBuf,
    file: OwnedFd,
    /// It was made here, and nothing has been stored in it.
    unused: Mutex<bool>,
    records: Mutex<Vec<Option<Box<RecordCopy>>>>,
}

/// Why a record was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoreError {
    /// As many records as there is room for; nothing was tried.
    Full,
    Failed(Errno),
}

impl StateFile {
    /// Opens or makes the file for an image that is open. `None` if the options want none, or it can have none by itself.
    pub(super) fn open<S: Syscalls>(
        syscalls: &S,
        image: &Image,
        options: &FileOptions,
    ) -> Result<Option<Self>, OpenError> {
        let (path, named) = match &options.state {
            StatePlace::Nowhere => return Ok(None),
            StatePlace::Beside if options.read_only || image.kind == Kind::Block => return Ok(None),
            StatePlace::Beside => (beside(image.path()), false),
            StatePlace::At(path) if options.read_only => {
                let what = "is for what the image's devices store, and the image is opened readonly";
                return Err(refused(path, what, "leave state out, or readonly"));
            }
            StatePlace::At(path) => (path.clone(), true),
        };
        match open_or_make(&path) {
            Ok((file, made)) => Self::load(syscalls, path, file, made, options).map(Some),
            Err(errno @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) if !named => {
                tracing::info!(path = %path.display(), %errno, "there is no place for records beside the image: it is served without");
                Ok(None)
            }
            Err(errno) => Err(OpenError::System {
                path,
                what: "open it for the records of an image",
                errno,
                remedy: "; make its folder, permit it to be written, or serve without it: state=off",
            }),
        }
    }

    fn load<S: Syscalls>(
        syscalls: &S,
        path: PathBuf,
        file: OwnedFd,
        made: bool,
        options: &FileOptions,
    ) -> Result<Self, OpenError> {
        let fail = |errno| OpenError::System {
            path: path.clone(),
            what: "read or make the records in it",
            errno,
            remedy: "; make room there, look into the kernel's log, or serve without it: state=off",
        };
        let facts = fstat(&file).map_err(fail)?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
            return Err(refused(&path, "is no regular file", "give the records a file of their own"));
        }
        if options.lock && image_lock::take(file.as_fd(), false).is_err() {
            return Err(OpenError::InUse {
                path,
                detail: "it is the file of another image's records",
                waited: std::time::Duration::ZERO,
                or: ", or give each image its own: state=PATH",
            });
        }
        let damaged = |what| {
            refused(
                &path,
                what,
                "restore it from a backup, or remove it: what devices had stored is lost then",
            )
        };
        if facts.st_size == 0 {
            prepare(&path, &file).map_err(fail)?;
        } else if u64::try_from(facts.st_size) != Ok(FILE_BYTES) {
            return Err(damaged("is no file of records, or a part of one"));
        }
        let mut bytes = vec![0; FILE_BYTES as usize];
        read_all(&file, &mut bytes).map_err(fail)?;
        let mut records: Vec<Option<Box<RecordCopy>>> = Vec::with_capacity(PLACES);
        let mut repaired = false;
        for place in 0..PLACES {
            let copies = [0, 1].map(|half| &bytes[offset(half, place) as usize..][..COPY_BYTES]);
            let record = newest(copies).ok_or_else(|| damaged("is damaged: a record has no whole copy"))?;
            if let Some(record) = &record {
                if records.iter().flatten().any(|other| other.key() == record.key()) {
                    return Err(damaged("is damaged: it has a record twice"));
                }
                for (half, copy) in copies.iter().enumerate() {
                    if *copy != bytes_of(record) {
                        write_all(syscalls, &file, bytes_of(record), offset(half, place)).map_err(fail)?;
                        repaired = true;
                    }
                }
            }
            records.push(record);
        }
        if repaired {
            syscalls.fdatasync(file.as_fd()).map_err(fail)?;
        }
        let unused = Mutex::new(made);
        Ok(Self { path, file, unused, records: Mutex::new(records) })
    }

    /// Calls `f` with a record: empty if it was never stored.
    pub(super) fn with_record<R>(&self, key: StateKey, f: impl FnOnce(&[u8]) -> R) -> R {
        let records = lock(&self.records);
        let record = records.iter().flatten().find(|record| record.key() == key);
        f(record.and_then(|record| record.data()).unwrap_or_default())
    }

    /// Replaces a record, by `data` of [`RECORD_BYTES_MAX`](super::state_layout::RECORD_BYTES_MAX) bytes at most. It is `stable` when
    /// this returns, if it is to be.
    pub(super) fn store<S: Syscalls>(
        &self,
        syscalls: &S,
        key: StateKey,
        data: &[u8],
        stable: bool,
    ) -> Result<(), StoreError> {
        let mut records = lock(&self.records);
        let has =
            |record: &Option<Box<RecordCopy>>| record.as_ref().is_some_and(|record| record.key() == key);
        let place = records.iter().position(has).or_else(|| records.iter().position(Option::is_none));
        let place = place.ok_or(StoreError::Full)?;
        let generation = records[place].as_ref().map_or(0, |record| record.generation()) + 1;
        let record = RecordCopy::new(key, generation, data).ok_or(StoreError::Full)?;
        *lock(&self.unused) = false;
        for half in [0, 1] {
            write_all(syscalls, &self.file, bytes_of(&record), offset(half, place))
                .map_err(StoreError::Failed)?;
            if stable {
                sync(syscalls, &self.file).map_err(StoreError::Failed)?;
            }
        }
        records[place] = Some(record);
        Ok(())
    }

    /// Removes a file that was made for an image that is not served after all.
    pub(super) fn undo(&self) {
        let same = || -> rustix::io::Result<bool> {
            let (there, ours) = (stat(&self.path)?, fstat(&self.file)?);
            Ok((there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino))
        };
        if *lock(&self.unused) && same() == Ok(true) && unlink(&self.path).is_err() {
            tracing::warn!(path = %self.path.display(), "cannot be removed; it holds no records");
        }
    }
}

/// `IMAGE.state`.
fn beside(image: &Path) -> PathBuf {
    let mut name = OsString::from(image);
    name.push(".state");
    name.into()
}

/// And whether it was made.
fn open_or_make(path: &Path) -> rustix::io::Result<(OwnedFd, bool)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match open(path, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR) {
        Err(Errno::EXIST) => Ok((open(path, flags, Mode::empty())?, false)),
        made => Ok((made?, true)),
    }
}

/// Gives a new file its size, and its blocks, so that no record fails for want of space later; and its name a place that lasts.
fn prepare(path: &Path, file: &OwnedFd) -> rustix::io::Result<()> {
    // The size at once: a file that is cut between this and what follows is one without records.
    ftruncate(file, FILE_BYTES)?;
    match fallocate(file, FallocateFlags::empty(), 0, FILE_BYTES) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        result => result?,
    }
    fsync(file)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    fsync(folder)
}

/// The record of a place, by its copies; `None` if they are damaged.
fn newest(copies: [&[u8]; 2]) -> Option<Option<Box<RecordCopy>>> {
    let unused = copies.map(|copy| copy.iter().all(|&byte| byte == 0));
    match copies.map(RecordCopy::parse) {
        [Some(first), Some(second)] if first.key() != second.key() => None,
        [Some(first), Some(second)] if second.generation() > first.generation() => Some(Some(second)),
        [Some(one), _] | [None, Some(one)] => Some(Some(one)),
        // Never stored, or cut in its first copy when it was to be stored for the first time.
        [None, None] => unused[1].then_some(None),
    }
}

fn bytes_of(record: &RecordCopy) -> &[u8] {
    zerocopy::IntoBytes::as_bytes(record)
}

fn read_all(file: &OwnedFd, mut into: &mut [u8]) -> rustix::io::Result<()> {
    let mut at = 0;
    while !into.is_empty() {
        match rustix::io::pread(file, &mut *into, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(bytes) => (into, at) = (&mut into[bytes..], at + bytes as u64),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write_all<S: Syscalls>(
    syscalls: &S,
    file: &OwnedFd,
    mut from: &[u8],
    mut at: u64,
) -> rustix::io::Result<()> {
    while !from.is_empty() {
        match syscalls.write_record(file.as_fd(), from, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(bytes) => (from, at) = (&from[bytes..], at + bytes as u64),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn sync<S: Syscalls>(syscalls: &S, file: &OwnedFd) -> rustix::io::Result<()> {
    loop {
        match syscalls.fdatasync(file.as_fd()) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn refused(path: &Path, what: &'static str, remedy: &'static str) -> OpenError {
    OpenError::State { path: path.into(), what, remedy }
}

#[cfg(all(test, not(loom)))]
mod tests;
