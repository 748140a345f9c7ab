//! Handles under limits, over a real image, with their descriptors alone to wake them.

use blk_core::storage::CacheMode;
use blk_core::units::{Extent, GuestAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use super::*;
use crate::backend::{FileBackend, FileOptions};

const EIGHT: Extent = Extent::new(0, 8);
const READ: Op = Op::Read { extent: EIGHT };
const WRITE: Op = Op::Write { extent: EIGHT, fua: false };

struct Bench {
    backend: Throttled,
    handle: Box<dyn Handle>,
    memory: MappedMemory,
    _dir: tempfile::TempDir,
}

fn limits(iops: Option<(u64, u64)>, bps: Option<(u64, u64)>) -> Limits {
    let rate = |(per_second, burst)| Rate::new(per_second, Some(burst)).unwrap();
    Limits { iops: iops.map(rate), bps: bps.map(rate) }
}

impl Bench {
    fn new(limits: Limits) -> Self {
        Self::over(limits, |backend| backend)
    }

    fn over(limits: Limits, layer: impl FnOnce(Arc<dyn Backend>) -> Arc<dyn Backend>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 65536]).unwrap();
        let file = FileBackend::open(path, &FileOptions::new(CacheMode::WriteBack)).unwrap();
        let backend = Throttled::new(layer(Arc::new(file)), limits);
        let handle = backend.handle().unwrap();
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), 65536)]).unwrap();
        Self { backend, handle, memory, _dir: dir }
    }

    fn submit(&mut self, slot: u16, op: Op) {
        let len = op.extent().and_then(|extent| extent.bytes()).unwrap_or(0);
        let segment = [Segment::Guest { addr: GuestAddr(0), len: len as u32 }];
        let segments = if op == Op::Flush { &[][..] } else { &segment };
        self.handle.submit(&self.memory, Tag { slot, generation: 0 }, op, segments).map(drop).unwrap();
    }

    fn ready(&mut self) -> Option<u16> {
        self.handle.poll(&self.memory).map(|completion| {
            assert_eq!(completion.result, Ok(()));
            completion.tag.slot
        })
    }

    /// Sleeps on the descriptor alone, as a server does.
    fn next(&mut self) -> u16 {
        loop {
            if let Some(slot) = self.ready() {
                return slot;
            }
            if self.handle.arm() {
                let wake = self.handle.wake_fd();
                let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
                let woken = poll(&mut [PollFd::new(&wake, PollFlags::IN)], Some(&timeout)).unwrap();
                assert_eq!(woken, 1, "nobody woke it within ten seconds");
            }
        }
    }

    /// So many, `depth` at a time; the time that they took.
    fn run(&mut self, count: u16, depth: u16, op: Op) -> Duration {
        let start = Instant::now();
        (0..depth).for_each(|slot| self.submit(slot, op));
        for ended in 1..=count {
            let slot = self.next();
            if ended + depth <= count {
                self.submit(slot, op);
            }
        }
        start.elapsed()
    }
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}

#[test]
fn operations_come_no_faster_than_the_limit_and_not_much_slower() {
    let mut bench = Bench::new(limits(Some((200, 10)), None));
    let time = bench.run(110, 32, READ);
    assert!(time >= Duration::from_millis(499), "ten at once, a hundred in half a second: {time:?}");
    assert!(time < Duration::from_secs(5), "{time:?}");
    let Delays { held, delayed, delayed_ns } = bench.backend.limiter().delays();
    assert_eq!((held, delayed), (0, 100));
    assert!(delayed_ns > 100 * 50_000_000, "each of them waited behind 31 others: {delayed_ns}");
}

