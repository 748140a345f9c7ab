//! A backend that fails when it is told to, for tests of everything above it.
//!
//! A [`Plan`] says which operations fail or take long. It is written as one line, its items separated by `;`:
//!
//! ```text
//! OPERATION[@WHICH]:EFFECT       seed=NUMBER
//!
//! OPERATION  read, write, zeroes, discard, flush, state (a record beside the image), any
//! WHICH      3 (the third of its kind, on all handles), 3+ (from the third on), 3-5, 2% (each with this probability);
//!            by default each
//! EFFECT     eio, enospc, or a duration by which its completion is held back: 20us, 500ms, 2s
//! ```
//!
//! `flush:500ms;write@1%:eio;seed=7` delays every flush and fails one write in a hundred. The same plan, with its seed, does the
//! same to the same operations; without a seed one is chosen, and logged.
//!
//! A hold is no operation of these: it is not counted, and never fails.
//!
//! An operation that fails is not given to the backend below. If it had to be durable, the backend latches, as it does when the
//! kernel fails such an operation.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::Tag;
use fastrand::Rng;
use rustix::io::Errno;

use crate::backend::{Backend, Counts, Durable, Handle, LatchCause, OpenError};
use crate::memory::MappedMemory;
use crate::timed_wake::TimedWake;

/// Plan of failures: which operation, and when. See the [module](self) for how it is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    rules: Vec<Rule>,
    seed: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rule {
    /// `None` for any.
    kind: Option<Kind>,
    which: Which,
    effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zeroes,
    Discard,
    Flush,
    State,
}

const KINDS: [(&str, Option<Kind>); 7] = [
    ("read", Some(Kind::Read)),
    ("write", Some(Kind::Write)),
    ("zeroes", Some(Kind::Zeroes)),
    ("discard", Some(Kind::Discard)),
    ("flush", Some(Kind::Flush)),
    ("state", Some(Kind::State)),
    ("any", None),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    /// From the one with this number, counted from 1, to the one with that.
    Numbers(u64, u64),
    /// Each with this probability, in percent.
    Percent(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Fail(IoErrorKind),
    Delay(Duration),
}

/// A plan that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("fault {item:?}: {why}; write for example flush:500ms;write@3:enospc;write@1%:eio;seed=7")]
pub struct PlanError {
    item: String,
    why: &'static str,
}

impl FromStr for Plan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let mut plan = Self { rules: Vec::new(), seed: None };
        for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
            let wrong = |why| PlanError { item: item.into(), why };
            if let Some(seed) = item.strip_prefix("seed=") {
                plan.seed = Some(seed.parse().map_err(|_| wrong("a seed is a number"))?);
            } else {
                plan.rules.push(rule(item).map_err(wrong)?);
            }
        }
        if plan.rules.is_empty() {
            return Err(PlanError { item: text.into(), why: "it says nothing of what is to fail" });
        }
        Ok(plan)
    }
}

fn rule(item: &str) -> Result<Rule, &'static str> {
    let (operation, effect) = item.split_once(':').ok_or("it has no effect after a colon")?;
    let (kind, which) = operation.split_once('@').unwrap_or((operation, "1+"));
    let kind = KINDS.iter().find(|(name, _)| *name == kind);
    let &(_, kind) = kind.ok_or("the operation is read, write, zeroes, discard, flush, state or any")?;
    let number = |text: &str| text.parse().ok().filter(|&n: &u64| n > 0).ok_or("a number counts from 1");
    let which = if let Some(percent) = which.strip_suffix('%') {
        let percent = percent.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
        Which::Percent(percent.ok_or("a probability is 0% to 100%")?)
    } else if let Some(from) = which.strip_suffix('+') {
        Which::Numbers(number(from)?, u64::MAX)
    } else if let Some((from, to)) = which.split_once('-') {
        Which::Numbers(number(from)?, number(to)?)
    } else {
        let only = number(which)?;
        Which::Numbers(only, only)
    };
    let effect = match effect {
        "eio" => Effect::Fail(IoErrorKind::Medium),
        "enospc" => Effect::Fail(IoErrorKind::NoSpace),
        duration => {
            Effect::Delay(delay(duration).ok_or("the effect is eio, enospc or a duration: 20us, 500ms, 2s")?)
        }
    };
    Ok(Rule { kind, which, effect })
}

