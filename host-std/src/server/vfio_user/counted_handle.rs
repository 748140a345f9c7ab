//! The device's way to an image: a handle that counts what is in flight, and takes nothing while it is shut.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, Completion, Info, Storage};
use blk_core::units::Tag;

use super::moderation::Requests;
use crate::backend::Handle;
use crate::memory::MappedMemory;
use crate::server::stats::QueueCounters;

/// A handle to an image, as a PCI device has it.
///
/// It counts what is in flight, and can be shut: then it is busy, and the device tries again later.
pub struct CountedHandle {
    inner: Box<dyn Handle>,
    state: Arc<OperationCounts>,
    counters: Arc<QueueCounters>,
    /// What each operation in flight moves, by its tag.
    moving: Vec<(Tag, u64)>,
    flush: Flush,
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
#[derive(Debug, Default)]
pub(super) struct OperationCounts {
    shut: AtomicBool,
    /// Operations that have begun, and that have ended, wrapping.
    begun: AtomicU32,
    ended: AtomicU32,
}

impl OperationCounts {
    pub(super) fn set_shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::Relaxed);
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
        Self { inner, state, counters, moving: Vec::with_capacity(64), flush: Flush::None }
    }

    /// Begins a flush of the image. Nothing of this port is in flight. False if the image is busy.
    pub(super) fn begin_flush(&mut self, memory: &MappedMemory) -> bool {
        let begun = self.inner.submit(memory, OURS, Op::Flush, &[]).is_ok();
        if begun {
            self.flush = Flush::Begun;
        }
        begun
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
        }
    }
}

impl Storage<MappedMemory> for CountedHandle {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    fn submit(&mut self, memory: &MappedMemory, tag: Tag, op: Op, segments: &[Segment]) -> Result<(), Busy> {
        if self.state.is_shut() {
            return Err(Busy);
        }
        self.inner.submit(memory, tag, op, segments)?;
        self.count(op);
        let bytes = total_bytes(segments).unwrap_or(0);
        match op {
            Op::Write { .. } => self.counters.written_bytes.add(bytes),
            Op::Read { .. } => self.moving.push((tag, bytes)),
            _ => {}
        }
        self.counters.in_flight.add(1);
        count(&self.state.begun);
        Ok(())
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        let mut completion = self.inner.poll(memory)?;
        if completion.tag == OURS {
            self.flush = Flush::Ended(completion.result.is_ok());
            completion = self.inner.poll(memory)?;
        }
        count(&self.state.ended);
        let in_flight = &self.counters.in_flight;
        in_flight.set(in_flight.get().saturating_sub(1));
        let read = self.moving.iter().position(|(tag, _)| *tag == completion.tag);
        let bytes = read.map_or(0, |at| self.moving.swap_remove(at).1);
        match completion.result {
            Ok(()) => self.counters.read_bytes.add(bytes),
            Err(_) => self.counters.errors.add(1),
        }
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.inner.staging(slot)
    }

    /// Never: what is in flight is waited for, and counted.
    fn fence(&mut self) -> bool {
        false
    }
}

impl Handle for CountedHandle {
    fn arm(&mut self) -> bool {
        let idle = self.counters.in_flight.get() == 0 && self.flush != Flush::Begun;
        idle || self.inner.arm()
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inner.wake_fd()
    }

    fn drain(&mut self, on: bool) {
        self.inner.drain(on);
    }
}
