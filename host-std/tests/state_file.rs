//! Records beside an image, through the handles of the file backend.

mod common;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment};
use blk_core::storage::{CacheMode, IoErrorKind, Storage};
use blk_core::units::{GuestAddr, StateKey};
use common::*;
use host_std::backend::{Durable, FileBackend, FileOptions, IoVecs, LinuxSyscalls, StatePlace, Syscalls};
use host_std::memory::MappedMemory;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result};

const KEY: StateKey = StateKey(0x3_0001);
const STORE: Op = Op::StoreState { key: KEY };
const LOAD: Op = Op::LoadState { key: KEY };

fn with(state: StatePlace, mode: CacheMode) -> FileOptions {
    FileOptions { state, ..options(mode) }
}

#[test]
fn a_record_is_read_back_by_every_handle_and_after_the_image_was_closed() {
    for mode in CacheMode::ALL {
        let images = Images::on_disk();
        let path = images.image("image", IMAGE_BYTES);
        let open = || FileBackend::open(&path, &with(StatePlace::Beside, mode)).unwrap();
        let (backend, memory) = (open(), memory());
        let [mut one, mut other] = [(); 2].map(|()| backend.handle().unwrap());
        let most = one.info().state_bytes;
        assert!(most >= 3072);
        // Guest memory in pieces, and staging.
        let segments =
            [guest(0x1000, 700), guest(BORDER - 300, 600), Segment::Staging { offset: 8, len: 100 }];
        fill(&memory, 0x1000, 700, 1);
        fill(&memory, BORDER - 300, 600, 2);
        Storage::<MappedMemory>::staging(&mut one, 3)[8..108].fill(3);
        assert_eq!(run(&mut one, &memory, STORE, &segments), Ok(()));
        let expected = [vec![1; 700], vec![2; 600], vec![3; 100], vec![0; most as usize - 1400]].concat();
        let loads = |disk: &mut _| {
            fill(&memory, 0x8000, most as usize, 0xaa);
            assert_eq!(run(disk, &memory, LOAD, &[guest(0x8000, most)]), Ok(()));
            peek(&memory, 0x8000, most as usize)
        };
        assert_eq!(loads(&mut other), expected);
        assert_eq!(run(&mut other, &memory, Op::LoadState { key: StateKey(1) }, &[guest(0x8000, 4)]), Ok(()));
        assert_eq!(peek(&memory, 0x8000, 4), [0; 4], "one that was never stored is empty");
        let too_long = run(&mut one, &memory, STORE, &[guest(0x1000, most + 1)]);
        assert_eq!(kind(too_long), Some(IoErrorKind::OutOfRange));
        drop((one, other, backend));
        assert_eq!(std::fs::read(&path).unwrap(), vec![0xee; IMAGE_BYTES], "nothing of it is in the image");
        assert_eq!(loads(&mut open().handle().unwrap()), expected);
    }
}

#[test]
fn an_image_without_a_place_has_no_records() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let plain = options(CacheMode::WriteBack);
    let reader = FileOptions { read_only: true, state: StatePlace::Beside, ..plain.clone() };
    for options in [&plain, &reader] {
        let backend = FileBackend::open(&path, options).unwrap();
        assert_eq!(backend.info().state_bytes, 0);
        let mut disk = backend.handle().unwrap();
        for op in [STORE, LOAD] {
            let result = run(&mut disk, &memory(), op, &[guest(0, 4)]);
            assert_eq!(kind(result), Some(IoErrorKind::Unsupported));
        }
    }
    if let Some(device) = Loop::over(&path, 512) {
        let beside = FileBackend::open(&device.0, &with(StatePlace::Beside, CacheMode::None)).unwrap();
        assert_eq!(beside.info().state_bytes, 0, "nothing is made in /dev");
        drop(beside);
        let at = StatePlace::At(images.0.path().join("elsewhere"));
        let named = FileBackend::open(&device.0, &with(at, CacheMode::None)).unwrap();
        assert_ne!(named.info().state_bytes, 0);
    }
    assert_eq!(
        images.0.path().read_dir().unwrap().count(),
        1 + usize::from(images.0.path().join("elsewhere").exists())
    );
}

