//! Error policy: a request that the host failed is reported to the guest, or held until an operator has made room.
//!
//! [`ErrorPolicyBackend`] is a [`Backend`] over a backend. What it holds stays in flight for the device above it, so that no guest
//! sees an error or a success before there is one.
//!
//! ```text
//! failed, may be tried again, policy says so -> held; the failure is told, and whoever listens pauses the device
//!     HeldRequests::retry() -> submitted again at the next poll of its handle
//!     Handle::drain(true)   -> ends with its error: a reset, a stopped ring, a client that is gone, the end of the server
//! ```
//!
//! **Never tried again**, whatever the policy: holds, which fail by no fault of the host, records, which no guest's disk needs, flushes, FUA writes, writes on a write-through image, and everything once the
//! image has latched. The kernel reports a lost write once, so that a flush that succeeds afterwards proves nothing. ENOSPC
//! is no exception there: a write that has to be stable gets it for want of space of its own, before anything is lost, but also
//! for an earlier write whose space write-back did not find, and nothing tells the one from the other.

mod held_requests;

use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::Tag;
use serde::{Deserialize, Serialize};

use super::meter::{Meter, Meters};
use crate::backend::{Backend, Counts, Handle, LatchCause, OpenError};
use crate::memory::MappedMemory;

pub use held_requests::{Failure, HeldRequests};

/// What is done about one kind of failed request: the leading emulator's `rerror` and `werror`, without `ignore`, which
/// would lie to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest is told.
    Report,
    /// The request is held and the device paused, until an operator resumes it.
    Stop,
    /// As `Stop` if the host is out of space, else as `Report`.
    Enospc,
}

impl OnError {
    /// Whether a request that failed like this is held. Only failures of the medium and of space can go away by themselves or
    /// by an operator's hand.
    const fn holds(self, kind: IoErrorKind) -> bool {
        match kind {
            IoErrorKind::NoSpace => !matches!(self, Self::Report),
            IoErrorKind::Medium => matches!(self, Self::Stop),
            _ => false,
        }
    }
}

impl FromStr for OnError {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "report" => Ok(Self::Report),
            "stop" => Ok(Self::Stop),
            "enospc" => Ok(Self::Enospc),
            _ => Err("give report, stop or enospc".into()),
        }
    }
}

/// The error policy of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorPolicy {
    /// For reads.
    pub read: OnError,
    /// For writes, write-zeroes and discards.
    pub write: OnError,
}

impl Default for ErrorPolicy {
    /// QEMU's: reads report, writes stop when space runs out.
    fn default() -> Self {
        Self { read: OnError::Report, write: OnError::Enospc }
    }
}

/// An image under an error policy, measured.
pub struct ErrorPolicyBackend {
    inner: Arc<dyn Backend>,
    policy: ErrorPolicy,
    held_requests: Arc<HeldRequests>,
    name: Arc<str>,
    meters: Arc<Meters>,
}

impl ErrorPolicyBackend {
    /// Puts a policy over an image. `name` is what failures call it.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Backend>,
        policy: ErrorPolicy,
        held_requests: Arc<HeldRequests>,
        name: &str,
    ) -> Self {
        Self { inner, policy, held_requests, name: name.into(), meters: Arc::default() }
    }

    /// What its handles have done, those that are gone included.
    #[must_use]
    pub fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }
}

impl Backend for ErrorPolicyBackend {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        Ok(Box::new(PolicedHandle {
            inner: self.inner.handle()?,
            backend: Arc::clone(&self.inner),
            policy: self.policy,
            held_requests: Arc::clone(&self.held_requests),
            name: Arc::clone(&self.name),
            meter: self.meters.enter(),
            meters: Arc::clone(&self.meters),
            slots: (0..SLOTS).map(|_| Slot::new()).collect(),
            held: 0,
            ended: Vec::with_capacity(SLOTS),
            epoch: self.held_requests.epoch(),
            stalled: false,
            draining: false,
        }))
    }

    fn info(&self) -> Info {
        self.inner.info()
    }

    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        self.inner.resize(bytes)
    }

    fn counts(&self) -> Counts {
        self.inner.counts()
    }

    fn latched(&self) -> Option<LatchCause> {
        self.inner.latched()
    }

    fn latch(&self, cause: LatchCause) {
        self.inner.latch(cause);
    }

    fn set_client_latch(&self, cause: Option<LatchCause>) {
        self.inner.set_client_latch(cause);
    }
}

