//! A queue's handle that records.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::Tag;

use super::buffers::{Buffer, Buffers};
use super::split::PIECE_BYTES;
use super::writer::Writer;
use crate::backend::{Budget, Charge, Handle};
use crate::memory::MappedMemory;

/// Most bytes that a handle copies and records in a turn of its thread: meanwhile nothing else of the device goes on. One write it
/// always takes.
const TURN_BYTES_MAX: u64 = PIECE_BYTES;
/// What the room for a write's data keeps from one write to the next.
const DATA_BYTES_KEPT: usize = 1024 * 1024;

pub(super) struct RecordedHandle {
    inner: Box<dyn Handle>,
    writer: Arc<Writer>,
    /// Its number in the recording.
    number: u32,
    in_flight: HashMap<Tag, InFlight>,
    buffers: Buffers,
    /// The host was busy, and nothing has completed since: it is not asked, and nothing recorded, again.
    full: bool,
    /// What the writes in flight, of all handles, have of memory.
    memory: Arc<Budget>,
    /// Bytes recorded in this turn.
    recorded: u64,
    /// A write was put off until the next turn.
    put_off: bool,
    /// The thread says where its turns begin.
    turns: bool,
    /// A write's data on its way from the guest to the recording and the host.
    data: Vec<u8>,
}

struct InFlight {
    op: Op,
    /// The sequence number of its submission.
    submission: u64,
    /// A write's data.
    buffer: Option<Buffer>,
    /// A write came from the staging buffer of this slot, which stays closed until it has ended.
    staged: Option<u16>,
}

impl RecordedHandle {
    pub(super) fn new(inner: Box<dyn Handle>, writer: Arc<Writer>, memory: Arc<Budget>, number: u32) -> Self {
        Self {
            inner,
            writer,
            number,
            in_flight: HashMap::new(),
            buffers: Buffers::default(),
            full: false,
            memory,
            recorded: 0,
            put_off: false,
            turns: false,
            data: Vec::new(),
        }
    }

