//! A state of the whole world of a cell, and what can happen in it.

use std::vec::Vec;

use serde::Serialize;

use crate::op::Op;
use crate::sim::cell::Cell;
use crate::sim::disk::{AtOnce, Choices, DoneAtOnce, Fate, SimDisk, SimHandle, TRACKED};
use crate::sim::guest::{Action, Ended, Guest, Outcome};
use crate::sim::history::{Ending, Happened, History, HistoryEvent};
use crate::sim::memory::SimMemory;
use crate::sim::oracle::{Oracle, Violation};
use crate::sim::value::{Contents, ValueSet};

/// A front's driver on the simulated memory and disk.
pub trait SimGuest: Guest<SimMemory, [SimHandle]> {}

impl<G: Guest<SimMemory, [SimHandle]>> SimGuest for G {}

/// Everything that can make two futures differ.
#[derive(Clone, Serialize)]
pub(super) struct State<G> {
    guest: G,
    memory: SimMemory,
    disk: SimDisk,
    oracle: Oracle,
    /// Steps issued since the program began, power cuts or not.
    issued: u8,
    errors_left: u8,
    power_cuts_left: u8,
    late_polls_left: u8,
    at_once: bool,
}

/// Possible next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Event {
    pub(super) what: What,
    /// What the host does at once of what the device submits then.
    pub(super) at_once: AtOnce,
}

impl From<What> for Event {
    fn from(what: What) -> Self {
        Self { what, at_once: AtOnce::NONE }
    }
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum What {
    /// The guest issues the next step of its program.
    Issue(Action),
    /// The host completes an operation in flight, and the front sees it now or late.
    Complete { handle: usize, index: usize, fate: Fate, late: bool },
    /// The front sees what has completed.
    Poll,
    /// Power is cut, this is left in the sectors, and the machine boots again.
    PowerCut { left: [u8; TRACKED] },
}

impl<G: SimGuest> State<G> {
    /// The machine has booted, and the program has not begun.
    ///
    /// # Panics
    /// If the guest leaves something in flight: bringing a device up needs no disk.
    pub(super) fn boot(cell: &Cell, boot: &dyn Fn(&SimMemory, &mut [SimHandle]) -> G) -> Self {
        let memory = SimMemory::new();
        let mut disk = SimDisk::new(&cell.disk);
        let mut guest = boot(&memory, disk.handles());
        let ended = guest.poll(&memory, disk.handles());
        assert!(ended.is_empty() && disk.is_idle(), "a guest boots without touching the disk");
        let mut oracle = Oracle::new(cell.needs_barriers);
        let looked = oracle.look(guest.write_cache(), guest.ordered_crash());
        debug_assert!(looked.is_ok(), "nothing has turned the cache off yet");
        Self {
            guest,
            memory,
            disk,
            oracle,
            issued: 0,
            errors_left: cell.errors,
            power_cuts_left: cell.power_cuts,
            late_polls_left: cell.late_polls,
            at_once: cell.at_once,
        }
    }

    /// Adds everything that can happen next.
    pub(super) fn events(&self, length: u8, into: &mut Vec<Event>) {
        // Late means that something else comes between: another completion, or a step of the program.
        let in_flight = self.disk.in_flight();
        let other = in_flight.len() > 1 || self.issued < length;
        for (handle, index, _) in in_flight {
            if !self.disk.can_complete(handle, index) {
                continue;
            }
            for fate in [Fate::Succeeds, Fate::Fails] {
                if fate == Fate::Fails && (self.errors_left == 0 || !self.disk.can_fail(handle, index)) {
                    continue;
                }
                into.push(What::Complete { handle, index, fate, late: false }.into());
                if other && self.late_polls_left != 0 {
                    into.push(What::Complete { handle, index, fate, late: true }.into());
                }
            }
        }
        if self.issued < length {
            self.steps(into);
        }
        // Where something else can happen, seeing a completion now is no different from having seen it at once.
        if into.is_empty() && self.disk.has_unpolled() {
            into.push(What::Poll.into());
        }
    }

    /// Adds the steps that the program can go on with, and the power cuts in mid-program.
    fn steps(&self, into: &mut Vec<Event>) {
        let room = self.oracle.pending() < self.guest.depth();
        for &action in self.guest.alphabet() {
            if (room || action == Action::Reset) && self.guest.accepts(action) {
                into.push(What::Issue(action).into());
            }
        }
        if self.power_cuts_left != 0 && self.oracle.has_begun() {
            let [first, second] = self.reachable();
            for a in first.iter() {
                into.extend(second.iter().map(|b| Event::from(What::PowerCut { left: [a, b] })));
            }
        }
    }

