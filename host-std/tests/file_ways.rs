//! The ways that an operation may take: what is done on the queue's own thread, what through an io_uring, what by threads; and
//! that errors, short transfers and the latch mean the same on each.

mod common;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use blk_core::op::Op;
use blk_core::storage::{CacheMode, IoErrorKind, Storage};
use blk_core::units::{Extent, Lba};
use common::*;
use host_std::backend::{
    Durable, FileBackend, FileOptions, IoEngine, IoVecs, LatchCause, LinuxSyscalls, Syscalls,
};
use host_std::memory::MappedMemory;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result};

/// The kernel, watched: which thread makes each call; what a ring's operations are said to come to; how long fdatasync takes.
#[derive(Clone, Default)]
struct Watched {
    calls: Arc<Mutex<Vec<(&'static str, ThreadId)>>>,
    ring: Arc<Mutex<VecDeque<Result<usize>>>>,
    ring_calls: Arc<Mutex<u32>>,
    sync_takes: Duration,
}

impl Watched {
    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push((call, std::thread::current().id()));
    }

    /// The calls since the last time that were made on this thread, or on others.
    fn made(&self, here: bool) -> Vec<&'static str> {
        let me = std::thread::current().id();
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|(_, thread)| (*thread == me) == here).map(|(call, _)| *call).collect()
    }

    fn forget(&self) {
        self.calls.lock().unwrap().clear();
        *self.ring_calls.lock().unwrap() = 0;
    }

    fn through_ring(&self) -> u32 {
        *self.ring_calls.lock().unwrap()
    }
}

impl Syscalls for Watched {
    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        self.note("read");
        LinuxSyscalls.read(fd, into, offset)
    }

    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize> {
        self.note("write");
        LinuxSyscalls.write(fd, from, offset, dsync)
    }

    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.note("fdatasync");
        std::thread::sleep(self.sync_takes);
        LinuxSyscalls.fdatasync(fd)
    }

    fn fallocate(&self, fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<()> {
        self.note("fallocate");
        LinuxSyscalls.fallocate(fd, mode, offset, bytes)
    }

    fn block_discard(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_discard(fd, offset, bytes)
    }

    fn block_zero(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_zero(fd, offset, bytes)
    }

    fn may_run_inline(&self) -> bool {
        true
    }

    fn read_now(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        self.note("read_now");
        LinuxSyscalls.read_now(fd, into, offset)
    }

    fn write_now(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64) -> Result<usize> {
        self.note("write_now");
        LinuxSyscalls.write_now(fd, from, offset)
    }

    fn ring(&self) -> bool {
        true
    }

    fn ring_ended(&self, _write: bool, result: Result<usize>) -> Result<usize> {
        *self.ring_calls.lock().unwrap() += 1;
        self.ring.lock().unwrap().pop_front().unwrap_or(result)
    }
}

fn on(host: &Watched, path: &Path, mode: CacheMode, engine: IoEngine) -> FileBackend<Watched> {
    FileBackend::open_on(host.clone(), path, &FileOptions { engine, ..options(mode) }).unwrap()
}

const PAGE: [blk_core::op::Segment; 1] =
    [blk_core::op::Segment::Guest { addr: blk_core::units::GuestAddr(0), len: 4096 }];

#[test]
fn a_file_in_memory_is_served_on_the_queues_own_thread() {
    let Some(images) = Images::in_memory() else { return };
    let path = images.image("image", 4 << 20);
    for mode in [CacheMode::WriteBack, CacheMode::WriteThrough] {
        let host = Watched::default();
        let (backend, memory) = (on(&host, &path, mode, IoEngine::Auto), memory());
        let mut disk = backend.handle().unwrap();
        let extent = Extent::new(8, 8);
        let ops =
            [read(0, 8), write(0, 8), Op::WriteZeroes { extent, may_unmap: true }, Op::Discard { extent }];
        for op in ops {
            let segments = if matches!(op, Op::Read { .. } | Op::Write { .. }) { &PAGE[..] } else { &[] };
            let _ = disk.submit(&memory, tag(1), op, segments).unwrap();
            assert_eq!(disk.in_use(), 1, "reported by a poll, not by submit");
            assert!(!disk.arm(), "there is one to poll");
            assert_eq!(next(&mut disk, &memory).result, Ok(()));
        }
        assert_eq!(run(&mut disk, &memory, Op::Flush, &[]), Ok(()));
        assert_eq!(host.made(true), ["read", "write", "fallocate", "fallocate", "fdatasync"]);
        assert!(host.made(false).is_empty());
        // What takes long does not hold up the queue.
        host.forget();
        let long = [guest(0, MEMORY_BYTES as u32)];
        assert_eq!(run(&mut disk, &memory, read(0, MEMORY_BYTES as u64 / 512), &long), Ok(()));
        assert!(host.made(true).is_empty() && !host.made(false).is_empty());
    }
}

