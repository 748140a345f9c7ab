//! The sequencer against a storage that completes when the test says so.

use std::vec::Vec;

use super::{Deferred, Done, GuestCache, Order, Request, Sequencer, Started};
use crate::op::{Op, Segment};
use crate::ram::plain_info;
use crate::storage::{Busy, Cache, Completion, Info, IoErrorKind, Storage, Submission};
use crate::units::{Extent, GuestAddr, Tag};

const DATA: &[Segment] = &[Segment::Guest { addr: GuestAddr(0), len: 512 }];
const WRITE: Op = Op::Write { extent: Extent::new(0, 1), fua: false };
const FUA: Op = Op::Write { extent: Extent::new(0, 1), fua: true };
const READ: Op = Op::Read { extent: Extent::new(0, 1) };
const ZEROES: Op = Op::WriteZeroes { extent: Extent::new(0, 1), may_unmap: false };

struct Manual {
    info: Info,
    busy: bool,
    in_flight: Vec<(Tag, Op)>,
    done: Vec<Completion>,
    log: Vec<Op>,
}

impl Manual {
    fn new(cache: Cache, fua: bool) -> Self {
        let info = Info { fua, ..plain_info(1 << 20, cache) };
        Self { info, busy: false, in_flight: Vec::new(), done: Vec::new(), log: Vec::new() }
    }

    fn complete(&mut self, index: usize, result: Result<(), IoErrorKind>) {
        let (tag, _) = self.in_flight.remove(index);
        self.done.push(Completion { tag, result: result.map_err(Into::into) });
    }
}

impl Storage<()> for Manual {
    fn info(&self) -> &Info {
        &self.info
    }
    fn submit(&mut self, _: &(), tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        if self.busy {
            return Err(Busy);
        }
        assert_eq!(segments.is_empty(), !matches!(op, Op::Read { .. } | Op::Write { .. }), "{op:?}");
        assert!(!matches!(op, Op::Write { fua: true, .. }) || self.info.fua, "FUA only where it is honoured");
        self.in_flight.push((tag, op));
        self.log.push(op);
        Ok(Submission::Pending)
    }
    fn poll(&mut self, _: &()) -> Option<Completion> {
        if self.done.is_empty() { None } else { Some(self.done.remove(0)) }
    }
    fn staging(&mut self, _: u16) -> &mut [u8] {
        &mut []
    }
}

type Queue = Sequencer<char, 3>;

fn submit(queue: &mut Queue, disk: &mut Manual, request: Request, name: char) -> Result<u16, Deferred> {
    let segments = if matches!(request.op, Op::Read { .. } | Op::Write { .. }) { DATA } else { &[] };
    let started = queue.submit(&(), disk, &request, GuestCache::WriteBack, segments, name)?;
    match started {
        Started::InFlight(slot) => Ok(slot),
        Started::Ended(done) => panic!("the storage does nothing at once: {done:?}"),
    }
}

fn finish(queue: &mut Queue, disk: &mut Manual) -> Option<(char, Result<(), IoErrorKind>)> {
    let Done { slot, result } = queue.poll(&(), disk)?;
    Some((queue.release(slot).unwrap(), result.map_err(|error| error.kind)))
}

/// Runs one request to its end and returns the host operations that it took, one after the other.
fn operations(cache: Cache, fua: bool, guest: GuestCache, request: Request) -> Vec<Op> {
    let mut disk = Manual::new(cache, fua);
    let mut queue = Queue::new();
    let segments = if matches!(request.op, Op::Read { .. } | Op::Write { .. }) { DATA } else { &[] };
    let _ = queue.submit(&(), &mut disk, &request, guest, segments, 'x').unwrap();
    loop {
        assert_eq!(disk.in_flight.len(), 1, "the steps of a plan follow each other");
        disk.complete(0, Ok(()));
        if let Some(ended) = finish(&mut queue, &mut disk) {
            assert_eq!(ended, ('x', Ok(())));
            assert!(queue.is_idle());
            return disk.log;
        }
        if let Some((slot, _)) = queue.needs_segments() {
            let _ = queue.supply_segments(&(), &mut disk, slot, segments).unwrap();
        }
    }
}

