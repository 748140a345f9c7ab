//! Errors, short transfers and delays of the host, injected below the file backend.

mod common;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use blk_core::op::Op;
use blk_core::storage::{CacheMode, IoErrorKind, Storage};
use blk_core::units::{Extent, Lba};
use common::*;
use host_std::backend::{
    Durable, FileBackend, FileOptions, FileStorage, IoVecs, LatchCause, LinuxSyscalls, Syscalls,
};
use host_std::memory::MappedMemory;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, Result};

/// What the next calls of one kind are to do; once it is empty they do what the kernel does.
type Script<T> = Arc<Mutex<VecDeque<T>>>;

#[derive(Clone, Copy)]
enum Transfer {
    /// Move this many bytes at most.
    Short(usize),
    Fail(Errno),
    /// Move nothing and say so.
    Nothing,
    /// Like the kernel.
    Whole,
}

/// A host that follows scripts.
#[derive(Clone, Default)]
struct Faulty {
    reads: Script<Transfer>,
    writes: Script<Transfer>,
    syncs: Script<Result<()>>,
    ranges: Script<Errno>,
    /// Before fdatasync.
    gate: Arc<Gate>,
    /// Before writes.
    write_gate: Arc<Gate>,
    syncs_running: Arc<AtomicU32>,
    syncs_made: Arc<AtomicU32>,
}

/// Holds calls, once closed, until the test lets them go one by one.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    waiting: u32,
    passes: u32,
}

impl Gate {
    fn close(&self) {
        self.state.lock().unwrap().closed = true;
    }

    /// Waits until a call is held.
    fn await_held(&self) {
        let state = self.state.lock().unwrap();
        let (_state, timeout) = self
            .changed
            .wait_timeout_while(state, Duration::from_secs(10), |state| state.waiting == 0)
            .unwrap();
        assert!(!timeout.timed_out(), "no call came");
    }

    fn open(&self) {
        self.state.lock().unwrap().passes = u32::MAX;
        self.changed.notify_all();
    }

    fn let_one_go(&self) {
        self.state.lock().unwrap().passes += 1;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        if !state.closed {
            return;
        }
        state.waiting += 1;
        self.changed.notify_all();
        state = self.changed.wait_while(state, |state| state.passes == 0).unwrap();
        state.passes -= 1;
        state.waiting -= 1;
    }
}

fn script<T>(script: &Script<T>) -> Option<T> {
    script.lock().unwrap().pop_front()
}

fn transfer(
    step: Option<Transfer>,
    iovecs: &IoVecs,
    call: impl Fn(&IoVecs) -> Result<usize>,
) -> Result<usize> {
    match step {
        Some(Transfer::Short(bytes)) => iovecs.with_prefix(bytes, call),
        Some(Transfer::Fail(errno)) => Err(errno),
        Some(Transfer::Nothing) => Ok(0),
        Some(Transfer::Whole) | None => call(iovecs),
    }
}

impl Syscalls for Faulty {
    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        transfer(script(&self.reads), into, |iovecs| LinuxSyscalls.read(fd, iovecs, offset))
    }

    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize> {
        self.write_gate.pass();
        transfer(script(&self.writes), from, |iovecs| LinuxSyscalls.write(fd, iovecs, offset, dsync))
    }

    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let running = self.syncs_running.fetch_add(1, Ordering::SeqCst);
        assert_eq!(running, 0, "two fdatasync calls at once: only one of them would see an error");
        let scripted = script(&self.syncs);
        self.gate.pass();
        let result = scripted.unwrap_or_else(|| LinuxSyscalls.fdatasync(fd));
        self.syncs_running.fetch_sub(1, Ordering::SeqCst);
        self.syncs_made.fetch_add(1, Ordering::SeqCst);
        result
    }

    fn fallocate(&self, fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<()> {
        match script(&self.ranges) {
            Some(errno) => Err(errno),
            None => LinuxSyscalls.fallocate(fd, mode, offset, bytes),
        }
    }

    fn block_discard(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_discard(fd, offset, bytes)
    }

    fn block_zero(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_zero(fd, offset, bytes)
    }
}

struct Rig {
    host: Faulty,
    backend: FileBackend<Faulty>,
    disk: FileStorage<Faulty>,
    memory: MappedMemory,
    path: PathBuf,
    _images: Images,
}