/// However much is submitted before a poll, and although all of it could be copied at once.
#[test]
fn a_queues_own_thread_copies_a_mebibyte_between_two_polls() {
    const HALF: u32 = 512 * 1024;
    let places = [Some(Images::on_disk()), Images::in_memory()];
    for images in places.iter().flatten() {
        let path = images.image("image", IMAGE_BYTES);
        let host = Watched::default();
        let (backend, memory) = (on(&host, &path, CacheMode::WriteBack, IoEngine::Auto), memory());
        let mut disk = backend.handle().unwrap();
        for op in [read(0, 1024), write(0, 1024)] {
            for _ in 0..2 {
                host.forget();
                for slot in 0..4 {
                    let _ = disk.submit(&memory, tag(slot), op, &[guest(0, HALF)]).unwrap();
                }
                for _ in 0..4 {
                    assert_eq!(next(&mut disk, &memory).result, Ok(()));
                }
                let here = ["read_now", "write_now", "read", "write"]
                    .map(|call| host.made(true).iter().filter(|made| **made == call).count());
                // A file system that takes no write at once is asked for none.
                let here: usize = here.iter().sum();
                let most = if matches!(op, Op::Read { .. }) { here == 2 } else { here <= 2 };
                assert!(most && host.through_ring() == 0, "{op:?}: {here}");
                assert!(host.made(false).len() >= 2, "workers do the rest");
                // The next poll.
                assert!(disk.poll(&memory).is_none());
            }
        }
    }
}

#[test]
fn a_disks_file_is_never_waited_for_on_the_queues_own_thread() {
    let images = Images::on_disk();
    for mode in CacheMode::ALL {
        for engine in IoEngine::ALL {
            // Written through the page cache, which has it.
            let path = images.image(&format!("{} {}", mode.name(), engine.name()), IMAGE_BYTES);
            let host = Watched::default();
            let (backend, memory) = (on(&host, &path, mode, engine), memory());
            let mut disk = backend.handle().unwrap();
            let zeroes = Op::WriteZeroes { extent: Extent::new(64, 8), may_unmap: false };
            for (op, segments) in
                [(read(0, 8), &PAGE[..]), (write(0, 8), &PAGE), (Op::Flush, &[]), (zeroes, &[])]
            {
                assert_eq!(run(&mut disk, &memory, op, segments), Ok(()));
            }
            let text = format!("{} {}", mode.name(), engine.name());
            let nowait = ["read_now", "write_now"];
            assert!(
                host.made(true).iter().all(|call| nowait.contains(call)),
                "{text}: {:?}",
                host.made(true)
            );
            let ring = host.through_ring();
            match engine {
                IoEngine::Threads => assert_eq!((ring, host.made(true).len()), (0, 0), "{text}"),
                IoEngine::Ring => assert_eq!(ring, 2, "{text}"),
                IoEngine::Auto if mode.direct() => assert_eq!(ring, 2, "{text}"),
                IoEngine::Auto => assert!(ring == 0 && host.made(true).contains(&"read_now"), "{text}"),
            }
        }
    }
}

/// host-std/tests/defects.md, 15. Reads go on while the device takes its time to make data stable.
#[test]
fn reads_go_on_while_a_flush_takes_half_a_second() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    for (mode, engine) in [
        (CacheMode::WriteBack, IoEngine::Auto),
        (CacheMode::None, IoEngine::Auto),
        (CacheMode::WriteBack, IoEngine::Ring),
        (CacheMode::WriteBack, IoEngine::Threads),
    ] {
        let host = Watched { sync_takes: Duration::from_millis(500), ..Watched::default() };
        let (backend, memory) = (on(&host, &path, mode, engine), memory());
        let mut disk = backend.handle().unwrap();
        let _ = disk.submit(&memory, tag(100), Op::Flush, &[]).unwrap();
        let mut reads = 0;
        loop {
            let _ = disk.submit(&memory, tag(1), read(8 * (reads % 64), 8), &PAGE).unwrap();
            let completion = next(&mut disk, &memory);
            assert_eq!(completion.result, Ok(()));
            if completion.tag == tag(100) {
                break;
            }
            reads += 1;
        }
        assert!(reads > 20, "{} {}: {reads} reads beside a flush", mode.name(), engine.name());
    }
}