    /// The events that begin as `event` does, which `choices` came of, and in which one more operation is done at once.
    pub(super) fn longer(&self, event: Event, choices: &Choices) -> impl Iterator<Item = Event> + use<G> {
        let asked = if self.at_once && !choices.void { choices.asked } else { 0 };
        let longer = event.at_once.longer(asked, self.errors_left != 0);
        longer.map(move |at_once| Event { at_once, ..event })
    }

    /// Whether nothing more is done at once, so that no event is [longer](Self::longer).
    pub(super) fn is_in_flight_only(&self) -> bool {
        !self.at_once
    }

    /// The same state of a world in which nothing more is done at once.
    pub(super) fn in_flight_only(&self) -> Self {
        Self { at_once: false, ..self.clone() }
    }

    /// Lets `event` happen, and checks every promise. `booted` is the state to which a power cut leads, but for the disk.
    pub(super) fn apply(
        &mut self,
        event: Event,
        booted: &Self,
        seen: &mut dyn FnMut(Ended),
    ) -> Result<Choices, Violation> {
        let polls = self.begin(event, booted);
        let checked = if polls { self.settle(seen) } else { self.oracle.check_power_cut(self.reachable()) };
        let choices = self.end(event.at_once);
        checked.map(|()| choices)
    }

    /// The event is over.
    fn end(&mut self, at_once: AtOnce) -> Choices {
        let choices = self.disk.take_choices();
        if at_once.fails && !choices.void {
            self.errors_left = self.errors_left.saturating_sub(1);
        }
        choices
    }

    /// Lets `event` happen, up to what the device has to see of it. Returns whether it sees it now.
    fn begin(&mut self, event: Event, booted: &Self) -> bool {
        self.disk.choose(event.at_once);
        match event.what {
            What::Issue(action) => {
                self.oracle.submitted(action);
                let id = self.issued;
                self.issued = id.wrapping_add(1);
                self.guest.issue(id, action, &self.memory, self.disk.handles());
            }
            What::Complete { handle, index, fate, late } => {
                if fate == Fate::Fails {
                    self.errors_left = self.errors_left.saturating_sub(1);
                }
                self.disk.complete(&self.memory, handle, index, fate);
                if late {
                    self.late_polls_left = self.late_polls_left.saturating_sub(1);
                    return false;
                }
            }
            What::Poll => {}
            What::PowerCut { left } => {
                let mut next = booted.clone();
                next.disk.fill(left);
                next.oracle = booted.oracle.after_power_cut(left, self.issued);
                next.issued = self.issued;
                next.errors_left = self.errors_left;
                next.late_polls_left = self.late_polls_left;
                next.power_cuts_left = self.power_cuts_left.saturating_sub(1);
                *self = next;
            }
        }
        true
    }

    /// Lets the guest see what there is to see, and checks.
    fn settle(&mut self, seen: &mut dyn FnMut(Ended)) -> Result<(), Violation> {
        loop {
            let ended = self.guest.poll(&self.memory, self.disk.handles());
            for &one in &ended {
                seen(one);
                self.oracle.ended(one.id, one.outcome, self.disk.is_idle())?;
            }
            self.oracle.look(self.guest.write_cache(), self.guest.ordered_crash())?;
            if ended.is_empty() {
                break;
            }
        }
        if self.disk.strayed() {
            return Err(Violation::Strayed);
        }
        if self.disk.is_stuck() || self.disk.is_idle() && self.oracle.pending() != 0 {
            return Err(Violation::Hung);
        }
        self.oracle.check_power_cut(self.reachable())
    }

    fn reachable(&self) -> [ValueSet; TRACKED] {
        core::array::from_fn(|sector| self.disk.reachable(sector))
    }

    /// What happens when `events` do, from the state in which the program begins, up to `violation`.
    pub(super) fn history(mut self, events: &[Event], violation: Option<Violation>) -> History {
        let booted = self.clone();
        let mut history = Vec::new();
        for &event in events {
            let what = self.happened(event.what);
            let (before, queued) = (self.reachable(), self.queued_without(event.what));
            let polled = self.begin(event, &booted);
            // What is issued is seen before the device acts on it.
            let at_once = if matches!(event.what, What::Issue(_)) { before } else { self.reachable() };
            history.push(self.noted(what, at_once));
            history.extend(self.submitted_since(&queued));
            let queued = self.queued();
            let mut ended = Vec::new();
            let settled = if polled { self.settle(&mut |step| ended.push(step)) } else { Ok(()) };
            let done = self.end(event.at_once).done;
            history.extend(done.into_iter().map(|done| self.noted(done.into(), self.reachable())));
            history.extend(ended.into_iter().map(|step| self.noted(self.ended(step), self.reachable())));
            history.extend(self.submitted_since(&queued));
            if settled.is_err() {
                break;
            }
        }
        let broken = violation.map(|violation| Happened::Broken { violation });
        history.extend(broken.map(|what| self.noted(what, self.reachable())));
        History { events: history }
    }