// host-std/tests/defects.md, 1 and 16.
#[test]
fn each_promise_takes_the_host_operations_that_keep_it() {
    use Cache::{Unsafe, WriteBack, WriteThrough};
    let (on, off) = (GuestCache::WriteBack, GuestCache::WriteThrough);
    let (write, read, zeroes) = (Request::new(WRITE), Request::new(READ), Request::new(ZEROES));
    let barrier = Order::Barrier;
    for (cache, fua, guest, request, expected) in [
        (WriteBack, true, on, write, &[WRITE][..]),
        (WriteBack, true, on, write.with_fua(true), &[FUA]),
        (WriteBack, false, on, write.with_fua(true), &[WRITE, Op::Flush]),
        (WriteBack, true, off, write, &[FUA]),
        (WriteBack, false, off, write, &[WRITE, Op::Flush]),
        (WriteThrough, false, off, write, &[WRITE]),
        (WriteThrough, false, off, write.with_fua(true), &[WRITE]),
        (Unsafe, false, on, write.with_fua(true), &[WRITE]),
        (WriteBack, true, on, write.ordered(barrier), &[Op::Flush, FUA]),
        (WriteBack, false, on, write.ordered(barrier), &[Op::Flush, WRITE, Op::Flush]),
        (WriteThrough, false, off, write.ordered(barrier), &[WRITE]),
        // O_DSYNC does not cover fallocate.
        (WriteThrough, false, off, zeroes, &[ZEROES, Op::Flush]),
        (WriteBack, true, on, zeroes, &[ZEROES]),
        (WriteBack, true, off, zeroes, &[ZEROES, Op::Flush]),
        (WriteBack, true, on, read, &[READ]),
        (WriteBack, true, on, read.with_fua(true), &[Op::Flush, READ]),
        // A flush is asked of the host in every mode.
        (WriteBack, true, on, Request::new(Op::Flush), &[Op::Flush]),
        (WriteThrough, false, off, Request::new(Op::Flush), &[Op::Flush]),
    ] {
        let taken = operations(cache, fua, guest, request);
        assert_eq!(taken, expected, "{cache:?}, native FUA {fua}, guest {guest:?}: {request:?}");
    }
}

#[test]
fn a_barrier_drains_older_and_holds_younger_requests() {
    let mut disk = Manual::new(Cache::WriteBack, true);
    let mut queue = Queue::new();
    let (write, barrier) = (Request::new(WRITE), Request::new(WRITE).ordered(Order::Barrier));
    submit(&mut queue, &mut disk, write, 'a').unwrap();
    assert_eq!(
        submit(&mut queue, &mut disk, barrier, 'x'),
        Err(Deferred::Barrier),
        "older requests are in flight"
    );
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), Some(('a', Ok(()))));
    let slot = submit(&mut queue, &mut disk, barrier, 'x').unwrap();
    for _ in 0..2 {
        assert_eq!(submit(&mut queue, &mut disk, write, 'b'), Err(Deferred::Barrier), "the barrier runs");
        disk.complete(0, Ok(()));
        if finish(&mut queue, &mut disk).is_none() {
            let _ = queue.supply_segments(&(), &mut disk, slot, DATA).unwrap();
        }
    }
    assert_eq!(disk.log, [WRITE, Op::Flush, FUA]);
    assert!(submit(&mut queue, &mut disk, write, 'b').is_ok());
}

// host-std/tests/defects.md, 7.
#[test]
fn a_failed_step_ends_the_request_with_its_error_and_skips_the_rest() {
    let mut disk = Manual::new(Cache::WriteBack, false);
    let mut queue = Queue::new();
    submit(&mut queue, &mut disk, Request::new(WRITE).with_fua(true), 'a').unwrap();
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), None, "a FUA write is not done before its flush");
    disk.complete(0, Err(IoErrorKind::Medium));
    assert_eq!(finish(&mut queue, &mut disk), Some(('a', Err(IoErrorKind::Medium))));

    submit(&mut queue, &mut disk, Request::new(READ).with_fua(true), 'b').unwrap();
    disk.complete(0, Err(IoErrorKind::Latched));
    assert_eq!(finish(&mut queue, &mut disk), Some(('b', Err(IoErrorKind::Latched))));
    assert_eq!(disk.log, [WRITE, Op::Flush, Op::Flush], "nothing was read");
}

#[test]
fn what_finds_the_storage_busy_is_refused_or_retried_but_never_lost() {
    let mut disk = Manual::new(Cache::WriteBack, false);
    let mut queue = Queue::new();
    disk.busy = true;
    assert_eq!(submit(&mut queue, &mut disk, Request::new(WRITE), 'a'), Err(Deferred::Busy));
    assert!(queue.is_idle(), "nothing was taken");
    disk.busy = false;
    let slot = submit(&mut queue, &mut disk, Request::new(WRITE).with_fua(true), 'a').unwrap();
    disk.busy = true;
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), None);
    assert_eq!(disk.log, [WRITE], "its flush found the storage busy");
    disk.busy = false;
    assert_eq!(finish(&mut queue, &mut disk), None);
    assert_eq!(disk.log, [WRITE, Op::Flush]);

    disk.complete(0, Ok(()));
    let done = queue.poll(&(), &mut disk).unwrap();
    disk.busy = true;
    let _ = queue.advance(&(), &mut disk, done.slot, &Request::new(READ), GuestCache::WriteBack, DATA);
    assert_eq!(queue.needs_segments(), Some((slot, READ)));
    assert_eq!(queue.supply_segments(&(), &mut disk, slot, DATA), Err(Busy));
    disk.busy = false;
    let _ = queue.supply_segments(&(), &mut disk, slot, DATA).unwrap();
    assert_eq!(queue.needs_segments(), None);
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), Some(('a', Ok(()))));
}

