//! A state of the whole world of a cell, and what can happen in it.

use std::string::String;
use std::vec::Vec;

use serde::Serialize;

use crate::op::Op;
use crate::sim::cell::Cell;
use crate::sim::disk::{Fate, SimDisk, SimHandle, TRACKED};
use crate::sim::guest::{Action, Ended, Guest, Outcome, SectorRun};
use crate::sim::memory::SimMemory;
use crate::sim::oracle::{Oracle, Violation};
use crate::sim::value::{ValueSet, name, step_name};

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
}

/// Possible next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
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
        }
    }

    /// Adds everything that can happen next.
    pub(super) fn events(&self, length: u8, into: &mut Vec<Event>) {
        // Late means that something else comes between: another completion, or a step of the program.
        let other = self.disk.in_flight().nth(1).is_some() || self.issued < length;
        for (handle, index, _) in self.disk.in_flight() {
            for fate in [Fate::Succeeds, Fate::Fails] {
                if fate == Fate::Fails && (self.errors_left == 0 || !self.disk.can_fail(handle, index)) {
                    continue;
                }
                into.push(Event::Complete { handle, index, fate, late: false });
                if other && self.late_polls_left != 0 {
                    into.push(Event::Complete { handle, index, fate, late: true });
                }
            }
        }
        if self.issued < length {
            self.steps(into);
        }
        // Where something else can happen, seeing a completion now is no different from having seen it at once.
        if into.is_empty() && self.disk.has_unpolled() {
            into.push(Event::Poll);
        }
    }

    /// Adds the steps that the program can go on with, and the power cuts in mid-program.
    fn steps(&self, into: &mut Vec<Event>) {
        let room = self.oracle.pending() < self.guest.depth();
        for &action in self.guest.alphabet() {
            if (room || action == Action::Reset) && self.guest.accepts(action) {
                into.push(Event::Issue(action));
            }
        }
        if self.power_cuts_left != 0 && self.oracle.has_begun() {
            let [first, second] = self.reachable();
            for a in first.iter() {
                into.extend(second.iter().map(|b| Event::PowerCut { left: [a, b] }));
            }
        }
    }

    /// Lets `event` happen, and checks every promise. `booted` is the state to which a power cut leads, but for the disk.
    pub(super) fn apply(
        &mut self,
        event: Event,
        booted: &Self,
        seen: &mut dyn FnMut(Ended),
    ) -> Result<(), Violation> {
        match event {
            Event::Issue(action) => {
                self.oracle.submitted(action);
                let id = self.issued;
                self.issued = id.wrapping_add(1);
                self.guest.issue(id, action, &self.memory, self.disk.handles());
            }
            Event::Complete { handle, index, fate, late } => {
                if fate == Fate::Fails {
                    self.errors_left = self.errors_left.saturating_sub(1);
                }
                self.disk.complete(&self.memory, handle, index, fate);
                if late {
                    self.late_polls_left = self.late_polls_left.saturating_sub(1);
                    return self.oracle.check_power_cut(self.reachable());
                }
            }
            Event::Poll => {}
            Event::PowerCut { left } => {
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
        self.settle(seen)
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
        if self.disk.is_idle() && self.oracle.pending() != 0 {
            return Err(Violation::Hung);
        }
        self.oracle.check_power_cut(self.reachable())
    }

    fn reachable(&self) -> [ValueSet; TRACKED] {
        core::array::from_fn(|sector| self.disk.reachable(sector))
    }

    /// Tells a history in words, from the state in which the program begins, up to `violation`.
    pub(super) fn tell(mut self, events: &[Event], violation: Violation) -> Vec<String> {
        let booted = self.clone();
        let mut lines = Vec::new();
        for &event in events {
            lines.push(self.describe(event));
            let mut seen = Vec::new();
            let applied = self.apply(event, &booted, &mut |ended| seen.push(ended));
            lines.extend(seen.into_iter().map(|ended| describe_end(ended, self.oracle.action(ended.id))));
            if applied.is_err() {
                break;
            }
        }
        let what = if violation.is_power_cut() { "power cut" } else { "broken" };
        lines.push(std::format!("{what}: {violation}"));
        lines
    }

    fn describe(&self, event: Event) -> String {
        match event {
            Event::Issue(action) => std::format!("guest: {} = {action}", step_name(self.issued)),
            Event::Complete { handle, index, fate, late } => {
                let mut pending = self.disk.in_flight();
                let op = pending.find(|&(h, i, _)| (h, i) == (handle, index)).map(|(_, _, op)| op);
                let verb = if fate == Fate::Fails { "fails" } else { "completes" };
                let queue = if handle == 0 { String::new() } else { std::format!(", handle {handle}") };
                let late = if late { ", which the device has not seen yet" } else { "" };
                std::format!("host{queue}: {verb} the {}{late}", describe_op(op))
            }
            Event::Poll => "device: looks for completions".into(),
            Event::PowerCut { left: [first, second] } => {
                let (first, second) = (name(first), name(second));
                std::format!("power cut and boot: sector 0 holds {first}, sector 1 {second}")
            }
        }
    }
}

fn describe_op(op: Option<Op>) -> String {
    let Some(op) = op else { return "nothing".into() };
    let verb = match op {
        Op::Read { .. } => "read of",
        Op::Write { fua: false, .. } => "write of",
        Op::Write { fua: true, .. } => "FUA write of",
        Op::WriteZeroes { .. } => "zeroing of",
        Op::Discard { .. } => "discard of",
        Op::Flush => "flush",
    };
    match op.extent() {
        Some(extent) => {
            let run = SectorRun { first: extent.start.0 as u8, count: extent.sectors as u8 };
            std::format!("{verb} {run}")
        }
        None => verb.into(),
    }
}

fn describe_end(ended: Ended, action: Option<Action>) -> String {
    let step = step_name(ended.id);
    match (ended.outcome, action) {
        (Outcome::Ok { read }, Some(Action::Read(run))) => {
            let values = run.sectors().zip(read).map(|(sector, value)| {
                let value = value.map_or("torn".into(), name);
                std::format!("sector {sector} holds {value}")
            });
            std::format!("guest: {step} is done: {}", values.collect::<Vec<_>>().join(", "))
        }
        (Outcome::Ok { .. }, _) => std::format!("guest: {step} is done"),
        (Outcome::Failed, _) => std::format!("guest: {step} has failed"),
        (Outcome::Aborted, _) => std::format!("guest: {step} was aborted"),
    }
}
