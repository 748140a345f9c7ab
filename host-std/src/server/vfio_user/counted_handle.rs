//! The device's way to an image: a handle that counts what is in flight, and takes nothing while it is shut.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, Completion, Info, IoError, Storage, Submission};
use blk_core::units::Tag;

use super::moderation::Requests;
use crate::backend::Handle;
use crate::memory::MappedMemory;
use crate::server::stats::QueueCounters;

/// A handle to an image, as a PCI device has it.
///
/// It counts what is in flight, and can be shut: then it is busy, and the device tries again later. A hold counts until it is released,
/// and until then nothing but another hold is refused: what stops or pauses the device waits for the end of what is done under it.
pub struct CountedHandle {
    inner: Box<dyn Handle>,
    state: Arc<OperationCounts>,
    counters: Arc<QueueCounters>,
    /// What each operation in flight moves, by its tag.
    moving: Vec<(Tag, u64)>,
    /// Holds that were asked for, and have neither failed nor been released.
    holds: Vec<Tag>,
    flush: Flush,
    /// The image was busy the last time: it knows when to try again, also where nothing is in flight.
    refused: bool,
}

/// A flush of our own, which the device does not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    None,
    Begun,
    Ended(bool),
}

/// Its tag. Devices count slots from 0 on.
const OURS: Tag = Tag { slot: u16::MAX, generation: 0 };

/// Of all ports of a device.
#[derive(Debug)]
pub(super) struct OperationCounts {
    shut: AtomicBool,
    /// Operations that have begun, and that have ended, wrapping.
    begun: AtomicU32,
    ended: AtomicU32,
    /// When the thread is to take no more requests in its present turn, in ns from `origin` on; `u64::MAX` for never.
    turn_until: AtomicU64,
    /// It has taken one in this turn, and has refused one because of the time.
    taken: AtomicBool,
    put_off: AtomicBool,
    origin: Instant,
}

impl Default for OperationCounts {
    fn default() -> Self {
        Self {
            shut: AtomicBool::new(false),
            begun: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            turn_until: AtomicU64::new(u64::MAX),
            taken: AtomicBool::new(false),
            put_off: AtomicBool::new(false),
            origin: Instant::now(),
        }
    }
}