impl Rig {
    fn new(mode: CacheMode) -> Self {
        let images = Images::on_disk();
        let path = images.image("image", IMAGE_BYTES);
        let host = Faulty::default();
        let backend = FileBackend::open_on(host.clone(), &path, &FileOptions::new(mode)).unwrap();
        let disk = backend.handle().unwrap();
        Self { host, backend, disk, memory: memory(), path, _images: images }
    }

    fn run(&mut self, op: Op) -> Option<IoErrorKind> {
        kind(self.run_whole(op))
    }

    fn run_whole(&mut self, op: Op) -> std::result::Result<(), blk_core::storage::IoError> {
        let pages = [guest(0, 512), guest(0x1000, 7 * 512)];
        let segments = if matches!(op, Op::Read { .. } | Op::Write { .. }) { &pages[..] } else { &[] };
        run(&mut self.disk, &self.memory, op, segments)
    }

    fn has_fua(&self) -> bool {
        let fua = self.backend.info().fua;
        if !fua {
            println!("skipped: no native FUA on {}", self.path.display());
        }
        fua
    }

    fn flush(&mut self, slot: u16) {
        let _ = self.disk.submit(&self.memory, tag(slot), Op::Flush, &[]).unwrap();
    }

    /// Everything that has to fail once the backend has latched does, and reads go on.
    fn assert_latched(&mut self) {
        let mutations = [
            write(0, 8),
            Op::WriteZeroes { extent: Extent::new(0, 1), may_unmap: false },
            Op::Discard { extent: Extent::new(0, 1) },
            Op::Flush,
        ];
        for op in mutations {
            assert_eq!(self.run(op), Some(IoErrorKind::Latched), "{op:?}");
        }
        if self.backend.info().fua {
            assert_eq!(self.run(fua(0, 8)), Some(IoErrorKind::Latched));
        }
        assert_eq!(self.run(read(0, 8)), None, "reads go on");
        let mut other = self.backend.handle().unwrap();
        let flush = run(&mut other, &self.memory, Op::Flush, &[]);
        assert_eq!(kind(flush), Some(IoErrorKind::Latched), "the latch is the image's, not the handle's");
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A test that fails must not leave a thread held, for which the backend would wait.
        self.host.gate.open();
        self.host.write_gate.open();
    }
}

/// host-std/tests/defects.md, 10.
#[test]
fn a_short_transfer_goes_on_and_one_that_stops_is_an_error() {
    for mode in [CacheMode::WriteBack, CacheMode::WriteThrough, CacheMode::None] {
        let mut rig = Rig::new(mode);
        fill(&rig.memory, 0, 512, 1);
        fill(&rig.memory, 0x1000, 7 * 512, 2);
        let steps =
            [Transfer::Short(1024), Transfer::Fail(Errno::INTR), Transfer::Short(512), Transfer::Whole];
        rig.host.writes.lock().unwrap().extend(steps);
        assert_eq!(rig.run(write(8, 8)), None);
        fill(&rig.memory, 0, 512, 9);
        fill(&rig.memory, 0x1000, 7 * 512, 9);
        rig.host.reads.lock().unwrap().extend(steps);
        assert_eq!(rig.run(read(8, 8)), None);
        assert_eq!(peek(&rig.memory, 0, 512), [1; 512]);
        assert_eq!(peek(&rig.memory, 0x1000, 7 * 512), [2; 7 * 512]);
        assert_eq!(
            &std::fs::read(&rig.path).unwrap()[8 * 512..16 * 512],
            [[1; 512].as_slice(), &[2; 3584]].concat()
        );

        rig.host.writes.lock().unwrap().extend([Transfer::Short(1024), Transfer::Nothing]);
        let error = rig.run_whole(write(8, 8)).unwrap_err();
        assert_eq!((error.kind, error.lba), (IoErrorKind::Medium, Some(Lba(10))));
        if mode == CacheMode::WriteThrough {
            let cause = LatchCause { what: Durable::Write, errno: None, lba: Some(Lba(10)) };
            assert_eq!(rig.backend.latched(), Some(cause));
        } else {
            assert_eq!(rig.backend.latched(), None, "a plain write promised nothing");
        }
    }
}