    /// Copies the data of a write, once. A guest that changes it meanwhile changes neither what is recorded nor what is
    /// written.
    fn gather(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<(), IoErrorKind> {
        self.data.clear();
        let Op::Write { extent, .. } = op else { return Ok(()) };
        let info = self.inner.info();
        let bytes = extent.bytes().filter(|&bytes| bytes <= u64::from(info.transfer_max_bytes));
        if total_bytes(segments) != bytes || segments.len() > usize::from(info.segments_max) {
            return Err(IoErrorKind::OutOfRange);
        }
        for segment in segments {
            let (start, len) = (self.data.len(), segment.len() as usize);
            match *segment {
                Segment::Guest { addr, .. } => {
                    self.data.resize(start + len, 0);
                    memory.read(addr, &mut self.data[start..]).map_err(|_| IoErrorKind::Memory)?;
                }
                Segment::Staging { offset, .. } => {
                    let staging = self.inner.staging(tag.slot);
                    let piece = staging.get(offset as usize..).and_then(|rest| rest.get(..len));
                    self.data.extend_from_slice(piece.ok_or(IoErrorKind::Memory)?);
                }
            }
        }
        Ok(())
    }

    /// Takes memory for the data of a write. `None` if it has to wait for another of this handle.
    fn take_memory(&mut self, bytes: u64) -> Option<Charge> {
        // Others may have it all, whose completions do not wake this handle: one write of each goes beyond.
        let charge = Charge::take(&self.memory, bytes, self.in_flight.is_empty());
        self.full |= charge.is_none();
        charge
    }

    /// Records an operation, and gives it to the host.
    fn record(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
        charge: Charge,
    ) -> Result<Submission, Busy> {
        if let Err(kind) = self.gather(memory, tag, op, segments) {
            return Ok(refused(op, kind));
        }
        let buffer = match self.data.as_slice() {
            [] => None,
            data => match self.buffers.holding(data, charge) {
                Ok(buffer) => Some(buffer),
                Err(_) if self.in_flight.is_empty() => {
                    return Ok(refused(op, IoErrorKind::Medium));
                }
                // No memory now; there is more once something has ended.
                Err(_) => return Err(Busy),
            },
        };
        // Recorded before the host has it: a flush covers what was recorded as complete before it.
        let Ok(submission) = self.writer.submit(self.number, op, &self.data) else {
            // A recording that misses an operation is worth nothing: what it would miss is not done.
            if let Op::Read { .. } = op {
                return self.inner.submit(memory, tag, op, segments);
            }
            return Ok(refused(op, IoErrorKind::Medium));
        };
        let result = match &buffer {
            Some(buffer) => self.inner.submit(buffer.memory(), tag, op, &[buffer.segment()]),
            None => self.inner.submit(memory, tag, op, segments),
        };
        let staged = segments.iter().any(|segment| matches!(segment, Segment::Staging { .. }));
        let staged = (staged && buffer.is_some()).then_some(tag.slot);
        let pending = InFlight { op, submission, buffer, staged };
        match result {
            Ok(Submission::Pending) => {
                self.in_flight.insert(tag, pending);
                Ok(Submission::Pending)
            }
            Ok(Submission::Done(result)) => Ok(Submission::Done(self.ended(pending, result))),
            Err(Busy) => {
                self.full = true;
                if let Some(buffer) = pending.buffer {
                    self.buffers.give_back(buffer);
                }
                // If it cannot be recorded, that is found out by the next operation.
                let _ = self.writer.withdrawn(self.number, submission);
                Err(Busy)
            }
        }
    }

    /// An operation that the host had has ended. Returns how, for the guest.
    fn ended(&mut self, pending: InFlight, result: Result<(), IoError>) -> Result<(), IoError> {
        let InFlight { op, submission, buffer, .. } = pending;
        if let Some(buffer) = buffer {
            self.buffers.give_back(buffer);
        }
        // Recorded before the guest can hear of it.
        let recorded = self.writer.complete(self.number, op, submission, result);
        if recorded.is_err() && !matches!(op, Op::Read { .. }) && result.is_ok() {
            return Err(IoErrorKind::Medium.into());
        }
        result
    }
}

impl Storage<MappedMemory> for RecordedHandle {
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
        // Holds change nothing, and records lie outside of the image that is recorded.
        if matches!(op, Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. }) {
            return self.inner.submit(memory, tag, op, segments);
        }
        if self.full && !self.in_flight.is_empty() {
            return Err(Busy);
        }
        // More than the host takes is refused.
        let bytes = written_bytes(op).min(self.inner.info().transfer_max_bytes.into());
        if self.recorded != 0 && self.recorded.saturating_add(bytes) > TURN_BYTES_MAX {
            self.put_off = true;
            return Err(Busy);
        }
        let Some(charge) = self.take_memory(bytes) else { return Err(Busy) };
        self.recorded += bytes;
        let result = self.record(memory, tag, op, segments, charge);
        self.data.clear();
        self.data.shrink_to(DATA_BYTES_KEPT);
        result
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        let Some(mut completion) = self.inner.poll(memory) else {
            if !self.turns {
                // What was put off may be submitted again before the next poll that finds nothing.
                self.put_off &= std::mem::take(&mut self.recorded) != 0;
            }
            return None;
        };
        self.full = false;
        if let Some(pending) = self.in_flight.remove(&completion.tag) {
            completion.result = self.ended(pending, completion.result);
        }
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        if self.in_flight.values().any(|pending| pending.staged == Some(slot)) {
            return &mut [];
        }
        self.inner.staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.inner.release_hold(slot);
    }

    fn cancel_in_flight(&mut self) -> bool {
        if !self.inner.cancel_in_flight() {
            return false;
        }
        for pending in self.in_flight.drain().filter_map(|(_, pending)| pending.buffer) {
            self.buffers.give_back(pending);
        }
        self.full = false;
        // If it cannot be recorded, what was in flight counts as in flight for ever, which allows more, never less.
        let _ = self.writer.fence(self.number);
        true
    }
}

impl Handle for RecordedHandle {
    fn arm(&mut self) -> bool {
        !self.put_off && self.inner.arm()
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inner.wake_fd()
    }

    fn begin_turn(&mut self) {
        self.turns = true;
        (self.recorded, self.put_off) = (0, false);
        self.inner.begin_turn();
    }

    fn drain(&mut self, on: bool) {
        self.inner.drain(on);
    }
}

/// An operation that the host does not get has ended.
fn refused(op: Op, kind: IoErrorKind) -> Submission {
    let lba = op.extent().map(|extent| extent.start);
    Submission::Done(Err(IoError { kind, lba }))
}

/// Bytes that a write brings.
fn written_bytes(op: Op) -> u64 {
    match op {
        Op::Write { extent, .. } => extent.bytes().unwrap_or(u64::MAX),
        _ => 0,
    }
}