impl OperationCounts {
    pub(super) fn set_shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::Relaxed);
    }

    /// A turn of the thread begins, which takes requests for no longer than `time`, if that is given, but always takes one.
    pub(super) fn begin_turn(&self, time: Option<Duration>) {
        let until = time.map_or(u64::MAX, |time| nanoseconds(self.origin.elapsed() + time));
        self.turn_until.store(until, Ordering::Relaxed);
        self.taken.store(false, Ordering::Relaxed);
        self.put_off.store(false, Ordering::Relaxed);
    }

    /// Whether a request was put off that the next turn takes.
    pub(super) fn has_put_off(&self) -> bool {
        self.put_off.load(Ordering::Relaxed)
    }

    fn is_turn_over(&self) -> bool {
        let until = self.turn_until.load(Ordering::Relaxed);
        let over = until != u64::MAX
            && self.taken.load(Ordering::Relaxed)
            && nanoseconds(self.origin.elapsed()) >= until;
        if over {
            self.put_off.store(true, Ordering::Relaxed);
        }
        over
    }

    pub(super) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Relaxed)
    }

    /// Operations of all ports in flight.
    pub(super) fn in_flight(&self) -> u32 {
        let Requests { begun, ended } = self.requests();
        begun.wrapping_sub(ended)
    }

    /// Operations of all ports so far.
    pub(super) fn requests(&self) -> Requests {
        Requests { begun: self.begun.load(Ordering::Relaxed), ended: self.ended.load(Ordering::Relaxed) }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One thread has all ports.
fn count(counter: &AtomicU32) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl CountedHandle {
    pub(super) fn new(
        inner: Box<dyn Handle>,
        state: Arc<OperationCounts>,
        counters: Arc<QueueCounters>,
    ) -> Self {
        Self {
            inner,
            state,
            counters,
            moving: Vec::with_capacity(64),
            holds: Vec::new(),
            flush: Flush::None,
            refused: false,
        }
    }

    /// Begins a flush of the image. Nothing of this port is in flight. False if the image is busy.
    pub(super) fn begin_flush(&mut self, memory: &MappedMemory) -> bool {
        let Ok(submission) = self.inner.submit(memory, OURS, Op::Flush, &[]) else { return false };
        self.flush = match submission.done() {
            None => Flush::Begun,
            Some(result) => Flush::Ended(result.is_ok()),
        };
        true
    }

    /// How that flush ended, once it has.
    pub(super) fn take_flushed(&mut self, memory: &MappedMemory) -> Option<bool> {
        if self.flush == Flush::Begun && self.counters.in_flight.get() == 0 {
            // There is no other that the device could miss.
            let _ = self.poll(memory);
        }
        let Flush::Ended(well) = self.flush else { return None };
        self.flush = Flush::None;
        Some(well)
    }

    /// Has an idle image look at what it is now: one that is resized says so when it is polled.
    pub(super) fn refresh(&mut self, memory: &MappedMemory) {
        if self.counters.in_flight.get() == 0 && self.flush == Flush::None {
            // There is no completion to be missed.
            let _ = self.inner.poll(memory);
        }
    }

    fn count(&self, op: Op) {
        let counters = &self.counters;
        match op {
            Op::Read { .. } => counters.reads.add(1),
            Op::Write { .. } => counters.writes.add(1),
            Op::Flush => counters.flushes.add(1),
            Op::WriteZeroes { .. } | Op::Discard { .. } => counters.ranges.add(1),
            Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {}
        }
    }
}

impl CountedHandle {
    fn ended(&mut self, tag: Tag, result: Result<(), IoError>) {
        if let Some(at) = self.holds.iter().position(|hold| *hold == tag) {
            if result.is_ok() {
                return;
            }
            self.holds.swap_remove(at);
        }
        count(&self.state.ended);
        let in_flight = &self.counters.in_flight;
        in_flight.set(in_flight.get().saturating_sub(1));
        let read = self.moving.iter().position(|(moving, _)| *moving == tag);
        let bytes = read.map_or(0, |at| self.moving.swap_remove(at).1);
        match result {
            Ok(()) => self.counters.read_bytes.add(bytes),
            Err(_) => self.counters.errors.add(1),
        }
    }
}

impl Storage<MappedMemory> for CountedHandle {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let in_group = !self.holds.is_empty() && !matches!(op, Op::Hold { .. });
        if !in_group && (self.state.is_shut() || self.state.is_turn_over()) {
            return Err(Busy);
        }
        let submitted = self.inner.submit(memory, tag, op, segments);
        self.refused = submitted.is_err();
        let submission = submitted?;
        self.count(op);
        let bytes = total_bytes(segments).unwrap_or(0);
        match op {
            Op::Write { .. } => self.counters.written_bytes.add(bytes),
            Op::Read { .. } => self.moving.push((tag, bytes)),
            Op::Hold { .. } => self.holds.push(tag),
            _ => {}
        }
        self.counters.in_flight.add(1);
        self.state.taken.store(true, Ordering::Relaxed);
        count(&self.state.begun);
        if let Submission::Done(result) = submission {
            self.ended(tag, result);
        }
        Ok(submission)
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        let mut completion = self.inner.poll(memory)?;
        if completion.tag == OURS {
            self.flush = Flush::Ended(completion.result.is_ok());
            completion = self.inner.poll(memory)?;
        }
        self.ended(completion.tag, completion.result);
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.inner.staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.inner.release_hold(slot);
        if let Some(at) = self.holds.iter().position(|hold| hold.slot == slot) {
            let hold = self.holds.swap_remove(at);
            self.ended(hold, Ok(()));
        }
    }

    /// Never: what is in flight is waited for, and counted.
    fn cancel_in_flight(&mut self) -> bool {
        false
    }
}