    /// The events of `program`, each step of which is done before the next, and every operation succeeds. Steps that the guest
    /// cannot express are left out.
    pub(super) fn undisturbed(mut self, program: &[Action]) -> Vec<Event> {
        let booted = self.clone();
        let mut events = Vec::new();
        for &action in program {
            if !self.guest.alphabet().contains(&action) || !self.guest.accepts(action) {
                continue;
            }
            let mut next = Some(What::Issue(action));
            while let Some(event) = next.map(Event::from) {
                events.push(event);
                if self.apply(event, &booted, &mut |_| {}).is_err() {
                    return events;
                }
                let fate = Fate::Succeeds;
                let mut in_flight = self.disk.in_flight().into_iter();
                let first = in_flight.find(|&(handle, index, _)| self.disk.can_complete(handle, index));
                next = first.map(|(handle, index, _)| What::Complete { handle, index, fate, late: false });
            }
        }
        events
    }

    fn happened(&self, what: What) -> Happened {
        match what {
            What::Issue(action) => Happened::Issued { step: self.issued, action },
            What::Complete { handle, index, fate, late } => {
                let in_flight = self.disk.in_flight();
                let pending = in_flight.iter().find(|&&(h, i, _)| (h, i) == (handle, index));
                let op = pending.map_or(Op::Flush, |&(_, _, op)| op);
                Happened::Completed { handle, op, ok: fate == Fate::Succeeds, late }
            }
            What::Poll => Happened::Polled,
            What::PowerCut { left } => Happened::PowerCut { left: left.map(Contents::from) },
        }
    }

    fn noted(&self, what: Happened, reachable: [ValueSet; TRACKED]) -> HistoryEvent {
        let (from, to) = what.parties();
        let contents = |set: ValueSet| set.iter().map(Contents::from).collect();
        let allowed = core::array::from_fn(|sector| contents(self.oracle.allowed(sector)));
        HistoryEvent { from, to, what, reachable: reachable.map(contents), allowed }
    }

    /// Operations in flight on each handle.
    fn queued(&self) -> Vec<usize> {
        self.disk.in_flight().into_iter().fold(Vec::new(), |mut counts, (handle, index, _)| {
            counts.resize(counts.len().max(handle + 1), 0);
            counts[handle] = index + 1;
            counts
        })
    }

    /// Those that are left once `event` has happened.
    fn queued_without(&self, what: What) -> Vec<usize> {
        match what {
            What::Complete { handle, .. } => {
                let mut counts = self.queued();
                counts[handle] -= 1;
                counts
            }
            What::PowerCut { .. } => Vec::new(),
            What::Issue(_) | What::Poll => self.queued(),
        }
    }

    /// What was submitted since the handles had `queued` in flight.
    fn submitted_since(&self, queued: &[usize]) -> Vec<HistoryEvent> {
        let pending = self.disk.in_flight().into_iter();
        let new = pending.filter(|&(handle, index, _)| index >= queued.get(handle).copied().unwrap_or(0));
        new.map(|(handle, _, op)| self.noted(Happened::Submitted { handle, op }, self.reachable())).collect()
    }

    fn ended(&self, ended: Ended) -> Happened {
        let step = ended.id;
        let (result, read) = match (ended.outcome, self.oracle.action(step)) {
            (Outcome::Ok { read }, Some(Action::Read(run))) => {
                let contents = read.into_iter().map(|value| value.map(Contents::from));
                (Ending::Done, run.sectors().zip(contents).collect())
            }
            (Outcome::Ok { .. }, _) => (Ending::Done, Vec::new()),
            (Outcome::Failed, _) => (Ending::Failed, Vec::new()),
            (Outcome::Aborted, _) => (Ending::Aborted, Vec::new()),
        };
        Happened::Ended { step, result, read }
    }
}

impl From<DoneAtOnce> for Happened {
    fn from(DoneAtOnce { handle, op, ok }: DoneAtOnce) -> Self {
        Self::DoneAtOnce { handle, op, ok }
    }
}