#[test]
fn what_cannot_be_a_file_of_records_is_told_with_its_remedy() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let other = images.image("other", IMAGE_BYTES);
    let at = |path: &Path| with(StatePlace::At(path.into()), CacheMode::WriteBack);
    let refuse = |options: &FileOptions, parts: &[&str]| {
        let error = FileBackend::open(&path, options).expect_err("refused").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    refuse(&at(&images.0.path().join("no/such")), &["no/such", "make its folder", "state=off"]);
    refuse(&at(images.0.path()), &["cannot open it for the records", "state=off"]);
    refuse(&at(Path::new("/dev/null")), &["/dev/null: is no regular file", "a file of their own"]);
    refuse(&at(&other), &["other: is no file of records", "restore it from a backup, or remove it"]);
    refuse(&at(&path), &["image"]);
    let reader = FileOptions { read_only: true, ..at(&images.0.path().join("x")) };
    refuse(&reader, &["x: is for what", "readonly"]);
    let shared = images.0.path().join("shared");
    let _first = FileBackend::open(&other, &at(&shared)).unwrap();
    refuse(&at(&shared), &["shared: in use", "another image's records", "state=PATH"]);
}

/// Fails the call with this number of those that store records, counted from 1.
#[derive(Clone)]
struct Failing {
    calls: Arc<AtomicU32>,
    fails: u32,
}

impl Failing {
    fn next(&self) -> Result<()> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if number == self.fails { Err(Errno::IO) } else { Ok(()) }
    }
}

impl Syscalls for Failing {
    fn write_record(&self, fd: BorrowedFd<'_>, from: &[u8], offset: u64) -> Result<usize> {
        self.next()?;
        LinuxSyscalls.write_record(fd, from, offset)
    }

    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.next()?;
        LinuxSyscalls.fdatasync(fd)
    }

    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        LinuxSyscalls.read(fd, into, offset)
    }

    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize> {
        LinuxSyscalls.write(fd, from, offset, dsync)
    }

    fn fallocate(&self, _: BorrowedFd<'_>, _: FallocateFlags, _: u64, _: u64) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    fn block_discard(&self, _: BorrowedFd<'_>, _: u64, _: u64) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }

    fn block_zero(&self, _: BorrowedFd<'_>, _: u64, _: u64) -> Result<()> {
        Err(Errno::OPNOTSUPP)
    }
}

#[test]
fn a_store_that_fails_latches_where_anything_is_promised() {
    for (mode, calls_of_a_store) in [(CacheMode::WriteBack, 4), (CacheMode::Unsafe, 2)] {
        for fails in 1..=calls_of_a_store + 1 {
            let images = Images::on_disk();
            let path = images.image("image", IMAGE_BYTES);
            let calls = Arc::new(AtomicU32::new(0));
            let failing = Failing { calls: Arc::clone(&calls), fails };
            let backend = FileBackend::open_on(failing, &path, &with(StatePlace::Beside, mode)).unwrap();
            let (mut disk, memory) = (backend.handle().unwrap(), memory());
            memory.write(GuestAddr(0), b"new").unwrap();
            let result = run(&mut disk, &memory, STORE, &[guest(0, 3)]);
            if fails > calls_of_a_store {
                assert_eq!((result, backend.latched()), (Ok(()), None));
                assert_eq!(calls.load(Ordering::Relaxed), calls_of_a_store, "{}", mode.name());
                continue;
            }
            assert_eq!(kind(result), Some(IoErrorKind::Medium));
            let cause = backend.latched().map(|cause| (cause.what, cause.errno));
            if mode == CacheMode::Unsafe {
                assert_eq!(cause, None);
                continue;
            }
            assert_eq!(cause, Some((Durable::Record, Some(Errno::IO))));
            for op in [STORE, write(0, 1), Op::Flush] {
                let segments: &[Segment] = match op {
                    Op::Flush => &[],
                    Op::Write { .. } => &[guest(0, 512)],
                    _ => &[guest(0, 3)],
                };
                assert_eq!(kind(run(&mut disk, &memory, op, segments)), Some(IoErrorKind::Latched), "{op:?}");
            }
            assert_eq!(run(&mut disk, &memory, LOAD, &[guest(0x100, 3)]), Ok(()), "loads go on");
        }
    }
}
