//! The image: opened by its cache mode, locked, measured.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use blk_core::storage::{Cache, CacheMode, Info};
use blk_core::units::SECTOR_BYTES;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, Stat, StatxFlags, fallocate, fstat, fstatfs,
    ftruncate, ioctl_blkpbszget, ioctl_blksszget, major, minor, open, seek, statx,
};
use rustix::io::Errno;

use super::image_info::SharedInfo;
use super::image_lock;
use super::image_size::{self, Before};
use super::limits::{ALIGN_MAX, SEGMENTS_MAX, STAGING_BYTES, TRANSFER_MAX_BYTES};
use super::open_error::OpenError;
use super::options::FileOptions;
use crate::mutex::lock;

/// What kind of file the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Block,
}

/// `O_DSYNC`. Not rustix's `OFlags::DSYNC`, which is `O_SYNC` (1.1.6, linux_raw): that also commits the times of the inode,
/// with each write.
const DSYNC: OFlags = OFlags::from_bits_retain(libc::O_DSYNC.cast_unsigned());

/// An open image.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) info: SharedInfo,
    /// Whether completed flushes mean anything.
    pub(super) flushes: bool,
    /// Whether discards release space.
    pub(super) discards: bool,
    /// Whether it is a file in memory (tmpfs, ramfs, memfd), where no call waits for a device.
    pub(super) in_memory: bool,
    pub(super) kind: Kind,
    /// Every write is made on a file opened `O_DSYNC`.
    pub(super) dsync: bool,
    /// What direct I/O demands of addresses and of offsets and lengths, in bytes; `None` where the page cache takes anything.
    pub(super) direct: Option<Alignment>,
    /// Unit in bytes of the range operations of a block device; 1 for a file.
    pub(super) range_unit: u64,
    path: PathBuf,
    flags: OFlags,
    /// What it was before the options' size was given to it, if it was another.
    before: Option<Before>,
    /// The image is open for good. Until it is, `before` is restored if it is dropped.
    opened: AtomicBool,
    resizing: Mutex<()>,
    /// Holds the locks.
    file: OwnedFd,
}

impl Drop for Image {
    fn drop(&mut self) {
        if !self.opened.load(Ordering::Relaxed) {
            self.undo_size();
        }
        // Not left to the closing of `file`: a child between fork and exec may hold a copy of it for a while.
        image_lock::release(self.file.as_fd());
    }
}

/// What direct I/O demands, in bytes: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    pub(super) memory: u32,
    pub(super) offset: u32,
}

/// How often an image that is in use is tried again.
const LOCK_PAUSE: Duration = Duration::from_millis(10);

impl Image {
    /// Opens an image. One that is in use is waited for as long as the options say: the lock of a process that was killed
    /// is held until the last of its operations has ended.
    pub(super) fn open(path: &Path, options: &FileOptions) -> Result<Self, OpenError> {
        let began = Instant::now();
        loop {
            match Self::make_and_open(path, options) {
                Err(OpenError::InUse { detail, or, .. }) => {
                    let left = options.lock_wait.saturating_sub(began.elapsed());
                    if left.is_zero() {
                        let waited = options.lock_wait;
                        return Err(OpenError::InUse { path: path.into(), detail, waited, or });
                    }
                    std::thread::sleep(LOCK_PAUSE.min(left));
                }
                result => return result,
            }
        }
    }

    /// Opens an image after making it, if the options ask for that.
    fn make_and_open(path: &Path, options: &FileOptions) -> Result<Self, OpenError> {
        let made = match options.size {
            Some(bytes) => image_size::create(path, bytes)?,
            None => None,
        };
        let mut opened = Self::open_now(path, options);
        match (&mut opened, made) {
            (Ok(image), Some(_)) => image.before = Some(Before::Absent),
            (Err(_), Some(made)) => image_size::remove_unless_used(path, &made),
            (_, None) => {}
        }
        opened
    }

