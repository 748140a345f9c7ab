//! Plans, and what they do to a real image.

use blk_core::storage::CacheMode;
use blk_core::units::{Extent, GuestAddr, StateKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::backend::{FileBackend, FileOptions};

const FIRST: Extent = Extent::new(0, 1);
const WRITE: Op = Op::Write { extent: FIRST, fua: false };
const READ: Op = Op::Read { extent: FIRST };

struct Bench {
    backend: Faulty,
    handle: Box<dyn Handle>,
    memory: MappedMemory,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(mode: CacheMode, plan: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 4096]).unwrap();
        let file = FileBackend::open(path, &FileOptions::new(mode)).unwrap();
        let backend = Faulty::new(Arc::new(file), plan.parse().unwrap());
        let handle = backend.handle().unwrap();
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), 4096)]).unwrap();
        Self { backend, handle, memory, _dir: dir }
    }

    fn submit(&mut self, slot: u16, op: Op) {
        let segment = [Segment::Guest { addr: GuestAddr(0), len: 512 }];
        let segments = if op.segment_bytes() == Some(0) { &[][..] } else { &segment };
        let _ = self.handle.submit(&self.memory, Tag { slot, generation: 0 }, op, segments).unwrap();
    }

    /// Sleeps on the descriptor alone, as a server does.
    fn next(&mut self) -> (u16, Result<(), IoErrorKind>) {
        loop {
            if let Some(Completion { tag, result }) = self.handle.poll(&self.memory) {
                return (tag.slot, result.map_err(|error| error.kind));
            }
            if self.handle.arm() {
                let wake = self.handle.wake_fd();
                let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
                let woken = poll(&mut [PollFd::new(&wake, PollFlags::IN)], Some(&timeout)).unwrap();
                assert_eq!(woken, 1, "nobody woke it within ten seconds");
            }
        }
    }

    fn run(&mut self, op: Op) -> Result<(), IoErrorKind> {
        self.submit(1, op);
        self.next().1
    }
}

#[test]
fn a_plan_is_written_as_it_is_read() {
    for text in [
        "flush:500000us",
        "write@3:enospc",
        "any@4+:eio;read@1-2:7us",
        "zeroes@1.5%:eio;seed=9",
        "discard:eio",
        "state@2:eio",
    ] {
        assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "seed=1",
        "write",
        "wrote:eio",
        "write@0:eio",
        "write@x:eio",
        "write:epipe",
        "write:5",
        "write@101%:eio",
    ] {
        let error = text.parse::<Plan>().unwrap_err().to_string();
        assert!(error.contains("for example"), "{error}");
    }
}

#[test]
fn the_one_that_is_named_fails_and_a_plain_write_latches_nothing() {
    let mut bench = Bench::new(CacheMode::WriteBack, "write@2:enospc;read@1:eio");
    assert_eq!(bench.run(WRITE), Ok(()));
    assert_eq!(bench.run(WRITE), Err(IoErrorKind::NoSpace));
    assert_eq!(bench.run(WRITE), Ok(()));
    assert_eq!((bench.run(READ), bench.run(READ)), (Err(IoErrorKind::Medium), Ok(())));
    assert_eq!((bench.run(Op::Flush), bench.backend.latched()), (Ok(()), None));
}

#[test]
fn a_durable_operation_that_fails_latches_on_every_handle() {
    for (mode, plan, op) in [
        (CacheMode::WriteBack, "flush@1:eio", Op::Flush),
        (CacheMode::WriteThrough, "write@1:eio", WRITE),
        (CacheMode::WriteBack, "state@1:eio", Op::StoreState { key: StateKey(1) }),
    ] {
        let mut bench = Bench::new(mode, plan);
        assert_eq!(bench.run(op), Err(IoErrorKind::Medium));
        assert!(bench.backend.latched().is_some());
        bench.handle = bench.backend.handle().unwrap();
        assert_eq!(bench.run(Op::Flush), Err(IoErrorKind::Latched));
        assert_eq!((bench.run(WRITE), bench.run(READ)), (Err(IoErrorKind::Latched), Ok(())));
    }
}

#[test]
fn a_flush_that_is_held_back_holds_nothing_else_back_and_wakes_whoever_sleeps() {
    let mut bench = Bench::new(CacheMode::WriteBack, "flush:300ms");
    let start = Instant::now();
    bench.submit(1, Op::Flush);
    for slot in 2..6 {
        bench.submit(slot, READ);
        assert_eq!(bench.next(), (slot, Ok(())));
    }
    assert!(start.elapsed() < Duration::from_millis(300), "reads do not wait for it");
    assert_eq!(bench.next(), (1, Ok(())));
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[test]
fn the_same_seed_fails_the_same_operations() {
    let failures = |plan: &str| {
        let mut bench = Bench::new(CacheMode::WriteBack, plan);
        let failed: Vec<_> = (0..100).map(|_| bench.run(WRITE).is_err()).collect();
        (failed, bench.backend.plan().to_string())
    };
    let (first, plan) = failures("write@30%:eio");
    assert!(plan.contains(";seed="), "{plan}");
    assert_eq!(failures(&plan).0, first);
    let count = first.iter().filter(|failed| **failed).count();
    assert!((10..=55).contains(&count), "{count} of 100 at 30 %; {plan}");
}

#[test]
fn a_hold_is_not_counted_and_is_released_below() {
    let mut bench = Bench::new(CacheMode::WriteBack, "any@2:eio");
    for result in [Ok(()), Err(IoErrorKind::Medium)] {
        assert_eq!(bench.run(Op::Hold { extent: FIRST }), Ok(()));
        assert_eq!(bench.run(WRITE), result);
        bench.handle.release_hold(1);
    }
}
