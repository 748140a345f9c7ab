//! What the tests of the file backend share: memory, images and a guest that waits.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment};
use blk_core::storage::{CacheMode, Completion, IoError, IoErrorKind, Storage};
use blk_core::units::{Extent, GuestAddr, Tag};
use host_std::backend::{FileBackend, FileOptions, FileStorage, IoEngine, Syscalls};
use host_std::memory::MappedMemory;
use tempfile::TempDir;

/// Two regions, adjacent for the guest and apart in this process, so that a segment can cross from one to the other.
pub const BORDER: u64 = 0x10_0000;
pub const MEMORY_BYTES: usize = 0x20_0000;

pub const IMAGE_BYTES: usize = 1 << 20;

thread_local! {
    /// The way of the images that a test opens.
    static ENGINE: Cell<IoEngine> = const { Cell::new(IoEngine::Auto) };
}

/// Runs `check` on each kind of image that this machine has, in each mode and each way.
pub fn everywhere(check: impl Fn(&Path, CacheMode)) {
    let disk = Images::on_disk();
    let ram = Images::in_memory();
    let backing = disk.image("backing", IMAGE_BYTES);
    let device = Loop::over(&backing, 512);
    let mut paths = vec![disk.image("file", IMAGE_BYTES)];
    paths.extend(ram.iter().map(|ram| ram.image("file", IMAGE_BYTES)));
    paths.extend(device.iter().map(|device| device.0.clone()));
    for path in paths {
        for mode in CacheMode::ALL {
            if mode.direct() && !takes_direct(&path) {
                println!("skipped: {} takes no O_DIRECT", path.display());
                continue;
            }
            for engine in IoEngine::ALL {
                println!("{} {} {}", path.display(), mode.name(), engine.name());
                ENGINE.set(engine);
                check(&path, mode);
            }
            ENGINE.set(IoEngine::Auto);
        }
    }
}

/// tmpfs, for one, takes it since Linux 6.6.
fn takes_direct(path: &Path) -> bool {
    use rustix::fs::{Mode, OFlags, open};
    open(path, OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty()).is_ok()
}

pub fn memory() -> MappedMemory {
    MappedMemory::anonymous(&[
        (GuestAddr(0), BORDER as usize),
        (GuestAddr(BORDER), MEMORY_BYTES - BORDER as usize),
    ])
    .unwrap()
}

pub fn guest(addr: u64, len: u32) -> Segment {
    Segment::Guest { addr: GuestAddr(addr), len }
}

pub fn fill(memory: &MappedMemory, addr: u64, len: usize, value: u8) {
    memory.write(GuestAddr(addr), &vec![value; len]).unwrap();
}

pub fn peek(memory: &MappedMemory, addr: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(GuestAddr(addr), &mut bytes).unwrap();
    bytes
}

pub fn read(start: u64, sectors: u64) -> Op {
    Op::Read { extent: Extent::new(start, sectors) }
}

pub fn write(start: u64, sectors: u64) -> Op {
    Op::Write { extent: Extent::new(start, sectors), fua: false }
}

pub fn fua(start: u64, sectors: u64) -> Op {
    Op::Write { extent: Extent::new(start, sectors), fua: true }
}

pub fn tag(slot: u16) -> Tag {
    Tag { slot, generation: slot.wrapping_mul(7) }
}

/// The next completion; panics if none comes in ten seconds.
pub fn next<S: Syscalls>(storage: &mut FileStorage<S>, memory: &MappedMemory) -> Completion {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(completion) = storage.poll(memory) {
            return completion;
        }
        assert!(Instant::now() < deadline, "no completion within ten seconds");
        storage.wait(Some(Duration::from_millis(100)));
    }
}

/// Runs one operation to its end.
pub fn run<S: Syscalls>(
    storage: &mut FileStorage<S>,
    memory: &MappedMemory,
    op: Op,
    segments: &[Segment],
) -> Result<(), IoError> {
    let _ = storage.submit(memory, tag(3), op, segments).unwrap();
    assert_eq!(storage.in_use(), 1, "nothing else is in flight");
    let completion = next(storage, memory);
    assert_eq!(completion.tag, tag(3));
    completion.result
}

pub fn kind(result: Result<(), IoError>) -> Option<IoErrorKind> {
    result.err().map(|error| error.kind)
}

pub fn open(path: &Path, mode: CacheMode) -> FileBackend {
    FileBackend::open(path, &options(mode)).unwrap()
}

/// The defaults, except that a child of another test, which has copies of all descriptors between fork and exec, is waited for.
pub fn options(mode: CacheMode) -> FileOptions {
    FileOptions { lock_wait: Duration::from_secs(5), engine: ENGINE.get(), ..FileOptions::new(mode) }
}

/// A directory on the file system of the build, which is a real one; and images in it.
pub struct Images(pub TempDir);

impl Images {
    pub fn on_disk() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    /// On tmpfs, where there is one.
    pub fn in_memory() -> Option<Self> {
        let dir = tempfile::tempdir_in("/dev/shm");
        dir.map(Self).inspect_err(|error| ignored(&format!("a tmpfs at /dev/shm: {error}"))).ok()
    }

    /// An image of `bytes` bytes, each of them 0xEE.
    pub fn image(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, vec![0xee; bytes]).unwrap();
        path
    }
}

/// Says what cannot be tried here. Where changes are decided upon, which the variable CI says, everything can be.
///
/// # Panics
/// There.
#[track_caller]
pub fn ignored(why: &dyn std::fmt::Display) {
    assert!(std::env::var_os("CI").is_none(), "ignored: {why}");
    eprintln!("ignored: {why}");
}

/// A loop device over an image; detached when dropped.
pub struct Loop(pub PathBuf);

impl Loop {
    /// `None`, with a reason printed, where loop devices cannot be made.
    pub fn over(image: &Path, sector_bytes: u32) -> Option<Self> {
        let sector = sector_bytes.to_string();
        let made =
            Command::new("losetup").args(["--find", "--show", "--sector-size", &sector]).arg(image).output();
        match made {
            Ok(made) if made.status.success() => {
                Some(Self(String::from_utf8(made.stdout).unwrap().trim().into()))
            }
            Ok(made) => {
                println!("skipped: losetup: {}", String::from_utf8_lossy(&made.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: losetup: {error}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A mount; undone when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    /// Runs `command`, a mount without its target. `None`, with a reason printed, if it fails.
    pub fn on(target: &Path, command: &mut Command) -> Option<Self> {
        match command.arg(target).output() {
            Ok(made) if made.status.success() => Some(Self(target.into())),
            Ok(made) => {
                println!("skipped: mount: {}", String::from_utf8_lossy(&made.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: mount: {error}");
                None
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