/// Behind an end that lies within the capacity everything is lost, and the next write may hide that.
#[test]
fn a_read_that_meets_the_end_of_the_file_latches() {
    for mode in [CacheMode::WriteBack, CacheMode::WriteThrough, CacheMode::None] {
        let mut rig = Rig::new(mode);
        rig.host.reads.lock().unwrap().extend([Transfer::Short(512), Transfer::Nothing]);
        let error = rig.run_whole(read(8, 8)).unwrap_err();
        assert_eq!((error.kind, error.lba), (IoErrorKind::Medium, Some(Lba(9))));
        let cause = LatchCause { what: Durable::Truncated, errno: None, lba: Some(Lba(9)) };
        assert_eq!(rig.backend.latched(), Some(cause));
        rig.assert_latched();
    }
}

#[test]
fn errors_of_the_host_keep_their_meaning() {
    let mut rig = Rig::new(CacheMode::WriteBack);
    for (errno, expected) in [
        (Errno::IO, IoErrorKind::Medium),
        (Errno::NOSPC, IoErrorKind::NoSpace),
        (Errno::DQUOT, IoErrorKind::NoSpace),
        (Errno::ROFS, IoErrorKind::ReadOnly),
    ] {
        rig.host.writes.lock().unwrap().push_back(Transfer::Fail(errno));
        assert_eq!(rig.run(write(0, 8)), Some(expected));
        rig.host.reads.lock().unwrap().push_back(Transfer::Fail(errno));
        assert_eq!(rig.run(read(0, 8)), Some(expected));
    }
    assert_eq!(rig.backend.latched(), None);
    assert_eq!(rig.run(Op::Flush), None);
}

/// host-std/tests/defects.md, 17: the second fdatasync succeeds, with the data gone; and 14: whoever flushes next is told of it, on
/// any handle.
#[test]
fn a_flush_that_failed_once_and_would_now_succeed_fails_for_good() {
    for mode in CacheMode::ALL {
        if mode == CacheMode::Unsafe {
            continue;
        }
        let mut rig = Rig::new(mode);
        assert_eq!(rig.run(write(40, 8)), None);
        assert_eq!(rig.run(write(16, 8)), None);
        rig.host.syncs.lock().unwrap().extend([Err(Errno::INTR), Err(Errno::IO)]);
        let error = rig.run_whole(Op::Flush).unwrap_err();
        let volatile = rig.backend.info().has_volatile_cache();
        let lba = volatile.then_some(Lba(16));
        assert_eq!((error.kind, error.lba), (IoErrorKind::Medium, lba), "the lowest sector that was dirty");
        let cause = LatchCause { what: Durable::Flush, errno: Some(Errno::IO), lba };
        assert_eq!(rig.backend.latched(), Some(cause));
        let made = rig.backend.counts().fdatasync_calls;
        rig.assert_latched();
        assert_eq!(rig.backend.counts().fdatasync_calls, made, "nothing is retried");
    }
}

#[test]
fn a_failed_durable_write_latches_and_a_failed_plain_one_does_not() {
    for (mode, op, latches) in [
        (CacheMode::WriteThrough, write(8, 8), true),
        (CacheMode::DirectSync, write(8, 8), true),
        (CacheMode::WriteBack, fua(8, 8), true),
        (CacheMode::None, fua(8, 8), true),
        (CacheMode::WriteBack, write(8, 8), false),
        (CacheMode::None, write(8, 8), false),
    ] {
        let mut rig = Rig::new(mode);
        if matches!(op, Op::Write { fua: true, .. }) && !rig.has_fua() {
            continue;
        }
        rig.host.writes.lock().unwrap().push_back(Transfer::Fail(Errno::IO));
        let error = rig.run_whole(op).unwrap_err();
        assert_eq!((error.kind, error.lba), (IoErrorKind::Medium, Some(Lba(8))));
        if latches {
            rig.assert_latched();
        } else {
            assert_eq!((rig.backend.latched(), rig.run(Op::Flush)), (None, None));
        }
    }
}

/// The memory of a request is its client's: that it is gone fails the request, also after a part of it is stable, and nothing else.
#[test]
fn a_durable_write_from_memory_that_is_gone_fails_without_a_latch() {
    for (mode, op) in [
        (CacheMode::WriteThrough, write(8, 8)),
        (CacheMode::DirectSync, write(8, 8)),
        (CacheMode::WriteBack, fua(8, 8)),
        (CacheMode::None, fua(8, 8)),
    ] {
        for moved in [None, Some(Transfer::Short(512))] {
            let mut rig = Rig::new(mode);
            if matches!(op, Op::Write { fua: true, .. }) && !rig.has_fua() {
                continue;
            }
            let steps = moved.into_iter().chain([Transfer::Fail(Errno::FAULT)]);
            rig.host.writes.lock().unwrap().extend(steps);
            assert_eq!(rig.run(op), Some(IoErrorKind::Memory));
            assert_eq!(rig.backend.latched(), None);
            assert_eq!((rig.run(op), rig.run(Op::Flush)), (None, None), "the next client's");
        }
    }
}

