//! The system as a probe sees it: facts about files, and the roots of /proc and /sys.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, IFlags, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, opcode};

use super::extents::{self, Extents};
use super::ioctl;

/// The number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DevNo {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl DevNo {
    /// Reads `major:minor`, as the attribute `dev` in sysfs has it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for DevNo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Regular,
    Directory,
    Block(DevNo),
    Other,
}

/// Whether a file can be opened `O_DIRECT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direct {
    No,
    /// With these alignments in bytes; 0 where the kernel does not tell them.
    Yes {
        memory_bytes: u32,
        offset_bytes: u32,
    },
    Unknown,
}

/// The facts about one file.
#[derive(Clone, Debug)]
pub(super) struct FileFacts {
    /// The path, with symbolic links resolved.
    pub(super) path: PathBuf,
    pub(super) kind: FileKind,
    /// The device of the filesystem that the file is on.
    pub(super) dev: DevNo,
    pub(super) mount_id: Option<u64>,
    /// `f_type` of statfs(2).
    pub(super) fs_magic: u64,
    pub(super) size_bytes: u64,
    pub(super) direct: Direct,
    /// `None` where the file cannot be opened or the filesystem does not tell.
    pub(super) extents: Option<Extents>,
    pub(super) flags: IFlags,
    pub(super) dax: bool,
}

/// The system that is probed: this one, or a synthetic tree.
pub(super) trait System {
    /// The directory under which `proc` and `sys` lie.
    fn root(&self) -> &Path;

    /// The facts about the file at `path`, which need not be canonical.
    fn file(&self, path: &Path) -> io::Result<FileFacts>;

    /// Whether fdatasync reports success where the kernel could not have done it.
    fn swallows_syncs(&self) -> bool;

    /// The target types of a device-mapper device's table, if they can be read.
    fn dm_targets(&self, dev: DevNo) -> Option<Vec<String>>;

    /// Whether an NVMe controller says that it has a volatile write cache, if it can be asked.
    fn nvme_volatile_cache(&self, name: &str) -> Option<bool>;
}

/// This machine.
pub(super) struct Host;

impl System for Host {
    fn root(&self) -> &Path {
        Path::new("/")
    }