/// As many as a sequencer has. An operation beyond is served, and reported if it fails.
const SLOTS: usize = 128;

/// The operation that the device has in flight under a slot number.
struct Slot {
    state: State,
    tag: Tag,
    op: Op,
    /// Where the submission began, to be measured.
    since: Instant,
    /// Guest addresses and staging offsets, so that they are looked up afresh when the operation is tried again. The list
    /// is allocated once, and grows at most to what one operation may have.
    segments: Vec<Segment>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    InFlight,
    Held(IoError),
}

impl Slot {
    fn new() -> Self {
        let tag = Tag { slot: 0, generation: 0 };
        // One request of 128 KiB in pages, headers aside; longer lists grow theirs once.
        let segments = Vec::with_capacity(32);
        Self { state: State::Free, tag, op: Op::Flush, since: Instant::now(), segments }
    }
}

struct PolicedHandle {
    inner: Box<dyn Handle>,
    backend: Arc<dyn Backend>,
    policy: ErrorPolicy,
    held_requests: Arc<HeldRequests>,
    name: Arc<str>,
    meter: Arc<Meter>,
    meters: Arc<Meters>,
    slots: Box<[Slot]>,
    /// How many slots are `Held`.
    held: u32,
    /// Held requests that end with their error.
    ended: Vec<Completion>,
    /// The epoch in which held requests were last let go.
    epoch: u32,
    /// The storage was too busy to take all of those.
    stalled: bool,
    /// See [`Handle::drain`].
    draining: bool,
}

impl PolicedHandle {
    /// Whether the policy may ask for another try of such an operation.
    fn may_hold(&self, op: Op) -> bool {
        let policy = match op {
            Op::Flush
            | Op::Write { fua: true, .. }
            | Op::Hold { .. }
            | Op::LoadState { .. }
            | Op::StoreState { .. } => return false,
            Op::Write { .. } if self.inner.info().cache == Cache::WriteThrough => return false,
            Op::Read { .. } => self.policy.read,
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard { .. } => self.policy.write,
        };
        policy != OnError::Report
    }

    fn holds(&self, op: Op, kind: IoErrorKind) -> bool {
        let policy = if matches!(op, Op::Read { .. }) { self.policy.read } else { self.policy.write };
        let ending = self.draining || self.held_requests.is_ending();
        // A read proves nothing about stable data, and may be tried again on a latched image.
        let latched = op.mutates() && self.backend.latched().is_some();
        policy.holds(kind) && self.may_hold(op) && !ending && !latched
    }

    /// A completion of the storage: what the device is told, or nothing if the request is held.
    #[inline]
    fn filter(&mut self, completion: Completion) -> Option<Completion> {
        let slot = self.slots.get_mut(usize::from(completion.tag.slot));
        let Some(slot) = slot.filter(|slot| slot.state == State::InFlight && slot.tag == completion.tag)
        else {
            return Some(completion);
        };
        slot.state = State::Free;
        self.meter.end(&slot.op, slot.since, completion.result.is_ok());
        match completion.result {
            Ok(()) => Some(completion),
            Err(error) => self.failed(completion, error),
        }
    }

    #[cold]
    fn failed(&mut self, completion: Completion, error: IoError) -> Option<Completion> {
        let op = self.slots.get(usize::from(completion.tag.slot))?.op;
        let held = self.holds(op, error.kind);
        if held && let Some(slot) = self.slots.get_mut(usize::from(completion.tag.slot)) {
            slot.state = State::Held(error);
            self.held += 1;
            // Before it is told of, so that whoever is told finds it held.
            self.held_requests.hold();
        }
        self.held_requests.tell(Failure {
            image: self.name.to_string(),
            operation: operation(&op).into(),
            lba: error.lba.or(op.extent().map(|extent| extent.start)).map(|lba| lba.0),
            error: describe(error.kind).into(),
            held,
        });
        (!held).then_some(completion)
    }

    /// Whether held requests are to be let go.
    fn is_due(&self) -> bool {
        self.held != 0 && (self.draining || self.epoch != self.held_requests.epoch())
    }

