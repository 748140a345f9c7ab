//! Kernel tracing of one block device: proof that flushes and FUA writes left the host.
//!
//! A [`BlockTrace`] counts the requests that reach a block device's driver, by the kernel's own events and not by what this
//! program believes that it sent. A [`LoopDevice`] puts a file behind a block device, so that an image can be traced on its own.
//! Both need root.
//!
//! ```no_run
//! use host_std::trace::{BlockTrace, LoopDevice};
//!
//! let device = LoopDevice::attach("disk.img".as_ref(), false)?;
//! let (major, minor) = device.dev();
//! let trace = BlockTrace::start(major, minor)?;
//! std::fs::File::open(device.path())?.sync_data()?;
//! assert_eq!(trace.stop()?.flushes, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod loop_device;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use serde::{Deserialize, Serialize};

pub use loop_device::{LoopDevice, LoopError};

/// Why a block device cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The caller may not trace the kernel.
    #[error("kernel tracing is not permitted: run as root, with CAP_SYS_ADMIN")]
    NotPermitted,
    /// The kernel has no tracefs.
    #[error(
        "the kernel has no tracefs ({0}): it needs CONFIG_FTRACE, and `mount -t tracefs tracefs /sys/kernel/tracing`"
    )]
    NoTracefs(Errno),
    /// The kernel has no block events.
    #[error("the kernel has no event block:{0}: it needs CONFIG_BLK_DEV_IO_TRACE")]
    NoEvent(&'static str),
    /// There is no such block device.
    #[error("there is no block device {0}:{1} in /sys/dev/block")]
    NoDevice(u32, u32),
    /// The device is a partition, whose requests carry the number of its disk.
    #[error("{0}:{1} is a partition, whose requests are traced as its disk's: trace the disk {2}")]
    Partition(u32, u32, String),
    /// The kernel's buffer was full: the counts would be too low.
    #[error("the kernel's trace buffer lost {0} events: trace for a shorter time")]
    Lost(u64),
    /// The tracing directory cannot be read or written.
    #[error("{path}: {source}")]
    Tracefs {
        /// The file in tracefs.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Requests that reached a block device's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Writes of data, FUA writes among them. One request may carry several writes that the kernel merged.
    pub writes: u64,
    /// Flushes: on their own, or before a write's data.
    pub flushes: u64,
    /// Writes that the device itself had to make stable. Where it has no FUA the kernel sends a write and a flush instead.
    pub fua_writes: u64,
    /// Discards and secure erases.
    pub discards: u64,
    /// Write-zeroes.
    pub write_zeroes: u64,
}

/// The tracing of one block device, in a trace instance of its own, which is removed on drop.
///
/// Where the driver takes requests (`block:block_rq_issue`) they are counted as they are handed to it, after the kernel has
/// replaced FUA and preflush that the device cannot do. Where it takes bios (device mapper, md, zram) they are counted as they are
/// queued (`block:block_bio_queue`).
#[derive(Debug)]
pub struct BlockTrace {
    instance: PathBuf,
    event: &'static str,
    /// The kernel's lines begin with this number.
    device: String,
    /// Where tracefs was not mounted: a mount of it that is attached to nothing and that nobody else sees.
    _mount: Option<OwnedFd>,
}

/// Kilobytes of buffer per CPU: room for some 80,000 events.
const BUFFER_KB: &str = "8192";

impl BlockTrace {
    /// Starts to trace the block device `major:minor`, a whole disk.
    ///
    /// Others' tracing is left alone: the trace has an instance of its own, and where tracefs is not mounted, it is opened without
    /// mounting it anywhere.
    ///
    /// # Errors
    /// [`TraceError`], each of which says what is missing.
    pub fn start(major: u32, minor: u32) -> Result<Self, TraceError> {
        Self::start_with_buffer(major, minor, BUFFER_KB)
    }

    fn start_with_buffer(major: u32, minor: u32, buffer_kb: &str) -> Result<Self, TraceError> {
        let sysfs = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let sysfs = sysfs.canonicalize().map_err(|_| TraceError::NoDevice(major, minor))?;
        if sysfs.join("partition").exists() {
            let disk = fs::read_to_string(sysfs.join("../dev")).unwrap_or_default().trim().to_owned();
            return Err(TraceError::Partition(major, minor, disk));
        }
        // A driver that takes requests has hardware queues, which sysfs lists.
        let event = if sysfs.join("mq").exists() { "block_rq_issue" } else { "block_bio_queue" };

        let (tracefs, mount) = tracefs()?;
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        remove_orphans(&tracefs.join("instances"));
        let instance = tracefs.join(format!("instances/blk-host-{}-{number}", std::process::id()));
        fs::create_dir(&instance).map_err(|source| tracefs_error(&instance, source))?;
        let trace = Self { instance, event, device: format!("{major},{minor}"), _mount: mount };
        if !trace.instance.join("events/block").join(event).exists() {
            return Err(TraceError::NoEvent(event));
        }
        trace.write("buffer_size_kb", buffer_kb)?;
        // Without its context a line begins with the event's name, and no task's name can be taken for it.
        trace.write("options/context-info", "0")?;
        // The kernel's own encoding of device numbers, `MKDEV`.
        let number = (u64::from(major) << 20) | u64::from(minor);
        trace.write(&format!("events/block/{event}/filter"), &format!("dev == {number}"))?;
        trace.write(&format!("events/block/{event}/enable"), "1")?;
        trace.write("tracing_on", "1")?;
        Ok(trace)
    }

    /// The requests that have reached the driver since the start.
    ///
    /// # Errors
    /// [`TraceError::Lost`] if the kernel's buffer was full, [`TraceError::Tracefs`] if it cannot be read.
    pub fn counts(&self) -> Result<Counts, TraceError> {
        let lost = self.lost()?;
        if lost != 0 {
            return Err(TraceError::Lost(lost));
        }
        let path = self.instance.join("trace");
        // A task's name in it need not be UTF-8.
        let text = fs::read(&path).map_err(|source| tracefs_error(&path, source))?;
        Ok(count(&String::from_utf8_lossy(&text), self.event, &self.device))
    }

    /// Ends the trace and tells what reached the driver.
    ///
    /// # Errors
    /// As [`counts`](Self::counts).
    pub fn stop(self) -> Result<Counts, TraceError> {
        self.write("tracing_on", "0")?;
        self.counts()
    }

    /// Events that found no room, on any CPU.
    fn lost(&self) -> Result<u64, TraceError> {
        let path = self.instance.join("per_cpu");
        let mut lost = 0;
        for cpu in fs::read_dir(&path).map_err(|source| tracefs_error(&path, source))?.flatten() {
            let path = cpu.path().join("stats");
            let stats = fs::read_to_string(&path).map_err(|source| tracefs_error(&path, source))?;
            lost += lost_in(&stats);
        }
        Ok(lost)
    }

    fn write(&self, name: &str, value: &str) -> Result<(), TraceError> {
        let path = self.instance.join(name);
        fs::write(&path, value).map_err(|source| tracefs_error(&path, source))
    }
}

impl Drop for BlockTrace {
    fn drop(&mut self) {
        let _ = self.write("tracing_on", "0");
        let _ = self.write(&format!("events/block/{}/enable", self.event), "0");
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Removes the instances of processes that were killed. One that is in use stays.
fn remove_orphans(instances: &Path) {
    for entry in fs::read_dir(instances).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix("blk-host-")?.split('-').next());
        let process = process.and_then(|process| process.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            let _ = fs::write(entry.path().join("tracing_on"), "0");
            let _ = fs::write(entry.path().join("events/enable"), "0");
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn tracefs_error(path: &Path, source: io::Error) -> TraceError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => TraceError::NotPermitted,
        _ => TraceError::Tracefs { path: path.to_owned(), source },
    }
}

/// The root of tracefs: where it is mounted, or else a mount that exists only as the descriptor, as long as that is open.
///
/// # Errors
/// [`TraceError`] without root, or on a kernel without tracefs.
pub fn tracefs() -> Result<(PathBuf, Option<OwnedFd>), TraceError> {
    /// `TRACEFS_MAGIC` of linux/magic.h.
    const MAGIC: u32 = 0x7472_6163;
    let usual = Path::new("/sys/kernel/tracing");
    if rustix::fs::statfs(usual).is_ok_and(|found| found.f_type as u32 == MAGIC) {
        return Ok((usual.to_owned(), None));
    }
    let open = || -> rustix::io::Result<OwnedFd> {
        let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    match open() {
        Ok(mount) => Ok((PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())), Some(mount))),
        Err(Errno::PERM | Errno::ACCESS) => Err(TraceError::NotPermitted),
        Err(errno) => Err(TraceError::NoTracefs(errno)),
    }
}

/// The events lost according to one CPU's `stats` (kernel/trace/trace.c, `tracing_stats_read`).
fn lost_in(stats: &str) -> u64 {
    stats
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| ["overrun", "commit overrun", "dropped events"].contains(name))
        .filter_map(|(_, value)| value.trim().parse::<u64>().ok())
        .sum()
}