#[test]
fn an_advance_that_finds_the_storage_busy_keeps_its_flush_before() {
    let mut disk = Manual::new(Cache::WriteBack, false);
    let mut queue = Queue::new();
    let slot = submit(&mut queue, &mut disk, Request::new(READ), 'a').unwrap();
    disk.complete(0, Ok(()));
    queue.poll(&(), &mut disk).unwrap();
    disk.busy = true;
    let read = Request::new(READ).with_fua(true);
    let _ = queue.advance(&(), &mut disk, slot, &read, GuestCache::WriteBack, DATA);
    disk.busy = false;
    let _ = queue.supply_segments(&(), &mut disk, slot, DATA).unwrap();
    assert_eq!(disk.log, [READ, Op::Flush], "a FUA read returns what is stable");
    assert_eq!(queue.needs_segments(), None, "nothing is wanted while the flush runs");
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), None);
    let _ = queue.supply_segments(&(), &mut disk, slot, DATA).unwrap();
    assert_eq!(disk.log, [READ, Op::Flush, READ]);
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), Some(('a', Ok(()))));
}

/// Takes a submission only while nothing is in flight or waits to be polled.
struct OneAtATime(Manual);

impl Storage<()> for OneAtATime {
    fn info(&self) -> &Info {
        &self.0.info
    }
    fn submit(&mut self, memory: &(), tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        if self.0.done.is_empty() { self.0.submit(memory, tag, op, segments) } else { Err(Busy) }
    }
    fn poll(&mut self, memory: &()) -> Option<Completion> {
        self.0.poll(memory)
    }
    fn staging(&mut self, _: u16) -> &mut [u8] {
        &mut []
    }
}

#[test]
fn a_refused_flush_is_offered_again_once_the_completions_have_made_room() {
    let mut disk = OneAtATime(Manual::new(Cache::WriteBack, false));
    let mut queue = Queue::new();
    let fua = Request::new(WRITE).with_fua(true);
    let _ = queue.submit(&(), &mut disk, &fua, GuestCache::WriteBack, DATA, 'a').unwrap();
    let _ = queue.submit(&(), &mut disk, &Request::new(READ), GuestCache::WriteBack, DATA, 'b').unwrap();
    disk.0.complete(0, Ok(()));
    disk.0.complete(0, Ok(()));
    let done = queue.poll(&(), &mut disk).unwrap();
    assert_eq!(queue.release(done.slot), Some('b'));
    assert_eq!(queue.poll(&(), &mut disk), None);
    assert_eq!(disk.0.log, [WRITE, READ, Op::Flush], "no completion is left that would wake the owner");
}

// host-std/tests/defects.md, 18 (CVE-2023-5088).
#[test]
fn a_reset_waits_for_what_was_submitted_and_reports_none_of_it() {
    let mut disk = Manual::new(Cache::WriteBack, false);
    let mut queue = Queue::new();
    submit(&mut queue, &mut disk, Request::new(WRITE).with_fua(true), 'a').unwrap();
    submit(&mut queue, &mut disk, Request::new(READ), 'b').unwrap();
    queue.reset();
    assert!(!queue.finish_reset::<(), _>(&mut disk));
    assert_eq!(submit(&mut queue, &mut disk, Request::new(READ), 'c'), Err(Deferred::Resetting));
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), None);
    assert!(!queue.finish_reset::<(), _>(&mut disk), "the read is still in flight");
    disk.complete(0, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), None);
    assert!(queue.finish_reset::<(), _>(&mut disk));
    assert_eq!(disk.log, [WRITE, READ], "the flush of the dropped write was not begun");
    assert_eq!(queue.strays(), 0);
}

#[test]
fn every_slot_is_used_and_no_more() {
    let mut disk = Manual::new(Cache::WriteBack, true);
    let mut queue = Queue::new();
    for (slot, name) in (0..3).zip("abc".chars()) {
        assert_eq!(queue.next_slot(), Some(slot));
        assert_eq!(submit(&mut queue, &mut disk, Request::new(READ), name), Ok(slot));
    }
    assert_eq!(submit(&mut queue, &mut disk, Request::new(READ), 'd'), Err(Deferred::Full));
    disk.complete(1, Ok(()));
    assert_eq!(finish(&mut queue, &mut disk), Some(('b', Ok(()))));
    assert_eq!(submit(&mut queue, &mut disk, Request::new(READ), 'd'), Ok(1));
    assert_eq!(queue.payloads().map(|(_, name)| *name).collect::<Vec<_>>(), ['a', 'd', 'c']);
}