#[test]
fn a_rings_short_interrupted_and_declined_transfers_go_on() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    for mode in [CacheMode::None, CacheMode::WriteBack, CacheMode::DirectSync] {
        let host = Watched::default();
        let (backend, memory) = (on(&host, &path, mode, IoEngine::Ring), memory());
        let mut disk = backend.handle().unwrap();
        let pieces = [guest(0x1000, 8192), guest(0x8000, 8192)];
        let script = [Ok(4096), Err(Errno::INTR), Ok(512), Err(Errno::INTR), Err(Errno::AGAIN)];
        for (n, script) in [&script[..], &script[..1], &[Err(Errno::CANCELED)], &[]].into_iter().enumerate() {
            let (value, at) = (n as u8 + 1, 64 * n as u64);
            fill(&memory, 0x1000, 8192, value);
            fill(&memory, 0x8000, 8192, value + 0x40);
            host.ring.lock().unwrap().extend(script);
            assert_eq!(run(&mut disk, &memory, write(at, 32), &pieces), Ok(()));
            assert!(host.ring.lock().unwrap().is_empty());
            fill(&memory, 0x1000, 8192, 0xff);
            fill(&memory, 0x8000, 8192, 0xff);
            host.ring.lock().unwrap().extend(script);
            assert_eq!(run(&mut disk, &memory, read(at, 32), &pieces), Ok(()));
            assert!(peek(&memory, 0x1000, 8192).iter().all(|&byte| byte == value), "{script:?}");
            assert!(peek(&memory, 0x8000, 8192).iter().all(|&byte| byte == value + 0x40), "{script:?}");
        }
        let calls = host.made(false);
        assert!(calls.contains(&"write") && calls.contains(&"read"), "what it declined, threads do");
    }
}

#[test]
fn a_rings_failed_durable_write_latches_and_a_failed_plain_one_does_not() {
    let images = Images::on_disk();
    for (mode, op, latches) in [
        (CacheMode::DirectSync, write(8, 8), true),
        (CacheMode::None, fua(8, 8), true),
        (CacheMode::None, write(8, 8), false),
        (CacheMode::None, read(8, 8), false),
    ] {
        // That the client's memory is gone is no failure of the image.
        for result in [Err(Errno::IO), Ok(0), Err(Errno::FAULT)] {
            let gone = result == Err(Errno::FAULT);
            let latches = latches && !gone;
            let path = images.image("image", IMAGE_BYTES);
            let host = Watched::default();
            let (backend, memory) = (on(&host, &path, mode, IoEngine::Auto), memory());
            let mut disk = backend.handle().unwrap();
            if matches!(op, Op::Write { fua: true, .. }) && !backend.info().fua {
                println!("skipped: no native FUA on {}", path.display());
                continue;
            }
            // The first 512 bytes are done, the next call fails.
            host.ring.lock().unwrap().extend([Ok(512), result]);
            let error = run(&mut disk, &memory, op, &PAGE).unwrap_err();
            let kind_of_error = if gone { IoErrorKind::Memory } else { IoErrorKind::Medium };
            assert_eq!((error.kind, error.lba), (kind_of_error, Some(Lba(9))));
            // A read that meets the end of the file finds it truncated.
            let truncated = matches!(op, Op::Read { .. }) && result == Ok(0);
            let latches = latches || truncated;
            let what = if truncated { Durable::Truncated } else { Durable::Write };
            let cause = LatchCause { what, errno: result.err(), lba: Some(Lba(9)) };
            assert_eq!(backend.latched(), latches.then_some(cause));
            let expected = latches.then_some(IoErrorKind::Latched);
            assert_eq!(kind(run(&mut disk, &memory, write(8, 8), &PAGE)), expected);
            assert_eq!(kind(run(&mut disk, &memory, Op::Flush, &[])), expected);
            assert_eq!(run(&mut disk, &memory, read(8, 8), &PAGE), Ok(()), "reads go on");
        }
    }
}

/// A ring's write that ended well while another's failure latched is not acknowledged; nor does a flush forget its sector.
#[test]
fn a_rings_write_in_flight_when_the_backend_latches_fails_and_names_its_sector() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let host = Watched::default();
    let (backend, memory) = (on(&host, &path, CacheMode::None, IoEngine::Auto), memory());
    let mut disk = backend.handle().unwrap();
    let _ = disk.submit(&memory, tag(1), write(8, 8), &PAGE).unwrap();
    let cause = LatchCause { what: Durable::Flush, errno: Some(Errno::IO), lba: None };
    backend.latch(cause);
    assert_eq!(kind(next(&mut disk, &memory).result), Some(IoErrorKind::Latched));
    assert_eq!(host.through_ring(), 1);
}