/// Counts the lines of `event` on `device`: `EVENT: MAJOR,MINOR RWBS .. SECTOR + SECTORS ..`.
fn count(text: &str, event: &str, device: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix(event).and_then(|rest| rest.strip_prefix(": "))
        else {
            continue;
        };
        let mut words = rest.split_whitespace();
        if words.next() != Some(device) {
            continue;
        }
        let Some(rwbs) = words.next().and_then(Rwbs::parse) else { continue };
        let sectors = words.skip_while(|&word| word != "+").nth(1).and_then(|word| word.parse().ok());
        counts.add(rwbs, sectors.unwrap_or(0));
    }
    counts
}

impl Counts {
    fn add(&mut self, rwbs: Rwbs, sectors: u64) {
        if rwbs.preflush || rwbs.what == What::Flush {
            self.flushes += 1;
        }
        match rwbs.what {
            // A write of nothing is how a flush travels as a bio.
            What::Write if sectors != 0 => {
                self.writes += 1;
                self.fua_writes += u64::from(rwbs.fua);
            }
            What::Discard => self.discards += 1,
            What::WriteZeroes => self.write_zeroes += 1,
            // Before the events had letters for it, a write-zeroes was an N, as is a passed-through command, which has no
            // sectors.
            What::None if sectors != 0 => self.write_zeroes += 1,
            What::Write | What::Flush | What::None | What::Other => {}
        }
    }
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Write,
    Flush,
    Discard,
    WriteZeroes,
    None,
    Other,
}