    fn open_now(path: &Path, options: &FileOptions) -> Result<Self, OpenError> {
        let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let mut flags = access | OFlags::CLOEXEC;
        flags.set(OFlags::DIRECT, options.mode.direct());
        flags.set(DSYNC, options.mode.dsync());
        let file = open(path, flags | OFlags::NONBLOCK, Mode::empty())
            .map_err(|errno| system(path, "open it", open_remedy(path, options, errno))(errno))?;
        let stat = fstat(&file).map_err(system(path, "stat it", SEE_KERNEL_LOG))?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::BlockDevice => Kind::Block,
            _ => return Err(OpenError::NotADisk { path: path.into() }),
        };
        let exclusive = kind == Kind::Block && options.lock && !options.read_only;
        let again = if exclusive { flags | OFlags::EXCL } else { flags };
        let file = reopen(path, &file, again).map_err(|errno| match errno {
            Errno::BUSY => OpenError::InUse {
                path: path.into(),
                detail: "the device is mounted, part of another device, or open exclusively",
                waited: Duration::ZERO,
                or: ", or unmount it",
            },
            errno => cannot_reopen(path)(errno),
        })?;
        if options.lock {
            image_lock::take(file.as_fd(), options.read_only).map_err(|errno| match errno {
                Errno::AGAIN => OpenError::InUse {
                    path: path.into(),
                    detail: "it holds the image lock",
                    waited: Duration::ZERO,
                    or: "",
                },
                errno => system(path, "lock it", "; put it on a file system that has locks")(errno),
            })?;
        }
        let Some(wanted) = options.size else {
            return Self::measure(path, options, flags, file, kind, &stat);
        };
        // Only now that it is ours.
        let again = |file| fstat(file).map_err(system(path, "stat it", SEE_KERNEL_LOG));
        let before = u64::try_from(again(&file)?.st_size).unwrap_or(0);
        if kind == Kind::File {
            image_size::extend(path, file.as_fd(), before, wanted)?;
        }
        // The lock lives as long as one of its descriptors.
        let locked = file.try_clone().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::MFILE);
            image_size::undo(path, file.as_fd(), Before::Bytes(before));
            system(path, "open it again", "; raise the limit on open files")(errno)
        })?;
        let stat = again(&file)?;
        let mut measured = Self::measure(path, options, flags, file, kind, &stat);
        let extended = kind == Kind::File && before < wanted;
        match &mut measured {
            Ok(image) if extended => image.before = Some(Before::Bytes(before)),
            Ok(image) if image.info.sectors() < wanted / u64::from(SECTOR_BYTES) => {
                let (errno, remedy) = (Errno::INVAL, "a device keeps the size that it has: leave size out");
                return Err(OpenError::Size { path: path.into(), bytes: wanted, errno, remedy });
            }
            Err(_) if extended => image_size::undo(path, locked.as_fd(), Before::Bytes(before)),
            Ok(_) | Err(_) => {}
        }
        measured
    }

    fn measure(
        path: &Path,
        options: &FileOptions,
        flags: OFlags,
        file: OwnedFd,
        kind: Kind,
        stat: &Stat,
    ) -> Result<Self, OpenError> {
        let fail = |what| system(path, what, SEE_KERNEL_LOG);
        let device = match kind {
            Kind::File => stat.st_dev,
            Kind::Block => stat.st_rdev,
        };
        let (bytes, unit, physical) = match kind {
            Kind::File => {
                let block = u32::try_from(stat.st_blksize).unwrap_or(0);
                (u64::try_from(stat.st_size).unwrap_or(0), SECTOR_BYTES, block)
            }
            Kind::Block => (
                seek(&file, SeekFrom::End(0)).map_err(fail("find its size"))?,
                ioctl_blksszget(&file).map_err(fail("find its block size"))?,
                ioctl_blkpbszget(&file).map_err(fail("find its block size"))?,
            ),
        };
        // A file in memory is all page cache, which takes anything, `O_DIRECT` or not. (A device's node lies in a tmpfs, too.)
        let in_memory = kind == Kind::File && matches!(file_system(file.as_fd()), Some(TMPFS | RAMFS));
        let direct = if options.mode.direct() && !in_memory {
            Some(alignment(path, &file, kind, unit)?)
        } else {
            None
        };
        let logical = options.logical_block_bytes.unwrap_or(unit);
        check_sizes(path, bytes, logical, direct)?;
        let physical = if physical.is_power_of_two() { physical.max(logical) } else { logical };
        let info = Info {
            sectors: bytes / u64::from(SECTOR_BYTES),
            logical_block_bytes: logical,
            physical_block_bytes: physical,
            optimal_io_bytes: queue_limit(device, "optimal_io_size").unwrap_or(0),
            read_only: options.read_only,
            rotational: queue_limit(device, "rotational") == Some(1),
            cache: options.mode.cache(),
            fua: options.mode != CacheMode::Unsafe
                && options.native_fua
                && honours_dsync(&file, kind, direct),
            range_stable: false,
            discard: !options.read_only && discards(&file, kind, bytes, device),
            staging_bytes: STAGING_BYTES,
            segments_max: SEGMENTS_MAX,
            transfer_max_bytes: TRANSFER_MAX_BYTES,
            holds: true,
            state_bytes: 0,
        };
        Ok(Self {
            info: SharedInfo::new(info),
            flushes: info.cache != Cache::Unsafe,
            discards: info.discard,
            in_memory,
            kind,
            dsync: options.mode.dsync(),
            direct,
            range_unit: if kind == Kind::Block { u64::from(unit) } else { 1 },
            path: path.into(),
            flags,
            before: None,
            opened: AtomicBool::new(false),
            resizing: Mutex::new(()),
            file,
        })
    }

    /// Another open file description of the same image, opened in the same way.
    ///
    /// Each thread has one of its own: Linux reports a writeback error once *per open file description*, so that on a shared
    /// one, one thread's write could take the error that was another's to see (blk-core/SEMANTICS.md, "The latch").
    pub(super) fn another(&self) -> Result<OwnedFd, OpenError> {
        reopen(&self.path, &self.file, self.flags).map_err(cannot_reopen(&self.path))
    }

    /// The descriptor that holds the locks, and the one for range operations. On a block device they empty the page cache, and dirty pages make that fail
    /// with `EBUSY` on any descriptor but the one that holds the device (Linux, block/bdev.c, `truncate_bdev_range`).
    pub(super) fn exclusive(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Nothing refuses the image any more: it stays as it was made.
    pub(super) fn opened(&self) {
        self.opened.store(true, Ordering::Relaxed);
    }

    /// Puts the image back as it was before the options' size was given to it: it is not to be served after all.
    pub(super) fn undo_size(&self) {
        if let Some(before) = self.before {
            image_size::undo(&self.path, self.file.as_fd(), before);
        }
    }

    /// Takes over the size that the file or device has now, or that of `bytes` bytes to which a file is extended first.
    pub(super) fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        let _one_at_a_time = lock(&self.resizing);
        let size = || self.size().map_err(system(&self.path, "find its size", SEE_KERNEL_LOG));
        let logical = self.info.get().logical_block_bytes;
        if let Some(bytes) = bytes {
            let now = size()?;
            check_sizes(&self.path, bytes, logical, self.direct)?;
            if bytes < now {
                return Err(OpenError::Shrinks { path: self.path.clone(), bytes, now });
            }
            if bytes > now {
                // On a device this is EINVAL; on an image opened for reading, too.
                let remedy = "; only a file that is opened writable can be extended";
                ftruncate(&self.file, bytes).map_err(system(&self.path, "extend it", remedy))?;
            }
        }
        let bytes = size()?;
        check_sizes(&self.path, bytes, logical, self.direct)?;
        Ok(self.info.resize(bytes / u64::from(SECTOR_BYTES)))
    }

    /// Bytes that it has now.
    pub(super) fn size(&self) -> rustix::io::Result<u64> {
        match self.kind {
            Kind::File => Ok(u64::try_from(fstat(&self.file)?.st_size).unwrap_or(0)),
            Kind::Block => seek(&self.file, SeekFrom::End(0)),
        }
    }
}