#[test]
fn bytes_come_no_faster_than_the_limit_whatever_the_size_of_a_request() {
    for (sectors, count) in [(1, 100), (8, 13), (100, 1)] {
        let mut bench = Bench::new(limits(None, Some((256 << 10, 512))));
        let op = Op::Read { extent: Extent::new(0, sectors) };
        let start = Instant::now();
        bench.run(count, 4.min(count), op);
        // Waits for the debt that the last one left.
        bench.run(1, 1, READ);
        let time = start.elapsed();
        assert!(time >= Duration::from_millis(190), "50 KiB at 256 KiB/s, {sectors}: {time:?}");
        assert!(time < Duration::from_secs(5), "{sectors}: {time:?}");
    }
}

#[test]
fn all_handles_share_one_limit_and_each_gets_its_part() {
    let bench = Bench::new(limits(Some((200, 1)), None));
    let (backend, memory) = (&bench.backend, &bench.memory);
    let until = Instant::now() + Duration::from_millis(600);
    let counts: Vec<u32> = std::thread::scope(|scope| {
        let threads = (0..3).map(|_| backend.handle().unwrap()).map(|mut handle| {
            scope.spawn(move || {
                let segments = [Segment::Guest { addr: GuestAddr(0), len: 4096 }];
                let submit = |handle: &mut Box<dyn Handle>, slot| {
                    let _ = handle.submit(memory, Tag { slot, generation: 0 }, READ, &segments).unwrap();
                };
                (0..4).for_each(|slot| submit(&mut handle, slot));
                let mut count = 0;
                while Instant::now() < until {
                    while let Some(completion) = handle.poll(memory) {
                        count += 1;
                        submit(&mut handle, completion.tag.slot);
                    }
                    if handle.arm() {
                        let wake = handle.wake_fd();
                        let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                        let _ = poll(&mut [PollFd::new(&wake, PollFlags::IN)], Some(&timeout));
                    }
                }
                count
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum: u32 = counts.iter().sum();
    // The last one of each may come after the end.
    assert!((30..=130).contains(&sum), "{counts:?}");
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= sum / 3, "first come, first served: {counts:?}");
    assert_eq!(bench.backend.limiter().delays().held, 0, "what was held is gone with its handle");
}

#[test]
fn a_flush_does_not_wait_for_a_debt_of_bytes() {
    let mut bench = Bench::new(limits(None, Some((512, 512))));
    bench.run(1, 1, WRITE);
    bench.submit(1, WRITE);
    let time = bench.run(1, 1, Op::Flush);
    assert!(time < Duration::from_secs(2), "seven seconds of debt: {time:?}");
    assert_eq!((bench.ready(), bench.backend.limiter().delays().held), (None, 1));
}

#[test]
fn a_drain_lets_go_at_once_what_is_held_and_what_comes_meanwhile() {
    let mut bench = Bench::new(limits(Some((1, 1)), None));
    (0..100).for_each(|slot| bench.submit(slot, WRITE));
    assert_eq!((bench.next(), bench.ready()), (0, None));
    assert_eq!(bench.backend.limiter().delays().held, 99);
    let start = Instant::now();
    assert!(bench.handle.arm());
    bench.handle.drain(true);
    assert!(!bench.handle.arm(), "there is something to be done by a poll");
    let mut slots: Vec<_> = (1..100).map(|_| bench.next()).collect();
    slots.sort_unstable();
    assert!(slots.into_iter().eq(1..100), "each of them, once");
    bench.submit(7, Op::Flush);
    assert_eq!(bench.next(), 7);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // They have been counted.
    bench.handle.drain(false);
    bench.submit(1, READ);
    assert!(bench.handle.arm());
    assert_eq!((bench.ready(), bench.backend.limiter().delays().held), (None, 1));
}

#[test]
fn whoever_waits_sleeps() {
    let mut bench = Bench::new(limits(Some((5, 1)), None));
    let before = cpu();
    let time = bench.run(6, 4, READ);
    let used = cpu() - before;
    assert!(time >= Duration::from_millis(999), "{time:?}");
    assert!(used < time / 20, "{used:?} of {time:?}");
}

#[test]
fn a_changed_limit_is_heeded_by_what_is_held_already() {
    let mut bench = Bench::new(limits(Some((1, 1)), None));
    (0..64).for_each(|slot| bench.submit(slot, READ));
    assert_eq!((bench.next(), bench.ready()), (0, None));
    let start = Instant::now();
    bench.backend.limiter().set_limits(limits(Some((200, 10)), None));
    (1..64).for_each(|_| _ = bench.next());
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(314), "a new limit is no burst: {time:?}");
    assert!(time < Duration::from_secs(3), "{time:?}");
    bench.backend.limiter().set_limits(Limits::default());
    let time = bench.run(200, 64, READ);
    assert!(time < Duration::from_secs(5), "no limit: {time:?}");
}

/// Takes one operation at a time.
struct Narrow(Arc<dyn Backend>);

struct NarrowHandle(Box<dyn Handle>, u32);

impl Backend for Narrow {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        Ok(Box::new(NarrowHandle(self.0.handle()?, 0)))
    }
    fn info(&self) -> Info {
        self.0.info()
    }
    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        self.0.resize(bytes)
    }
    fn counts(&self) -> Counts {
        self.0.counts()
    }
    fn latched(&self) -> Option<LatchCause> {
        self.0.latched()
    }
    fn latch(&self, cause: LatchCause) {
        self.0.latch(cause);
    }
    fn set_client_latch(&self, cause: Option<LatchCause>) {
        self.0.set_client_latch(cause);
    }
}

impl Storage<MappedMemory> for NarrowHandle {
    fn info(&self) -> &Info {
        self.0.info()
    }
    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        if self.1 != 0 {
            return Err(Busy);
        }
        self.1 += 1;
        self.0.submit(memory, tag, op, segments)
    }
    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        let completion = self.0.poll(memory)?;
        self.1 -= 1;
        Some(completion)
    }
    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.0.staging(slot)
    }
}