/// Does at once what the script says, with this result; has the rest in flight.
struct Scripted(Manual, Vec<Option<Result<(), IoErrorKind>>>);

impl Storage<()> for Scripted {
    fn info(&self) -> &Info {
        &self.0.info
    }
    fn submit(&mut self, memory: &(), tag: Tag, op: Op, segments: &[Segment]) -> Result<Submission, Busy> {
        let pending = self.0.submit(memory, tag, op, segments)?;
        let at_once = if self.1.is_empty() { None } else { self.1.remove(0) };
        Ok(at_once.map_or(pending, |result| {
            self.0.in_flight.pop();
            Submission::Done(result.map_err(Into::into))
        }))
    }
    fn poll(&mut self, memory: &()) -> Option<Completion> {
        self.0.poll(memory)
    }
    fn staging(&mut self, _: u16) -> &mut [u8] {
        &mut []
    }
}

/// Starts a write with FUA, or a barrier, on a storage that does at once what `script` says.
fn scripted(request: Request, script: &[Option<Result<(), IoErrorKind>>]) -> (Queue, Scripted, Started) {
    let mut disk = Scripted(Manual::new(Cache::WriteBack, false), script.to_vec());
    let mut queue = Queue::new();
    let started = queue.submit(&(), &mut disk, &request, GuestCache::WriteBack, DATA, 'a').unwrap();
    (queue, disk, started)
}

#[test]
fn a_plan_goes_on_within_the_call_as_far_as_the_storage_does_it_at_once() {
    let (ok, error) = (Some(Ok(())), Some(Err(IoErrorKind::Medium)));
    let barrier = Request::new(WRITE).ordered(Order::Barrier);
    let plan = [Op::Flush, WRITE, Op::Flush];
    for (script, log, result) in [
        (&[ok, ok, ok][..], &plan[..], Some(Ok(()))),
        (&[ok, ok, error], &plan, Some(Err(IoErrorKind::Medium))),
        (&[ok, error], &plan[..2], Some(Err(IoErrorKind::Medium))),
        (&[error], &plan[..1], Some(Err(IoErrorKind::Medium))),
        (&[ok, ok, None], &plan, None),
        (&[ok, None], &plan[..2], None),
        (&[None], &plan[..1], None),
    ] {
        let (mut queue, mut disk, started) = scripted(barrier, script);
        assert_eq!(disk.0.log, log, "{script:?}");
        let ended = started.done().map(|done| done.result.map_err(|error| error.kind));
        assert_eq!(ended, result, "{script:?}");
        // A barrier holds what is younger until its owner has released it, at once or not.
        let younger = queue.submit(&(), &mut disk, &Request::new(READ), GuestCache::WriteBack, DATA, 'b');
        assert_eq!(younger, Err(Deferred::Barrier));
        if let Some(done) = started.done() {
            assert_eq!(queue.release(done.slot), Some('a'));
            assert!(queue.is_idle());
        }
    }
}

#[test]
fn a_write_that_is_done_at_once_is_not_done_before_its_refused_flush_is() {
    let mut disk = Scripted(Manual::new(Cache::WriteBack, false), [Some(Ok(()))].into());
    let mut queue = Queue::new();
    /// Busy from the second operation on.
    struct Second<'a>(&'a mut Scripted);
    impl Storage<()> for Second<'_> {
        fn info(&self) -> &Info {
            self.0.info()
        }
        fn submit(&mut self, memory: &(), tag: Tag, op: Op, data: &[Segment]) -> Result<Submission, Busy> {
            if self.0.0.log.is_empty() { self.0.submit(memory, tag, op, data) } else { Err(Busy) }
        }
        fn poll(&mut self, memory: &()) -> Option<Completion> {
            self.0.poll(memory)
        }
        fn staging(&mut self, _: u16) -> &mut [u8] {
            &mut []
        }
    }
    let fua = Request::new(WRITE).with_fua(true);
    let started = queue.submit(&(), &mut Second(&mut disk), &fua, GuestCache::WriteBack, DATA, 'a').unwrap();
    assert_eq!(started, Started::InFlight(0), "written, and not stable");
    assert_eq!(queue.poll(&(), &mut Second(&mut disk)), None);
    disk.1 = [Some(Ok(()))].into();
    let done = queue.poll(&(), &mut disk).unwrap();
    assert_eq!((done.result, queue.release(done.slot)), (Ok(()), Some('a')));
    assert_eq!(disk.0.log, [WRITE, Op::Flush]);
}