fn delay(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number = number.parse().ok()?;
    match unit {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (rule, at) in self.rules.iter().zip(0..) {
            let name = KINDS.iter().find(|(_, kind)| *kind == rule.kind).map_or("any", |(name, _)| *name);
            write!(f, "{}{name}", if at == 0 { "" } else { ";" })?;
            match rule.which {
                Which::Numbers(1, u64::MAX) => {}
                Which::Numbers(from, u64::MAX) => write!(f, "@{from}+")?,
                Which::Numbers(from, to) if from == to => write!(f, "@{from}")?,
                Which::Numbers(from, to) => write!(f, "@{from}-{to}")?,
                Which::Percent(percent) => write!(f, "@{percent}%")?,
            }
            match rule.effect {
                Effect::Fail(IoErrorKind::NoSpace) => write!(f, ":enospc")?,
                Effect::Fail(_) => write!(f, ":eio")?,
                Effect::Delay(delay) => write!(f, ":{}us", delay.as_micros())?,
            }
        }
        self.seed.map_or(Ok(()), |seed| write!(f, ";seed={seed}"))
    }
}

/// A backend that fails by plan.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    shared: Arc<Mutex<FaultState>>,
    plan: Plan,
}

struct FaultState {
    rules: Vec<Rule>,
    /// Operations so far, by kind; the last counts all.
    seen: [u64; KINDS.len()],
    rng: Rng,
}

impl Faulty {
    /// Lets what goes to `inner` fail by `plan`. Chooses a seed, and logs it, if the plan has none.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, mut plan: Plan) -> Self {
        let seed = *plan.seed.get_or_insert_with(|| fastrand::u64(..));
        tracing::warn!(%plan, "faults are injected");
        let shared =
            FaultState { rules: plan.rules.clone(), seen: [0; KINDS.len()], rng: Rng::with_seed(seed) };
        Self { inner, shared: Arc::new(Mutex::new(shared)), plan }
    }

    /// The plan, with the seed that was chosen.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl Backend for Faulty {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        let inner = self.inner.handle()?;
        let wake = TimedWake::new(inner.wake_fd()).map_err(|errno| OpenError::System {
            path: "fault injection".into(),
            what: "make a handle",
            errno,
            remedy: "; raise the limit on open files",
        })?;
        let (backend, shared) = (Arc::clone(&self.inner), Arc::clone(&self.shared));
        let (delayed, held) = (HashMap::new(), Vec::new());
        Ok(Box::new(FaultyHandle { inner, backend, shared, delayed, held, wake }))
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

/// What becomes of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fate {
    error: Option<IoErrorKind>,
    delay: Duration,
}

impl FaultState {
    fn fate(&mut self, op: Op) -> Fate {
        let Some(kind) = kind(op) else { return Fate::default() };
        self.seen[kind as usize] += 1;
        self.seen[KINDS.len() - 1] += 1;
        let mut fate = Fate::default();
        for rule in self.rules.iter().filter(|rule| rule.kind.is_none_or(|of| of == kind)) {
            let number = self.seen[rule.kind.map_or(KINDS.len() - 1, |kind| kind as usize)];
            let hit = match rule.which {
                Which::Numbers(from, to) => (from..=to).contains(&number),
                Which::Percent(percent) => self.rng.f64() * 100.0 < percent,
            };
            match rule.effect {
                _ if !hit => {}
                Effect::Fail(error) => fate.error = Some(error),
                Effect::Delay(delay) => fate.delay += delay,
            }
        }
        fate
    }
}

const fn kind(op: Op) -> Option<Kind> {
    Some(match op {
        Op::Read { .. } => Kind::Read,
        Op::Write { .. } => Kind::Write,
        Op::WriteZeroes { .. } => Kind::Zeroes,
        Op::Discard { .. } => Kind::Discard,
        Op::Flush => Kind::Flush,
        Op::LoadState { .. } | Op::StoreState { .. } => Kind::State,
        Op::Hold { .. } => return None,
    })
}