impl Handle for NarrowHandle {
    fn arm(&mut self) -> bool {
        self.0.arm()
    }
    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.0.wake_fd()
    }
}

#[test]
fn a_busy_image_is_asked_again_when_something_has_ended_and_nothing_is_paid_twice() {
    let mut bench = Bench::over(limits(None, Some((512, 40 * 4096))), |backend| Arc::new(Narrow(backend)));
    // There are tokens for each of them, once; those of another one take eight seconds.
    let time = bench.run(40, 20, WRITE);
    assert!(time < Duration::from_secs(5), "paid twice: {time:?}");
    // Flushes end on another thread: each wakes the poller.
    bench.handle.drain(true);
    (0..20).for_each(|slot| bench.submit(slot, Op::Flush));
    (0..20).for_each(|_| _ = bench.next());
    assert_eq!(bench.backend.limiter().delays().held, 0);
}

#[test]
fn a_staging_buffer_is_not_given_out_while_what_is_held_uses_it() {
    let mut bench = Bench::new(limits(Some((20, 1)), None));
    bench.run(1, 1, READ);
    bench.handle.staging(3)[..4096].fill(0x5a);
    let tag = Tag { slot: 3, generation: 0 };
    let _ =
        bench.handle.submit(&bench.memory, tag, WRITE, &[Segment::Staging { offset: 0, len: 4096 }]).unwrap();
    assert_eq!((bench.ready(), bench.handle.staging(3).len()), (None, 0));
    assert!(!bench.handle.staging(4).is_empty());
    assert_eq!(bench.next(), 3);
    assert!(!bench.handle.staging(3).is_empty());
}

#[test]
fn a_fence_forgets_what_is_held() {
    let mut bench = Bench::new(limits(Some((1, 1)), None));
    bench.run(1, 1, READ);
    (0..5).for_each(|slot| bench.submit(slot, WRITE));
    assert!(bench.handle.cancel_in_flight());
    bench.handle.drain(true);
    assert_eq!((bench.ready(), bench.backend.limiter().delays().held), (None, 0));
    assert_eq!(bench.backend.counts().writes, 0);
}