fn system<'a>(
    path: &'a Path,
    what: &'static str,
    remedy: &'static str,
) -> impl Fn(Errno) -> OpenError + use<'a> {
    move |errno| OpenError::System { path: path.into(), what, errno, remedy }
}

/// For what fails on a healthy system never.
const SEE_KERNEL_LOG: &str = "; look into the kernel's log: dmesg";

fn open_remedy(path: &Path, options: &FileOptions, errno: Errno) -> &'static str {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match errno {
        Errno::INVAL if options.mode.direct() => {
            "; this file system has no O_DIRECT: give cache=writeback or cache=writethrough"
        }
        Errno::NOENT if path.is_symlink() => "; it is a link to a file that does not exist: make that file",
        Errno::NOENT if folder.is_some_and(|folder| !folder.exists()) => {
            "; its folder does not exist: make it first"
        }
        Errno::NOENT => "; check the path, or give a size to have it made: size=10G",
        Errno::NOTDIR => "; check the path: a part of it is a file and no folder",
        Errno::ISDIR | Errno::NXIO => "; give the path of an image or a disk",
        Errno::ROFS | Errno::ACCESS | Errno::PERM => "; check its permissions, or give readonly",
        Errno::TXTBSY | Errno::BUSY => "; stop the program that uses it",
        Errno::NAMETOOLONG | Errno::LOOP => "; check the path",
        Errno::MFILE | Errno::NFILE => "; raise the limit on open files",
        _ => SEE_KERNEL_LOG,
    }
}