#[test]
fn a_flush_names_the_lowest_sector_written_since_the_last_good_one() {
    let mut rig = Rig::new(CacheMode::WriteBack);
    assert_eq!(rig.run(write(8, 8)), None);
    assert_eq!(rig.run(Op::Flush), None);
    if rig.has_fua() {
        assert_eq!(rig.run(fua(0, 8)), None, "stable by itself");
    }
    assert_eq!(rig.run(Op::WriteZeroes { extent: Extent::new(64, 8), may_unmap: true }), None);
    assert_eq!(rig.run(write(100, 8)), None);
    rig.host.syncs.lock().unwrap().push_back(Err(Errno::NOSPC));
    let error = rig.run_whole(Op::Flush).unwrap_err();
    assert_eq!((error.kind, error.lba), (IoErrorKind::NoSpace, Some(Lba(64))));
}

/// host-std/tests/defects.md, 13. The write's pages may be among those that failed, and they may have come too late for it.
#[test]
fn a_write_in_flight_during_a_flush_is_named_by_it_and_left_to_the_next() {
    for fails_at_once in [true, false] {
        let mut rig = Rig::new(CacheMode::WriteBack);
        let gate = Arc::clone(&rig.host.write_gate);
        gate.close();
        let pages = [guest(0, 4096)];
        let _ = rig.disk.submit(&rig.memory, tag(1), write(64, 8), &pages).unwrap();
        gate.await_held();
        let results = if fails_at_once { vec![Err(Errno::IO)] } else { vec![Ok(()), Err(Errno::IO)] };
        rig.host.syncs.lock().unwrap().extend(results);
        rig.flush(2);
        let mut flush = next(&mut rig.disk, &rig.memory);
        if !fails_at_once {
            assert_eq!((flush.tag, flush.result), (tag(2), Ok(())));
            gate.let_one_go();
            assert_eq!(next(&mut rig.disk, &rig.memory).result, Ok(()));
            rig.flush(2);
            flush = next(&mut rig.disk, &rig.memory);
        }
        assert_eq!(flush.tag, tag(2));
        assert_eq!(flush.result.unwrap_err().lba, Some(Lba(64)), "fails at once: {fails_at_once}");
        gate.let_one_go();
    }
}

/// host-std/tests/defects.md, 13: a flush that began before it is not its flush.
#[test]
fn a_flush_joins_the_next_fdatasync_and_never_the_one_that_runs() {
    let mut rig = Rig::new(CacheMode::WriteBack);
    let gate = Arc::clone(&rig.host.gate);
    gate.close();
    rig.flush(0);
    gate.await_held();
    // These come while the first runs; what they cover it may have passed by already.
    for slot in 1..6 {
        rig.flush(slot);
    }
    assert!(rig.disk.poll(&rig.memory).is_none());
    gate.let_one_go();
    assert_eq!(next(&mut rig.disk, &rig.memory).tag, tag(0));
    gate.await_held();
    assert!(rig.disk.poll(&rig.memory).is_none(), "the first did not serve the others");
    gate.let_one_go();
    for slot in 1..6 {
        let completion = next(&mut rig.disk, &rig.memory);
        assert_eq!((completion.tag, completion.result), (tag(slot), Ok(())));
    }
    assert_eq!(rig.host.syncs_made.load(Ordering::SeqCst), 2, "five flushes, one fdatasync");
    let counts = rig.backend.counts();
    assert_eq!((counts.flushes, counts.fdatasync_calls), (6, 2));
}

/// host-std/tests/defects.md, 15.
#[test]
fn a_slow_fdatasync_holds_up_neither_submission_nor_reads_nor_writes() {
    let mut rig = Rig::new(CacheMode::WriteBack);
    let gate = Arc::clone(&rig.host.gate);
    gate.close();
    rig.flush(100);
    gate.await_held();
    for slot in 0..50 {
        let op = if slot % 2 == 0 { read(0, 1) } else { write(u64::from(slot), 1) };
        let _ = rig.disk.submit(&rig.memory, tag(slot), op, &[guest(0, 512)]).unwrap();
    }
    for _ in 0..50 {
        let completion = next(&mut rig.disk, &rig.memory);
        assert!(completion.tag.slot < 50 && completion.result.is_ok());
    }
    gate.let_one_go();
    assert_eq!(next(&mut rig.disk, &rig.memory).tag, tag(100));
}

