//! Loop devices (linux/loop.h, drivers/block/loop.c).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::ioctl::Opcode;

use crate::probe::ioctl;

/// Why a file cannot be put behind a loop device.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// A file or a device cannot be opened.
    #[error("{path}: {source}. Loop devices need root and the loop driver (modprobe loop)")]
    Open {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refuses.
    #[error("no loop device for {path}: {errno}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        errno: Errno,
    },
    /// The backing file does not support O_DIRECT at the loop device's block size.
    #[error("{0}: the kernel does not do direct I/O on it behind a loop device")]
    NotDirect(PathBuf),
}

/// A file behind a loop device, which is detached on drop, and by the kernel if the process dies.
#[derive(Debug)]
pub struct LoopDevice {
    /// Keeps the device in use: the kernel detaches it when nothing has it open.
    device: File,
    path: PathBuf,
    minor: u32,
}

/// The major number of loop devices (Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u32 = 7;
const LOOP_CLR_FD: Opcode = 0x4c01;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LOOP_CTL_GET_FREE: Opcode = 0x4c82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

impl LoopDevice {
    /// Puts the file at `path` behind a free loop device, with or without `direct_io` to the file.
    ///
    /// # Errors
    /// [`LoopError`]: no permission, no loop driver, no free device, or direct I/O asked for where the file cannot do it.
    pub fn attach(path: &Path, direct_io: bool) -> Result<Self, LoopError> {
        let backing = open(path)?;
        let control = open(Path::new("/dev/loop-control"))?;
        // SAFETY: LOOP_CTL_GET_FREE ignores its argument and accesses no memory (`loop_control_ioctl`).
        let free = unsafe { ioctl::call::<LOOP_CTL_GET_FREE, _>(&control, &mut ()) };
        let refused = |errno| LoopError::Refused { path: path.to_owned(), errno };
        let free = free.map_err(refused)?.cast_unsigned();
        // Another process may take the free one first, and its node may be missing; the next ones may do.
        let mut why = LoopError::Refused { path: path.to_owned(), errno: Errno::BUSY };
        for minor in free..free.saturating_add(16) {
            let node = PathBuf::from(format!("/dev/loop{minor}"));
            let device = match open(&node) {
                Ok(device) => device,
                Err(error) => {
                    why = error;
                    continue;
                }
            };
            match configure(&device, &backing, direct_io) {
                Ok(()) => {
                    let attached = Self { device, path: node, minor };
                    return if direct_io && !attached.is_direct() {
                        Err(LoopError::NotDirect(path.to_owned()))
                    } else {
                        Ok(attached)
                    };
                }
                Err(Errno::BUSY) => {}
                Err(errno) => return Err(refused(errno)),
            }
        }
        Err(why)
    }

    /// The device's node.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device's major and minor number.
    #[must_use]
    pub const fn dev(&self) -> (u32, u32) {
        (LOOP_MAJOR, self.minor)
    }

    /// The kernel turns direct I/O off without an error where the file cannot do it.
    fn is_direct(&self) -> bool {
        let path = format!("/sys/dev/block/{LOOP_MAJOR}:{}/loop/dio", self.minor);
        fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // SAFETY: LOOP_CLR_FD ignores its argument and accesses no memory (`lo_ioctl`). Should it fail, the device is cleared
        // when `self.device` is closed, as it was set up with LO_FLAGS_AUTOCLEAR.
        let _ = unsafe { ioctl::call::<LOOP_CLR_FD, _>(&self.device, &mut ()) };
    }
}

fn open(path: &Path) -> Result<File, LoopError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|source| LoopError::Open { path: path.to_owned(), source })
}

fn configure(device: &File, backing: &File, direct_io: bool) -> Result<(), Errno> {
    let mut config = LoopConfig {
        fd: backing.as_raw_fd().cast_unsigned(),
        block_size: 0,
        info: LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_AUTOCLEAR | if direct_io { LO_FLAGS_DIRECT_IO } else { 0 },
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: on a loop device, which `device` is by its node's name, LOOP_CONFIGURE reads one `loop_config`, writes nothing,
    // and takes a reference of its own to the open file `fd` (`lo_ioctl`, `loop_configure`).
    unsafe { ioctl::call::<LOOP_CONFIGURE, _>(device, &mut config) }.map(drop)
}