#[test]
fn a_ring_is_entered_once_for_all_that_was_submitted() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let host = Watched::default();
    let (backend, memory) = (on(&host, &path, CacheMode::None, IoEngine::Auto), memory());
    let mut disk = backend.handle().unwrap();
    // Dropped before a poll: never entered, and yet they land.
    fill(&memory, 0, 4096, 0x66);
    for slot in 0..100 {
        let _ = disk.submit(&memory, tag(slot), write(8 * u64::from(slot), 8), &PAGE).unwrap();
    }
    assert_eq!(host.through_ring(), 0);
    drop(disk);
    assert_eq!(host.through_ring(), 100);
    assert!(std::fs::read(&path).unwrap()[..100 * 4096].iter().all(|&byte| byte == 0x66));
}

#[test]
fn a_handle_may_be_served_by_one_thread_after_the_other() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    for mode in [CacheMode::WriteBack, CacheMode::None] {
        let (backend, memory) = (open(&path, mode), memory());
        let mut disk = backend.handle().unwrap();
        for round in 0..20 {
            let shared = memory.clone();
            disk = std::thread::spawn(move || {
                for slot in 0..16 {
                    let _ = disk.submit(&shared, tag(slot), write(8 * u64::from(slot), 8), &PAGE).unwrap();
                }
                // It exits with operations in flight; some rounds have them polled here.
                if round % 2 == 0 {
                    assert_eq!(next(&mut disk, &shared).result, Ok(()));
                } else {
                    disk.arm();
                }
                disk
            })
            .join()
            .unwrap();
            while disk.in_use() != 0 {
                assert_eq!(next(&mut disk, &memory).result, Ok(()));
            }
        }
    }
}

#[test]
fn a_fence_is_promised_only_where_nothing_is_in_flight() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let host = Watched { sync_takes: Duration::from_millis(300), ..Watched::default() };
    let (backend, memory) = (on(&host, &path, CacheMode::WriteBack, IoEngine::Auto), memory());
    let mut disk = backend.handle().unwrap();
    let cancel = |disk: &mut _| Storage::<MappedMemory>::cancel_in_flight(disk);
    assert!(cancel(&mut disk), "nothing was submitted");
    let _ = disk
        .submit(&memory, tag(5), read(0, 128), &[blk_core::op::Segment::Staging { offset: 0, len: 65536 }])
        .unwrap();
    let _ = disk.submit(&memory, tag(1), Op::Flush, &[]).unwrap();
    assert!(!cancel(&mut disk), "the flusher has one");
    assert_eq!(disk.in_use(), 2, "and nothing is forgotten");
    assert_eq!(next(&mut disk, &memory).tag, tag(5));
    assert_eq!(next(&mut disk, &memory).tag, tag(1));
    let _ = disk
        .submit(&memory, tag(5), read(0, 128), &[blk_core::op::Segment::Staging { offset: 0, len: 65536 }])
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !cancel(&mut disk) {
        assert!(Instant::now() < deadline, "it ends at some time");
    }
    assert!(disk.poll(&memory).is_none() && disk.in_use() == 0, "no completion of it is delivered");
    assert_eq!(Storage::<MappedMemory>::staging(&mut disk, 5).len(), 65536, "its buffer is free");
}

const IMAGE: &str = "HOST_STD_TEST_IMAGE";

/// Not a test by itself: what runs where the kernel refuses io_uring.
#[test]
fn program_without_a_ring() {
    let Ok(image) = std::env::var(IMAGE) else { return };
    let (path, memory) = (Path::new(&image), memory());
    let backend = FileBackend::open(path, &options(CacheMode::None)).unwrap();
    let mut disk = backend.handle().unwrap();
    assert_eq!(run(&mut disk, &memory, write(8, 8), &PAGE), Ok(()));
    assert_eq!(run(&mut disk, &memory, Op::Flush, &[]), Ok(()));
    drop((disk, backend));
    let ring = FileOptions { engine: IoEngine::Ring, ..options(CacheMode::None) };
    let backend = FileBackend::open(path, &ring).unwrap();
    let text = backend.handle().map(|_| ()).unwrap_err().to_string();
    assert!(
        [&image, "io_uring", "kernel.io_uring_disabled", "auto"].iter().all(|part| text.contains(part)),
        "{text}"
    );
    println!("without a ring: passed");
}

#[test]
fn without_io_uring_threads_do_it_and_who_insists_is_told() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    for errno in ["EPERM", "ENOSYS"] {
        let refused = format!("inject=io_uring_setup:error={errno}");
        let made = Command::new("strace")
            .args(["-f", "-e", "trace=io_uring_setup", "-e", &refused, "-o", "/dev/null"])
            .arg(std::env::current_exe().unwrap())
            .args(["program_without_a_ring", "--exact", "--nocapture"])
            .env(IMAGE, &path)
            .output();
        let Ok(made) = made else { return println!("skipped: no strace") };
        let text =
            String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
        if text.contains("strace:") {
            return println!("skipped: strace cannot trace here: {text}");
        }
        assert!(made.status.success() && text.contains("without a ring: passed"), "{text}");
    }
}