    fn file(&self, path: &Path) -> io::Result<FileFacts> {
        let path = fs::canonicalize(path)?;
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID | StatxFlags::DIOALIGN;
        let stat = rustix::fs::statx(rustix::fs::CWD, &path, AtFlags::empty(), wanted)?;
        let file_type = fs::metadata(&path)?.file_type();
        let kind = if file_type.is_file() {
            FileKind::Regular
        } else if file_type.is_dir() {
            FileKind::Directory
        } else if file_type.is_block_device() {
            FileKind::Block(DevNo { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor })
        } else {
            FileKind::Other
        };
        // Only what can be an image is opened: opening a FIFO or a terminal may do things to it.
        let open = if kind == FileKind::Other { None } else { read_only(&path, OFlags::empty()).ok() };
        let got = StatxFlags::from_bits_retain(stat.stx_mask);
        let direct = match (got.contains(StatxFlags::DIOALIGN), kind) {
            (_, FileKind::Directory) => direct_in_directory(&path),
            (true, _) if stat.stx_dio_offset_align == 0 => Direct::No,
            (true, _) => {
                Direct::Yes { memory_bytes: stat.stx_dio_mem_align, offset_bytes: stat.stx_dio_offset_align }
            }
            (false, _) if open.is_some() => direct_by_opening(read_only(&path, OFlags::DIRECT)),
            (false, _) => Direct::Unknown,
        };
        let size_bytes = match kind {
            FileKind::Block(dev) => {
                // In units of 512 bytes (block/genhd.c, `part_size_show`); readable where the device is not.
                let sectors = attribute(Path::new(&format!("/sys/dev/block/{dev}/size")));
                sectors.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0).saturating_mul(512)
            }
            _ => stat.stx_size,
        };
        let extents = match (&open, kind) {
            (Some(file), FileKind::Regular) => extents::of(file, size_bytes),
            _ => None,
        };
        let flags = match (&open, kind) {
            (Some(file), FileKind::Regular | FileKind::Directory) => {
                rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty())
            }
            _ => IFlags::empty(),
        };
        Ok(FileFacts {
            kind,
            dev: DevNo { major: stat.stx_dev_major, minor: stat.stx_dev_minor },
            mount_id: got.contains(StatxFlags::MNT_ID).then_some(stat.stx_mnt_id),
            // `f_type` is a signed long on some architectures, with no magic number above 32 bits.
            fs_magic: u64::from(rustix::fs::statfs(&path)?.f_type as u32),
            size_bytes,
            direct,
            extents,
            flags,
            dax: stat.stx_attributes.contains(StatxAttributes::DAX),
            path,
        })
    }

    fn swallows_syncs(&self) -> bool {
        // A pipe cannot be synced: fsync(2), EINVAL. Asked through the C library and past it.
        let Ok((reader, _writer)) = io::pipe() else { return false };
        let pipe = File::from(OwnedFd::from(reader));
        pipe.sync_data().is_ok() || rustix::fs::fdatasync(&pipe).is_ok()
    }

    fn dm_targets(&self, dev: DevNo) -> Option<Vec<String>> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/mapper/control").ok()?;
        let mut request = Box::new(DmIoctl::status(dev));
        // SAFETY: DM_TABLE_STATUS reads `data_size` bytes, which is the size of `DmIoctl`, and writes no more
        // (drivers/md/dm-ioctl.c, `copy_params` and `ctl_ioctl`). Any bytes are a valid `DmIoctl`.
        unsafe { ioctl::call::<DM_TABLE_STATUS, _>(&control, &mut *request) }.ok()?;
        dm_target_types(&request.data, request.data_start, request.target_count)
    }

    fn nvme_volatile_cache(&self, name: &str) -> Option<bool> {
        let device = read_only(&Path::new("/dev").join(name), OFlags::empty()).ok()?;
        let mut answer = Box::new([0u8; NVME_IDENTIFY_BYTES as usize]);
        let mut command = NvmeAdminCmd {
            opcode: 6, // Identify
            address: answer.as_mut_ptr().expose_provenance() as u64,
            data_bytes: NVME_IDENTIFY_BYTES,
            cdw10: 1, // CNS: Identify Controller
            ..Default::default()
        };
        // SAFETY: NVME_IOCTL_ADMIN_CMD reads and writes one `nvme_admin_cmd` and, for Identify, writes at most `data_bytes`
        // bytes to `address`, which is a live buffer of just that size that nothing else refers to meanwhile.
        let status = unsafe { ioctl::call::<NVME_ADMIN_CMD, _>(&device, &mut command) }.ok()?;
        // Identify Controller, byte 525 bit 0: a volatile write cache is present (`struct nvme_id_ctrl`, `vwc`, in linux/nvme.h).
        (status == 0).then_some(answer[525] & 1 != 0)
    }
}

fn read_only(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

fn direct_by_opening(opened: io::Result<File>) -> Direct {
    match opened {
        Ok(_) => Direct::Yes { memory_bytes: 0, offset_bytes: 0 },
        // open(2): EINVAL, the filesystem does not support O_DIRECT.
        Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Direct::No,
        Err(_) => Direct::Unknown,
    }
}

/// Tries an unnamed file, which leaves no trace.
fn direct_in_directory(directory: &Path) -> Direct {
    let unnamed = |flags: OFlags| {
        let flags = flags | OFlags::TMPFILE;
        OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(flags.bits().cast_signed())
            .open(directory)
    };
    let Ok(file) = unnamed(OFlags::empty()) else { return Direct::Unknown };
    match rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN) => {
            match stat.stx_dio_offset_align {
                0 => Direct::No,
                offset_bytes => Direct::Yes { memory_bytes: stat.stx_dio_mem_align, offset_bytes },
            }
        }
        _ => direct_by_opening(unnamed(OFlags::DIRECT)),
    }
}

const DM_IOCTL_BYTES: usize = 312;
const DM_DATA_BYTES: usize = 16 * 1024;
/// `DM_TABLE_STATUS` of linux/dm-ioctl.h: the number's size is that of the header alone.
const DM_TABLE_STATUS: Opcode = opcode::read_write::<[u8; DM_IOCTL_BYTES]>(0xfd, 12);
/// `DM_NOFLUSH_FLAG`: the question commits nothing.
const DM_NOFLUSH: u32 = 1 << 11;

