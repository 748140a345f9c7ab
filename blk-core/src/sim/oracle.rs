//! Oracle: what a guest may rely on. It sees only what the guest's bus shows: submissions, completions and the advertised
//! state of the write cache. It shares no code with the models, and knows of the disk only what a power cut could leave.
//!
//! SEMANTICS.md of this crate, in terms of steps `a`, `b` of the program: `a` *precedes* `b` if `a` had ended when `b` was
//! submitted, or if a barrier stands between them. A mutation is *stable* once it ended OK and was FUA, or was written
//! with the cache advertised as off, or a flush that it had ended before has ended OK.
//!
//! One promise is stronger than the text asks: a write that ends OK after the cache was turned off is stable, whenever
//! it was submitted. A cache switch waits for what is in flight.

#[cfg(test)]
mod tests;
mod violation;

use std::vec::Vec;

use serde::Serialize;

use crate::sim::disk::TRACKED;
use crate::sim::guest::{Action, Outcome, SectorRun};
use crate::sim::value::{INITIAL, STEPS_MAX, ValueSet, ZEROES, written_by};

pub use violation::{Violation, Why};

/// Steps by their number since the last power cut.
type Steps = u64;

/// The guest's knowledge, from which its expectations follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Oracle {
    /// What the sectors held at the start, or what the last power cut left.
    start: [u8; TRACKED],
    /// Number of the first step since.
    first: u8,
    steps: Vec<Step>,
    /// The cache was turned off by a step that ended OK, and nothing turned it on since.
    turned_off: bool,
    /// That step ended just now, and the advertised state has not been looked at yet.
    turning_off: Option<u8>,
    /// The advertised write cache, when it was last looked at.
    cache: bool,
    /// Whether barriers order what a power cut leaves, when it was last looked at.
    ordered_crash: bool,
    /// A durable operation has failed.
    failed: bool,
    /// The program needs its barriers, whether or not its front can express them (I8).
    needs_barriers: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Step {
    action: Action,
    status: Status,
    /// Steps that had ended when this was submitted.
    ended_before: Steps,
    /// Those and the ones that a barrier puts before it.
    precede: Steps,
    /// The cache was advertised as off whenever it was looked at, from the submission on.
    cache_off: bool,
    /// A power cut respects the barriers that concern this step.
    ordered_crash: bool,
    /// A durable operation had failed when it was submitted.
    after_failure: bool,
    stable: Option<Why>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Status {
    Pending,
    Ok,
    Failed,
    Aborted,
}

impl Oracle {
    /// Nothing has happened yet; `cache` and `ordered_crash` are what the guest sees at the start.
    #[must_use]
    pub const fn new(needs_barriers: bool) -> Self {
        Self {
            start: [INITIAL; TRACKED],
            first: 0,
            steps: Vec::new(),
            turned_off: false,
            turning_off: None,
            cache: true,
            ordered_crash: false,
            failed: false,
            needs_barriers,
        }
    }

    /// Power was cut and the machine came up again with `left` in the sectors; the program goes on with step `next`.
    #[must_use]
    pub fn after_power_cut(&self, left: [u8; TRACKED], next: u8) -> Self {
        Self { start: left, first: next, ..Self::new(self.needs_barriers) }
    }

    /// Whether a step was submitted since the start or the last power cut.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        !self.steps.is_empty()
    }

    /// The action of step `id`, if it was submitted since the last power cut.
    #[must_use]
    pub fn action(&self, id: u8) -> Option<Action> {
        self.steps.get(usize::from(id.wrapping_sub(self.first))).map(|step| step.action)
    }

    /// Steps that have not ended.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.steps.iter().filter(|step| step.status == Status::Pending).count()
    }

    /// The guest looks at the bus: whether a write cache is advertised, and whether barriers hold across a power cut.
    ///
    /// # Errors
    /// [`Violation::CacheStillOn`].
    pub fn look(&mut self, cache: bool, ordered_crash: bool) -> Result<(), Violation> {
        self.cache = cache;
        self.ordered_crash = ordered_crash;
        if cache {
            self.cache_may_be_on();
        }
        match self.turning_off.take() {
            Some(step) if cache => Err(Violation::CacheStillOn { step }),
            _ => Ok(()),
        }
    }

    /// The guest submits a step. Steps are numbered from 0 on, in the order of submission.
    ///
    /// # Panics
    /// If the program has more than [`STEPS_MAX`] steps.
    pub fn submitted(&mut self, action: Action) {
        assert!(self.steps.len() + usize::from(self.first) < usize::from(STEPS_MAX), "programs are short");
        let ended_before = self.bits(|_, step| step.status != Status::Pending);
        let mut precede = ended_before;
        if !self.needs_barriers {
            let queued = self.bits(|_, step| is_queued(step.action));
            if is_barrier(action) {
                precede |= queued;
            } else if is_queued(action) {
                for (index, step) in self.steps.iter().enumerate() {
                    if is_barrier(step.action) {
                        precede |= step.precede | bit(index);
                    }
                }
            }
        }
        if turns_on(action) {
            self.turned_off = false;
            self.cache_may_be_on();
        }
        self.steps.push(Step {
            action,
            status: Status::Pending,
            ended_before,
            precede,
            cache_off: !self.cache,
            ordered_crash: self.ordered_crash,
            after_failure: self.failed,
            stable: None,
        });
    }

    /// The guest sees step `id` end. For a reset, `host_idle` says whether nothing is in flight behind the device.
    ///
    /// # Errors
    /// What this shows to be broken.
    pub fn ended(&mut self, id: u8, outcome: Outcome, host_idle: bool) -> Result<(), Violation> {
        let index = usize::from(id.wrapping_sub(self.first));
        let Some(step) = self.steps.get_mut(index) else { return Err(Violation::EndedTwice { step: id }) };
        match (step.status, outcome) {
            (Status::Pending, _) => {}
            // A reset has already said so.
            (Status::Aborted, Outcome::Aborted) => return Ok(()),
            _ => return Err(Violation::EndedTwice { step: id }),
        }
        step.status = match outcome {
            Outcome::Ok { .. } => Status::Ok,
            Outcome::Failed => Status::Failed,
            Outcome::Aborted => Status::Aborted,
        };
        match outcome {
            Outcome::Ok { read } => self.succeeded(index, read, host_idle),
            Outcome::Failed => {
                self.steps[index].fail(&mut self.failed);
                Ok(())
            }
            Outcome::Aborted => Ok(()),
        }
    }

    /// All values that a power cut at this moment may leave in `sector`.
    #[must_use]
    pub fn allowed(&self, sector: usize) -> ValueSet {
        let mut set = match self.overwritten_by(sector, 0) {
            Some(_) => ValueSet::EMPTY,
            None => ValueSet::of(self.start[sector]),
        };
        for (index, step) in self.mutations(sector) {
            if self.overwritten_by(sector, bit(index)).is_none() {
                set = set.with(ValueSet::of(self.value(index, step.action)));
            }
        }
        set
    }

    /// Checks what a power cut at this moment could leave, a set of values for each sector.
    ///
    /// # Errors
    /// What the guest would find broken.
    pub fn check_power_cut(&self, reachable: [ValueSet; TRACKED]) -> Result<(), Violation> {
        for (sector, reachable) in reachable.iter().enumerate() {
            if let Some(value) = reachable.without(self.allowed(sector)).iter().next() {
                return Err(self.lost(sector, value));
            }
        }
        self.check_order(reachable)
    }

    fn succeeded(&mut self, index: usize, read: [Option<u8>; 2], host_idle: bool) -> Result<(), Violation> {
        let id = self.id(index);
        self.check_execution_order(index)?;
        let step = &mut self.steps[index];
        let (action, ended_before) = (step.action, step.ended_before);
        if step.after_failure && step.must_fail() {
            return Err(Violation::NotFailStop { step: id });
        }
        if is_mutation(action) {
            step.stable = match action {
                Action::WriteFua(_) => Some(Why::Fua),
                _ if step.cache_off || self.turned_off => Some(Why::CacheOff),
                _ => None,
            };
        }
        match action {
            Action::Read(run) => return self.check_read(index, run, read),
            Action::Flush | Action::CacheOff => {
                for (index, step) in self.steps.iter_mut().enumerate() {
                    if ended_before & bit(index) != 0 && step.status == Status::Ok && is_mutation(step.action)
                    {
                        step.stable.get_or_insert(Why::Flushed(id));
                    }
                }
            }
            Action::Reset => {
                for step in self.steps.iter_mut().filter(|step| step.status == Status::Pending) {
                    step.status = Status::Aborted;
                }
                if !host_idle {
                    return Err(Violation::InFlightAfterReset { step: id });
                }
            }
            _ => {}
        }
        let undone = self.steps[index + 1..].iter().any(|step| turns_on(step.action));
        if action == Action::CacheOff && !undone {
            self.turned_off = true;
            self.turning_off = Some(id);
        }
        if turns_on(action) {
            self.cache_may_be_on();
        }
        Ok(())
    }

    /// What is outstanding can no longer be said to have been written with the cache off throughout.
    fn cache_may_be_on(&mut self) {
        for step in self.steps.iter_mut().filter(|step| step.status == Status::Pending) {
            step.cache_off = false;
        }
    }

    /// I2, execution: nothing younger than a barrier ends before it, and it before nothing older.
    fn check_execution_order(&self, index: usize) -> Result<(), Violation> {
        let action = self.steps[index].action;
        if self.needs_barriers || !is_queued(action) {
            return Ok(());
        }
        let older = self.steps.iter().enumerate().take(index);
        let overtaken = older.filter(|(_, step)| step.status == Status::Pending && is_queued(step.action));
        match overtaken.clone().find(|(_, step)| is_barrier(action) || is_barrier(step.action)) {
            Some((older, _)) => Err(Violation::Overtakes { step: self.id(index), older: self.id(older) }),
            None => Ok(()),
        }
    }

    /// I4: a read returns what no completed, newer mutation has superseded.
    fn check_read(&self, read: usize, run: SectorRun, values: [Option<u8>; 2]) -> Result<(), Violation> {
        let precede = self.steps[read].precede;
        for (sector, value) in run.sectors().zip(values) {
            let step = self.id(read);
            let Some(value) = value else { return Err(Violation::TornRead { step, sector }) };
            let mut newer = None;
            let mut found = false;
            for source in self.sources(sector, value) {
                found = true;
                newer = self.mutations(sector).find(|&(index, w)| {
                    precede & bit(index) != 0
                        && w.status == Status::Ok
                        && overwrites(w.action)
                        && source.is_none_or(|source| w.precede & bit(source) != 0)
                });
                if newer.is_none() {
                    break;
                }
            }
            match newer {
                Some((by, _)) => {
                    return Err(Violation::StaleRead { step, sector, value, newer: self.id(by) });
                }
                None if !found => return Err(Violation::AlienRead { step, sector, value }),
                None => {}
            }
        }
        Ok(())
    }

    /// I2 and I8, power cut: for barrier `x`, older `a` and younger `b`, whoever sees `x` or `b` sees all of `a`, and
    /// whoever sees `b` sees all of `x`.
    fn check_order(&self, reachable: [ValueSet; TRACKED]) -> Result<(), Violation> {
        for (x, barrier) in self.steps.iter().enumerate() {
            if !is_barrier(barrier.action) || matches!(barrier.status, Status::Failed | Status::Aborted) {
                continue;
            }
            for earlier in 0..=x {
                for later in x..self.steps.len() {
                    let promised = [earlier, x, later].iter().all(|&step| self.steps[step].ordered_crash);
                    if earlier == later || !(promised || self.needs_barriers) {
                        continue;
                    }
                    if let Some((shows, lacks, value)) = self.inverted(earlier, later, reachable) {
                        let (step, before, barrier) = (self.id(later), self.id(earlier), self.id(x));
                        let promised = !self.needs_barriers;
                        return Err(Violation::Reordered {
                            step,
                            shows,
                            before,
                            lacks,
                            value,
                            barrier,
                            promised,
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// A sector that can show `later`, together with one that can hold something older than `earlier`, and what.
    fn inverted(
        &self,
        earlier: usize,
        later: usize,
        reachable: [ValueSet; TRACKED],
    ) -> Option<(usize, usize, u8)> {
        let before = &self.steps[earlier];
        let certain = overwrites(before.action) && matches!(before.status, Status::Pending | Status::Ok);
        let run = self.steps[later].action.run().filter(|_| is_mutation(self.steps[later].action))?;
        let value = self.value(later, self.steps[later].action);
        for shows in run.sectors() {
            let visible = reachable[shows].contains(value)
                && self.sources(shows, value).all(|source| source == Some(later));
            for lacks in before.action.run()?.sectors() {
                // One sector holds one value: what shows the later write there lacks nothing.
                if !certain || !visible || shows == lacks {
                    continue;
                }
                let older = |source: Option<usize>| source.is_none_or(|s| before.precede & bit(s) != 0);
                if let Some(value) =
                    reachable[lacks].iter().find(|&value| self.sources(lacks, value).all(older))
                {
                    return Some((shows, lacks, value));
                }
            }
        }
        None
    }

    /// The stable mutation of `sector` that follows all of `sources` (no step: the start), if there is one.
    fn overwritten_by(&self, sector: usize, sources: Steps) -> Option<(usize, Why)> {
        self.mutations(sector).find_map(|(index, step)| {
            let follows = step.precede & sources == sources;
            step.stable.filter(|_| follows && overwrites(step.action)).map(|why| (index, why))
        })
    }

    fn lost(&self, sector: usize, value: u8) -> Violation {
        let by = self.sources(sector, value).find_map(|source| {
            self.overwritten_by(sector, source.map_or(0, bit)).map(|(by, why)| (self.id(by), why))
        });
        match by {
            Some((newer, why)) => Violation::Lost { sector, value, newer, why },
            None => Violation::Unwritten { sector, value },
        }
    }

    /// Where `value` in `sector` can come from: steps, or the start (`None`).
    fn sources(&self, sector: usize, value: u8) -> impl Iterator<Item = Option<usize>> {
        let start = (self.start[sector] == value).then_some(None);
        let steps = self.mutations(sector).filter(move |&(index, s)| self.value(index, s.action) == value);
        start.into_iter().chain(steps.map(|(index, _)| Some(index)))
    }

    fn mutations(&self, sector: usize) -> impl Iterator<Item = (usize, &Step)> {
        self.steps.iter().enumerate().filter(move |(_, step)| {
            is_mutation(step.action) && step.action.run().is_some_and(|run| run.sectors().contains(&sector))
        })
    }

    fn value(&self, index: usize, action: Action) -> u8 {
        match action {
            Action::WriteZeroes(_) | Action::Discard(_) => ZEROES,
            _ => written_by(self.id(index)),
        }
    }

    fn id(&self, index: usize) -> u8 {
        self.first.wrapping_add(index as u8)
    }

    fn bits(&self, mut pick: impl FnMut(usize, &Step) -> bool) -> Steps {
        self.steps.iter().enumerate().filter(|&(i, step)| pick(i, step)).fold(0, |set, (i, _)| set | bit(i))
    }
}

impl Step {
    /// I5: what may not succeed once a durable operation has failed. A cache-off where no cache was advertised promises
    /// nothing that was not promised before.
    fn must_fail(&self) -> bool {
        match self.action {
            Action::Flush => true,
            Action::CacheOff => !self.cache_off,
            action => is_mutation(action),
        }
    }

    /// Notes whether this failure is that of a durable operation.
    fn fail(&self, failed: &mut bool) {
        *failed |= match self.action {
            Action::Flush | Action::WriteFua(_) => true,
            Action::CacheOff => !self.cache_off,
            action => is_mutation(action) && self.cache_off,
        };
    }
}

const fn bit(index: usize) -> Steps {
    1 << index
}

const fn is_mutation(action: Action) -> bool {
    action.run().is_some() && !matches!(action, Action::Read(_))
}

/// A discard may leave the old data: it supersedes nothing.
const fn overwrites(action: Action) -> bool {
    is_mutation(action) && !matches!(action, Action::Discard(_))
}

/// Whether the cache may be advertised as on from then on.
const fn turns_on(action: Action) -> bool {
    matches!(action, Action::CacheOn | Action::Reset)
}

const fn is_barrier(action: Action) -> bool {
    matches!(action, Action::WriteOrdered(_))
}

/// Whether barriers apply: cache settings and resets do not go through the queue.
const fn is_queued(action: Action) -> bool {
    !matches!(action, Action::CacheOff | Action::CacheOn | Action::Reset)
}