    /// Lets held requests go: to the storage again, or back to the device where nothing is held any more.
    #[cold]
    fn let_go(&mut self, memory: &MappedMemory) {
        self.epoch = self.held_requests.epoch();
        self.stalled = false;
        let end = self.draining || self.held_requests.is_ending();
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            let State::Held(error) = slot.state else { continue };
            let tag = slot.tag;
            let result = if end {
                slot.state = State::Free;
                Some(Err(error))
            } else {
                slot.since = Instant::now();
                let Ok(submission) = self.inner.submit(memory, tag, slot.op, &slot.segments) else {
                    // Something else is in flight: its completion wakes the poller.
                    self.stalled = true;
                    return;
                };
                slot.state = State::InFlight;
                self.meter.retry();
                submission.done()
            };
            self.held -= 1;
            self.held_requests.let_go(1);
            if let Some(result) = result {
                let ended = self.filter(Completion { tag, result });
                self.ended.extend(ended);
            }
        }
    }
}

impl Storage<MappedMemory> for PolicedHandle {
    fn info(&self) -> &Info {
        self.inner.info()
    }

    #[inline]
    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let keep = self.may_hold(op);
        let since = Instant::now();
        let submission = self.inner.submit(memory, tag, op, segments)?;
        // A slot number in use twice is served all the same: its first owner keeps the record.
        if let Some(slot) = self.slots.get_mut(usize::from(tag.slot))
            && slot.state == State::Free
        {
            (slot.state, slot.tag, slot.op, slot.since) = (State::InFlight, tag, op, since);
            slot.segments.clear();
            if keep {
                slot.segments.extend_from_slice(segments);
            }
        }
        let Submission::Done(result) = submission else { return Ok(Submission::Pending) };
        let told = self.filter(Completion { tag, result });
        Ok(told.map_or(Submission::Pending, |told| Submission::Done(told.result)))
    }

    #[inline]
    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        if self.is_due() || self.stalled {
            self.let_go(memory);
        }
        if let Some(completion) = self.ended.pop() {
            return Some(completion);
        }
        // Bounded: what is held is not in flight below any more.
        while let Some(completion) = self.inner.poll(memory) {
            if let Some(completion) = self.filter(completion) {
                return Some(completion);
            }
        }
        None
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        match self.slots.get(usize::from(slot)).map(|slot| slot.state) {
            // The buffer is wanted for the next try.
            Some(State::Held(_)) => &mut [],
            _ => self.inner.staging(slot),
        }
    }

    fn release_hold(&mut self, slot: u16) {
        self.inner.release_hold(slot);
    }

    fn cancel_in_flight(&mut self) -> bool {
        let cancelled = self.inner.cancel_in_flight();
        if cancelled {
            self.slots.iter_mut().for_each(|slot| slot.state = State::Free);
            self.ended.clear();
            self.held_requests.let_go(std::mem::take(&mut self.held));
            self.stalled = false;
        }
        cancelled
    }
}

impl Handle for PolicedHandle {
    fn arm(&mut self) -> bool {
        self.ended.is_empty() && !self.is_due() && self.inner.arm()
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.inner.wake_fd()
    }

    fn begin_turn(&mut self) {
        self.inner.begin_turn();
    }

    fn drain(&mut self, on: bool) {
        self.draining = on;
        self.inner.drain(on);
    }
}

impl Drop for PolicedHandle {
    fn drop(&mut self) {
        self.held_requests.let_go(self.held);
        self.meters.leave(&self.meter);
    }
}

const fn operation(op: &Op) -> &'static str {
    match op {
        Op::Read { .. } => "read",
        Op::Write { .. } => "write",
        Op::WriteZeroes { .. } => "write-zeroes",
        Op::Discard { .. } => "discard",
        Op::Flush => "flush",
        Op::Hold { .. } => "hold",
        Op::LoadState { .. } => "load-state",
        Op::StoreState { .. } => "store-state",
    }
}

const fn describe(kind: IoErrorKind) -> &'static str {
    match kind {
        IoErrorKind::Medium => "input/output error",
        IoErrorKind::NoSpace => "no space left",
        IoErrorKind::ReadOnly => "read-only",
        IoErrorKind::OutOfRange => "beyond the end",
        IoErrorKind::Memory => "not guest memory",
        IoErrorKind::Latched => "an earlier flush or stable write failed",
        IoErrorKind::Unsupported => "not supported",
        IoErrorKind::Absent => "no disk",
    }
}

#[cfg(test)]
mod tests;