impl Handle for CountedHandle {
    fn arm(&mut self) -> bool {
        let idle = self.counters.in_flight.get() == 0 && self.flush != Flush::Begun && !self.refused;
        idle || self.inner.arm()
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inner.wake_fd()
    }

    fn begin_turn(&mut self) {
        self.inner.begin_turn();
    }

    fn drain(&mut self, on: bool) {
        self.inner.drain(on);
    }
}

#[cfg(test)]
mod tests {
    use blk_core::storage::CacheMode;
    use blk_core::units::Extent;

    use super::*;
    use crate::backend::{FileBackend, FileOptions};

    #[test]
    fn a_turn_that_is_over_takes_one_request_and_says_that_there_are_more() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let backend = FileBackend::open(file.path(), &FileOptions::new(CacheMode::WriteBack)).unwrap();
        let state = Arc::new(OperationCounts::default());
        let mut handles = [(); 2].map(|()| {
            let inner = Box::new(backend.handle().unwrap());
            CountedHandle::new(inner, Arc::clone(&state), Arc::default())
        });
        let memory = MappedMemory::default();
        let mut slots = 0..;
        let mut flush = |port: usize| {
            let tag = Tag { slot: slots.next().unwrap(), generation: 0 };
            handles[port].submit(&memory, tag, Op::Flush, &[])
        };
        // However long the first one took to be found.
        state.begin_turn(Some(Duration::ZERO));
        assert_eq!([flush(0), flush(0), flush(1)], [Ok(Submission::Pending), Err(Busy), Err(Busy)]);
        assert!(state.has_put_off());
        state.begin_turn(Some(Duration::from_secs(1000)));
        assert_eq!([flush(0), flush(1)], [Ok(Submission::Pending); 2]);
        assert!(!state.has_put_off());
        state.begin_turn(None);
        assert_eq!([flush(0), flush(1)], [Ok(Submission::Pending); 2]);
        assert_eq!(state.in_flight(), 5);
    }

    #[test]
    fn a_hold_is_in_flight_until_it_is_released_and_what_is_done_under_it_is_not_shut_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let backend = FileBackend::open(file.path(), &FileOptions::new(CacheMode::WriteBack)).unwrap();
        let state = Arc::new(OperationCounts::default());
        let inner = Box::new(backend.handle().unwrap());
        let mut handle = CountedHandle::new(inner, Arc::clone(&state), Arc::default());
        let memory = MappedMemory::default();
        let hold = Op::Hold { extent: Extent::new(0, 1) };
        let zeroes = Op::WriteZeroes { extent: Extent::new(0, 1), may_unmap: false };
        let run = |handle: &mut CountedHandle, slot, op| {
            let submitted = handle.submit(&memory, Tag { slot, generation: 0 }, op, &[]);
            submitted.map(|_| {
                let deadline = Instant::now() + Duration::from_secs(10);
                while handle.poll(&memory).is_none() {
                    assert!(Instant::now() < deadline, "no completion");
                }
            })
        };
        run(&mut handle, 0, hold).unwrap();
        assert_eq!(state.in_flight(), 1);
        state.set_shut(true);
        run(&mut handle, 1, zeroes).unwrap();
        assert_eq!(run(&mut handle, 1, hold), Err(Busy), "or it would never come to rest");
        handle.release_hold(1);
        assert_eq!(state.in_flight(), 1);
        handle.release_hold(0);
        assert_eq!((state.in_flight(), run(&mut handle, 1, zeroes)), (0, Err(Busy)));
        state.set_shut(false);
        // One that fails is none.
        run(&mut handle, 0, Op::Hold { extent: Extent::new(8, 1) }).unwrap();
        assert_eq!(state.in_flight(), 0);
    }
}