/// The kernel gives an error to one of two callers. Here a FUA write takes it while fdatasync runs, and that returns OK.
#[test]
fn an_error_that_another_operation_took_fails_the_flush_that_was_running() {
    let mut rig = Rig::new(CacheMode::WriteBack);
    if !rig.has_fua() {
        return;
    }
    assert_eq!(rig.run(write(0, 8)), None);
    let gate = Arc::clone(&rig.host.gate);
    gate.close();
    rig.host.syncs.lock().unwrap().push_back(Ok(()));
    rig.flush(0);
    gate.await_held();
    rig.host.writes.lock().unwrap().push_back(Transfer::Fail(Errno::IO));
    let _ = rig.disk.submit(&rig.memory, tag(1), fua(64, 1), &[guest(0, 512)]).unwrap();
    let write = next(&mut rig.disk, &rig.memory);
    assert_eq!((write.tag, kind(write.result)), (tag(1), Some(IoErrorKind::Medium)));
    gate.let_one_go();
    let flush = next(&mut rig.disk, &rig.memory);
    assert_eq!((flush.tag, kind(flush.result)), (tag(0), Some(IoErrorKind::Latched)));
}

#[test]
fn all_flushes_that_joined_a_failed_fdatasync_fail() {
    let mut rig = Rig::new(CacheMode::None);
    let gate = Arc::clone(&rig.host.gate);
    gate.close();
    rig.host.syncs.lock().unwrap().extend([Ok(()), Err(Errno::IO)]);
    let mut other = rig.backend.handle().unwrap();
    rig.flush(0);
    gate.await_held();
    rig.flush(1);
    let _ = other.submit(&rig.memory, tag(2), Op::Flush, &[]).unwrap();
    gate.let_one_go();
    gate.let_one_go();
    assert_eq!(next(&mut rig.disk, &rig.memory).result, Ok(()));
    assert_eq!(kind(next(&mut rig.disk, &rig.memory).result), Some(IoErrorKind::Medium));
    assert_eq!(kind(next(&mut other, &rig.memory).result), Some(IoErrorKind::Medium));
}

#[test]
fn what_a_file_system_cannot_zero_is_written_with_zeroes() {
    for mode in CacheMode::ALL {
        for may_unmap in [false, true] {
            let mut rig = Rig::new(mode);
            let refusals = [Errno::OPNOTSUPP, Errno::OPNOTSUPP];
            rig.host.ranges.lock().unwrap().extend(&refusals[..if may_unmap { 2 } else { 1 }]);
            let extent = Extent::new(1, 1800);
            assert_eq!(rig.run(Op::WriteZeroes { extent, may_unmap }), None);
            assert!(rig.host.ranges.lock().unwrap().is_empty());
            let bytes = std::fs::read(&rig.path).unwrap();
            assert!(bytes[..512].iter().chain(&bytes[1801 * 512..]).all(|&byte| byte == 0xee));
            assert!(bytes[512..1801 * 512].iter().all(|&byte| byte == 0));
        }
    }
}

#[test]
fn a_discard_that_is_not_supported_leaves_the_data_and_a_failed_one_is_an_error() {
    let mut rig = Rig::new(CacheMode::WriteBack);
    rig.host.ranges.lock().unwrap().extend([Errno::OPNOTSUPP, Errno::INTR, Errno::IO]);
    let discard = Op::Discard { extent: Extent::new(8, 8) };
    assert_eq!(rig.run(discard), None);
    assert!(std::fs::read(&rig.path).unwrap().iter().all(|&byte| byte == 0xee));
    assert_eq!(rig.run(discard), Some(IoErrorKind::Medium));
}

#[test]
fn an_unsafe_image_runs_no_fdatasync_and_says_so() {
    let mut rig = Rig::new(CacheMode::Unsafe);
    assert_eq!(rig.run(write(0, 8)), None);
    assert_eq!(rig.run(Op::Flush), None);
    let counts = rig.backend.counts();
    assert_eq!((counts.flushes, counts.fdatasync_calls), (1, 0));
    assert_eq!(rig.backend.info().cache, blk_core::storage::Cache::Unsafe);
    assert_eq!(rig.run(fua(0, 8)), Some(IoErrorKind::Unsupported), "FUA is never silently ignored");
}