/// A file that is open could not be opened once more.
fn cannot_reopen(path: &Path) -> impl Fn(Errno) -> OpenError + use<'_> {
    move |errno| {
        let remedy = match errno {
            Errno::MFILE => "; raise the limit on open files: ulimit -n, or LimitNOFILE=",
            Errno::NFILE => "; the host is out of open files: raise fs.file-max",
            Errno::NOENT => "; is /proc mounted?",
            Errno::STALE => "; another file has taken its place: start again",
            Errno::ACCESS | Errno::PERM => "; check its permissions",
            _ => SEE_KERNEL_LOG,
        };
        system(path, "open it again", remedy)(errno)
    }
}

/// Opens what `file` is open on once more. Through /proc, where no rename can come in between; by its path where there
/// is no /proc, and then it has to be the same file.
fn reopen(path: &Path, file: &OwnedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    match open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            let again = open(path, flags, Mode::empty())?;
            let (a, b) = (fstat(file)?, fstat(&again)?);
            if (a.st_dev, a.st_ino, a.st_rdev) == (b.st_dev, b.st_ino, b.st_rdev) {
                Ok(again)
            } else {
                Err(Errno::STALE)
            }
        }
        result => result,
    }
}

fn check_sizes(path: &Path, bytes: u64, logical: u32, direct: Option<Alignment>) -> Result<(), OpenError> {
    if bytes == 0 {
        return Err(OpenError::Empty { path: path.into() });
    }
    if !logical.is_power_of_two() || !(SECTOR_BYTES..=ALIGN_MAX).contains(&logical) {
        return Err(OpenError::Option {
            path: path.into(),
            option: "logical-block",
            value: logical.into(),
            remedy: "give a power of two from 512 to 65536",
        });
    }
    let direct = direct.map_or(1, |direct| direct.offset);
    let rules = [
        (SECTOR_BYTES, "a sector", ""),
        (logical, "the logical block", ", or give a smaller one: logical-block=512"),
        (direct, "the block of direct I/O", ", or give cache=writeback or cache=writethrough"),
    ];
    for (unit, why, or) in rules {
        if !bytes.is_multiple_of(u64::from(unit)) {
            return Err(OpenError::OddSize { path: path.into(), bytes, unit, why, or });
        }
    }
    Ok(())
}