/// `struct dm_ioctl` and room for its answer. Without `DM_STATUS_TABLE_FLAG` the answer holds no keys.
#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    tail: [u8; 7],
    data: [u8; DM_DATA_BYTES],
}

const _: () = assert!(std::mem::offset_of!(DmIoctl, data) == DM_IOCTL_BYTES);
const _: () = assert!(size_of::<DmIoctl>() == DM_IOCTL_BYTES + DM_DATA_BYTES);

impl DmIoctl {
    fn status(dev: DevNo) -> Self {
        // `huge_encode_dev`.
        let minor = u64::from(dev.minor);
        let dev = (minor & 0xff) | (u64::from(dev.major) << 8) | ((minor & !0xff) << 12);
        Self {
            version: [4, 0, 0],
            data_size: size_of::<Self>() as u32,
            data_start: DM_IOCTL_BYTES as u32,
            target_count: 0,
            open_count: 0,
            flags: DM_NOFLUSH,
            event_nr: 0,
            padding: 0,
            dev,
            name: [0; 128],
            uuid: [0; 129],
            tail: [0; 7],
            data: [0; DM_DATA_BYTES],
        }
    }
}

/// The types in a run of `struct dm_target_spec`: `sector_start, length: u64; status: i32; next: u32; type: [u8; 16]`, where
/// `next` counts from the first of them (drivers/md/dm-ioctl.c, `retrieve_status`).
fn dm_target_types(data: &[u8], data_start: u32, count: u32) -> Option<Vec<String>> {
    let specs = data.get((data_start as usize).checked_sub(DM_IOCTL_BYTES)?..)?;
    let mut types = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let spec = specs.get(at..)?.get(..40)?;
        let name = spec[24..].split(|&byte| byte == 0).next()?;
        types.push(String::from_utf8_lossy(name).into_owned());
        at = u32::from_ne_bytes(spec[20..24].try_into().ok()?) as usize;
    }
    Some(types)
}

const NVME_IDENTIFY_BYTES: u32 = 4096;
const NVME_ADMIN_CMD: Opcode = opcode::read_write::<NvmeAdminCmd>(b'N', 0x41);

/// `struct nvme_passthru_cmd` of linux/nvme_ioctl.h.
#[repr(C)]
#[derive(Default)]
struct NvmeAdminCmd {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    cdw10: u32,
    cdw11_to_15: [u32; 5],
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<NvmeAdminCmd>() == 72);

/// A device attribute or another small file: its text without blanks at the ends.
pub(super) fn attribute(path: &Path) -> Option<String> {
    // sysfs attributes are a page at most.
    let file = File::open(path).ok()?;
    let mut bytes = vec![0; 4096];
    let length = file.read_at(&mut bytes, 0).ok()?;
    bytes.truncate(length);
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_read() {
        assert_eq!(DevNo::parse("259:12\n"), Some(DevNo { major: 259, minor: 12 }));
        assert_eq!(DevNo::parse("259"), None);
        assert_eq!(DevNo::parse("a:b"), None);
    }

    fn target(name: &str, next: u32) -> Vec<u8> {
        let mut spec = vec![0; 20];
        spec.extend(next.to_ne_bytes());
        spec.extend(name.bytes());
        spec.resize(40, 0);
        spec
    }

    #[test]
    fn target_types_are_read_by_their_offsets_from_the_first() {
        let mut data = target("linear", 48);
        data.extend(b"status\0\0");
        data.extend(target("crypt", 96));
        let start = DM_IOCTL_BYTES as u32;
        assert_eq!(dm_target_types(&data, start, 2).unwrap(), ["linear", "crypt"]);
        assert_eq!(dm_target_types(&data, start, 3), None, "the third would lie outside");
        assert_eq!(dm_target_types(&data, start - 1, 1), None);
        assert_eq!(dm_target_types(&data, u32::MAX, 1), None);
        assert_eq!(dm_target_types(&[], start, 0).unwrap(), [""; 0]);
    }

    #[test]
    fn a_device_number_is_encoded_as_the_kernel_has_it() {
        assert_eq!(DmIoctl::status(DevNo { major: 252, minor: 0x1_23 }).dev, 0x10_fc23);
    }

    #[test]
    fn syncs_reach_the_kernel_here() {
        assert!(!Host.swallows_syncs());
    }
}