/// The letters that describe a request (kernel/trace/blktrace.c, `blk_fill_rwbs`): F for a preflush, the operation, F for FUA, then
/// A read-ahead, S synchronous, M metadata, U atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rwbs {
    preflush: bool,
    what: What,
    fua: bool,
}

impl Rwbs {
    fn parse(text: &str) -> Option<Self> {
        // An F is a preflush where an operation follows it, and else is the operation.
        let bytes = text.as_bytes();
        let (preflush, rest) = match bytes {
            [b'F', b'R' | b'W' | b'D' | b'F' | b'N' | b'Z', ..] => (true, &bytes[1..]),
            _ => (false, bytes),
        };
        let (what, flags) = match rest {
            [b'W', b'Z', flags @ ..] => (What::WriteZeroes, flags),
            [b'W', flags @ ..] | [b'Z', b'A', flags @ ..] => (What::Write, flags),
            [b'D', b'E', flags @ ..] | [b'D', flags @ ..] => (What::Discard, flags),
            [b'F', flags @ ..] => (What::Flush, flags),
            [b'N', flags @ ..] => (What::None, flags),
            [_, flags @ ..] => (What::Other, flags),
            [] => return None,
        };
        Some(Self { preflush, what, fua: flags.contains(&b'F') })
    }
}