/// What direct I/O on this file demands: asked of the kernel, since 6.1 (statx(2), STATX_DIOALIGN).
fn alignment(path: &Path, file: &OwnedFd, kind: Kind, unit: u32) -> Result<Alignment, OpenError> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    let stat =
        statx(file, c"", AtFlags::EMPTY_PATH, wanted).map_err(system(path, "stat it", SEE_KERNEL_LOG))?;
    let none = OpenError::System {
        path: path.into(),
        what: "use O_DIRECT on it",
        errno: Errno::OPNOTSUPP,
        remedy: "; give cache=writeback or cache=writethrough",
    };
    let align = if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 {
        Alignment { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align }
    } else if kind == Kind::Block {
        // open(2), NOTES, O_DIRECT: since Linux 2.6 the logical block size of the device suffices.
        Alignment { memory: unit, offset: unit }
    } else {
        Alignment { memory: 4096, offset: 4096 }
    };
    let possible = |n: u32| n.is_power_of_two() && n <= ALIGN_MAX;
    if possible(align.memory) && possible(align.offset) { Ok(align) } else { Err(none) }
}

// Linux, include/uapi/linux/magic.h.
const EXT4: u32 = 0xEF53;
const XFS: u32 = 0x5846_5342;
const BTRFS: u32 = 0x9123_683E;
const F2FS: u32 = 0xF2F5_2010;
const TMPFS: u32 = 0x0102_1994;
const RAMFS: u32 = 0x8584_58F6;

fn file_system(file: BorrowedFd<'_>) -> Option<u32> {
    // The type of the field differs between architectures; a magic number has 32 bits.
    fstatfs(file).ok().map(|fs| (fs.f_type as u64 & 0xffff_ffff) as u32)
}

/// Whether a write with `RWF_DSYNC` is known to be stable when it is done: block devices and the file systems whose writes
/// end in `generic_write_sync` or in iomap's counterpart. (On tmpfs it is worth what fdatasync is worth there: nothing.)
/// RemoteBuffer the sequencer flushes after the write instead.
fn honours_dsync(file: &OwnedFd, kind: Kind, direct: Option<Alignment>) -> bool {
    let known =
        kind == Kind::Block || matches!(file_system(file.as_fd()), Some(EXT4 | XFS | BTRFS | F2FS | TMPFS));
    known && kernel_knows_dsync(file, direct)
}

/// Whether this kernel takes `RWF_DSYNC` (since 4.7). A read proves it: the flags of reads and writes are checked by one
/// function (`kiocb_set_rw_flags`), before any data moves.
fn kernel_knows_dsync(file: &OwnedFd, direct: Option<Alignment>) -> bool {
    #[repr(align(65536))]
    struct Block([u8; ALIGN_MAX as usize]);
    let mut block = Box::new(Block([0; ALIGN_MAX as usize]));
    let len = direct.map_or(SECTOR_BYTES, |direct| direct.offset.max(SECTOR_BYTES));
    let iovec = libc::iovec { iov_base: block.0.as_mut_ptr().cast(), iov_len: len as usize };
    // SAFETY: one iovec, whose `len` bytes are inside `block` (`len` is at most ALIGN_MAX), which outlives the call.
    unsafe { libc::preadv2(file.as_raw_fd(), &raw const iovec, 1, 0, libc::RWF_DSYNC) >= 0 }
}

/// Whether discarding releases space, found without touching data.
fn discards(file: &OwnedFd, kind: Kind, bytes: u64, device: u64) -> bool {
    match kind {
        Kind::Block => queue_limit(device, "discard_max_bytes").is_some_and(|max: u64| max != 0),
        Kind::File => {
            // A hole behind the end of the file changes nothing.
            let beyond = bytes.next_multiple_of(u64::from(ALIGN_MAX));
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, hole, beyond, u64::from(ALIGN_MAX)).is_ok()
        }
    }
}

/// A limit of a device's request queue from sysfs (Linux, Documentation/ABI/stable/sysfs-block); a partition's is its disk's.
fn queue_limit<T: std::str::FromStr>(device: u64, name: &str) -> Option<T> {
    let (major, minor) = (major(device), minor(device));
    let read = |queue| std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}"));
    read("queue").or_else(|_| read("../queue")).ok()?.trim().parse().ok()
}