struct FaultyHandle {
    inner: Box<dyn Handle>,
    backend: Arc<dyn Backend>,
    shared: Arc<Mutex<FaultState>>,
    /// In flight below, and when they may be seen to have ended.
    delayed: HashMap<Tag, Delayed>,
    /// Ended, and not to be seen before it is time.
    held: Vec<Held>,
    wake: TimedWake,
}

struct Delayed {
    due: Instant,
    staged: bool,
}

struct Held {
    due: Instant,
    completion: Completion,
    staged: bool,
}

impl FaultyHandle {
    fn fail(&self, op: Op, kind: IoErrorKind) -> IoError {
        let info = self.inner.info();
        let lba = op.extent().map(|extent| extent.start);
        let durable = match op {
            _ if info.cache == Cache::Unsafe => None,
            Op::Read { .. } | Op::LoadState { .. } | Op::Hold { .. } => None,
            Op::Flush => Some(Durable::Flush),
            Op::StoreState { .. } => Some(Durable::Record),
            Op::Write { fua, .. } => (fua || info.cache == Cache::WriteThrough).then_some(Durable::Write),
            Op::WriteZeroes { .. } | Op::Discard { .. } => info.range_stable.then_some(Durable::Write),
        };
        if let Some(what) = durable {
            let errno = if kind == IoErrorKind::NoSpace { Errno::NOSPC } else { Errno::IO };
            self.backend.latch(LatchCause { what, errno: Some(errno), lba });
        }
        IoError { kind, lba }
    }

    fn take_due(&mut self, now: Instant) -> Option<Completion> {
        let due = self.held.iter().position(|held| held.due <= now)?;
        Some(self.held.remove(due).completion)
    }
}

impl Storage<MappedMemory> for FaultyHandle {
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
        // A latched backend refuses without a fault of ours, and a busy one has not seen the operation: neither is counted.
        let latched = self.backend.latched().is_some() && op.fails_when_latched();
        if latched {
            return self.inner.submit(memory, tag, op, segments);
        }
        let shared = Arc::clone(&self.shared);
        // Held until the operation is below: the numbers are those of the order in which operations get there.
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let before = (shared.seen, shared.rng.clone());
        let fate = shared.fate(op);
        let due = Instant::now() + fate.delay;
        let staged = segments.iter().any(|segment| matches!(segment, Segment::Staging { .. }));
        if let Some(kind) = fate.error {
            let result = Err(self.fail(op, kind));
            self.held.push(Held { due, completion: Completion { tag, result }, staged });
            return Ok(Submission::Pending);
        }
        match self.inner.submit(memory, tag, op, segments) {
            Err(Busy) => {
                (shared.seen, shared.rng) = before;
                Err(Busy)
            }
            Ok(submission) if fate.delay.is_zero() => Ok(submission),
            Ok(Submission::Pending) => {
                self.delayed.insert(tag, Delayed { due, staged });
                Ok(Submission::Pending)
            }
            Ok(Submission::Done(result)) => {
                self.held.push(Held { due, completion: Completion { tag, result }, staged });
                Ok(Submission::Pending)
            }
        }
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        let now = Instant::now();
        if let Some(completion) = self.take_due(now) {
            return Some(completion);
        }
        loop {
            let completion = self.inner.poll(memory)?;
            match self.delayed.remove(&completion.tag) {
                Some(Delayed { due, staged }) if due > now => {
                    self.held.push(Held { due, completion, staged });
                }
                _ => return Some(completion),
            }
        }
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        if self.held.iter().any(|held| held.staged && held.completion.tag.slot == slot) {
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
        self.delayed.clear();
        self.held.clear();
        true
    }
}

impl Handle for FaultyHandle {
    fn arm(&mut self) -> bool {
        let now = Instant::now();
        if self.held.iter().any(|held| held.due <= now) || !self.inner.arm() {
            return false;
        }
        let first = self.held.iter().map(|held| held.due).min();
        self.wake.set(first.map(|due| due.saturating_duration_since(now)));
        true
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn begin_turn(&mut self) {
        self.inner.begin_turn();
    }

    fn drain(&mut self, on: bool) {
        self.inner.drain(on);
    }
}

#[cfg(test)]
mod tests;
