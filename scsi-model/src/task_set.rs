//! Task set: decides which task may start (SAM-5 clause 8, for one I_T nexus).

use core::cell::Cell;
use core::fmt;

use blk_core::mutant::{Mutant, active};
use heapless::Vec;

use crate::command::{Cdb, Traits, traits};

/// A task attribute: SAM-5, task attributes. ACA is not among them: a unit that says NORMACA=0 has no ACA condition, and a
/// transport refuses tasks with that attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Attribute {
    /// Starts when no older ORDERED and no HEAD OF QUEUE task is left.
    #[default]
    Simple,
    /// Starts when everything older has ended; nothing younger starts before it has ended.
    Ordered,
    /// Starts at once, before everything that waits.
    HeadOfQueue,
}

/// A command on its way: what the guest sent, and how much memory it gave for the data. Where that memory is
/// stays with the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Task {
    /// The transport's name for it, unique among the tasks in the set.
    pub tag: u64,
    /// Where it stands among the others.
    pub attribute: Attribute,
    /// The command.
    pub cdb: Cdb,
    /// Bytes of data that the guest supplies.
    pub data_out_bytes: u64,
    /// Bytes of room that the guest has for data.
    pub data_in_bytes: u64,
}

/// The task set is full: the transport keeps the request, or answers TASK SET FULL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TaskSetFull;

impl fmt::Display for TaskSetFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task set is full")
    }
}

impl core::error::Error for TaskSetFull {}

/// Class of a task in the rules of which may run together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(crate) enum Gate {
    Simple,
    HeadOfQueue,
    Ordered,
    /// Runs with nothing beside it, not even HEAD OF QUEUE: the cache switch, START STOP UNIT, COMPARE AND WRITE, ORWRITE.
    Alone,
}

impl Gate {
    pub(crate) fn of(task: &Task) -> Self {
        match task.attribute {
            _ if traits(&task.cdb).contains(Traits::ALONE) => Self::Alone,
            Attribute::Simple => Self::Simple,
            Attribute::Ordered => Self::Ordered,
            Attribute::HeadOfQueue => Self::HeadOfQueue,
        }
    }
}

/// Tasks that wait, in the order in which they will start; a tally of those that run; and those that were aborted and
/// not yet reported.
///
/// Tasks start strictly in this order. That is all the clause asks for: whatever runs is then older than whatever waits,
/// or HEAD OF QUEUE, so that "everything older has ended" reads "nothing runs".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(crate) struct TaskSet<const N: usize> {
    waiting: Vec<Task, N>,
    running: Running,
    aborted: Vec<u64, N>,
}

/// Number of running tasks of each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
struct Running {
    simple: u16,
    head_of_queue: u16,
    ordered: u16,
    alone: u16,
}

impl Running {
    fn total(self) -> u16 {
        self.simple.saturating_add(self.head_of_queue).saturating_add(self.ordered).saturating_add(self.alone)
    }

    fn of(&mut self, gate: Gate) -> &mut u16 {
        match gate {
            Gate::Simple => &mut self.simple,
            Gate::HeadOfQueue => &mut self.head_of_queue,
            Gate::Ordered => &mut self.ordered,
            Gate::Alone => &mut self.alone,
        }
    }
}

impl<const N: usize> TaskSet<N> {
    pub(crate) const fn new() -> Self {
        let running = Running { simple: 0, head_of_queue: 0, ordered: 0, alone: 0 };
        Self { waiting: Vec::new(), running, aborted: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting
            .len()
            .saturating_add(self.aborted.len())
            .saturating_add(usize::from(self.running.total()))
    }

    pub(crate) fn enqueue(&mut self, task: Task) -> Result<(), TaskSetFull> {
        if self.len() >= N {
            return Err(TaskSetFull);
        }
        let result = match task.attribute {
            Attribute::HeadOfQueue => self.waiting.insert(0, task),
            Attribute::Simple | Attribute::Ordered => self.waiting.push(task),
        };
        result.map_err(|_| TaskSetFull)
    }

    /// The task that may start now.
    pub(crate) fn front(&self) -> Option<(Task, Gate)> {
        let task = *self.waiting.first()?;
        let gate = Gate::of(&task);
        self.admits(gate).then_some((task, gate))
    }

    /// The front task has started, or has ended without running (`gate` is `None`).
    pub(crate) fn pop(&mut self, gate: Option<Gate>) {
        remove(&mut self.waiting, 0);
        if let Some(gate) = gate {
            let count = self.running.of(gate);
            *count = count.saturating_add(1);
        }
    }

    /// A running task has ended.
    pub(crate) fn ended(&mut self, gate: Gate) {
        let count = self.running.of(gate);
        *count = count.saturating_sub(1);
    }

    /// Takes a waiting task away; it is reported by [`Self::next_aborted`].
    pub(crate) fn abort(&mut self, tag: u64) -> bool {
        let Some(place) = self.waiting.iter().position(|task| task.tag == tag) else { return false };
        remove(&mut self.waiting, place);
        self.give_up(tag);
        true
    }

    /// Takes every waiting task away.
    pub(crate) fn abort_waiting(&mut self) {
        while let Some(task) = remove(&mut self.waiting, 0) {
            self.give_up(task.tag);
        }
    }

    /// A running task was dropped by a reset.
    pub(crate) fn drop_running(&mut self, task: Task, gate: Gate) {
        self.ended(gate);
        if active(Mutant::ResetReexecutes) {
            let _ = self.waiting.push(task);
            return;
        }
        self.give_up(task.tag);
    }

    pub(crate) fn next_aborted(&mut self) -> Option<u64> {
        remove(&mut self.aborted, 0)
    }

    pub(crate) fn has_aborted(&self) -> bool {
        !self.aborted.is_empty()
    }

    pub(crate) fn waits(&self, tag: u64) -> bool {
        self.waiting.iter().any(|task| task.tag == tag) || self.aborted.contains(&tag)
    }

    fn admits(&self, gate: Gate) -> bool {
        let running = self.running;
        let exclusive = running.ordered != 0 || running.alone != 0;
        match gate {
            _ if exclusive && active(Mutant::BarrierAdmitsYounger) => true,
            _ if running.alone != 0 => false,
            Gate::HeadOfQueue => true,
            Gate::Simple => running.ordered == 0 && running.head_of_queue == 0,
            Gate::Ordered => running.total() == 0 || active(Mutant::BarrierIgnoresOlder),
            Gate::Alone => running.total() == 0 || active(Mutant::CacheSwitchInFlight),
        }
    }

    fn give_up(&mut self, tag: u64) {
        // There is room: `enqueue` counts the aborted too.
        let _ = self.aborted.push(tag);
    }
}

/// Takes the element at `place` out of a list, if there is one. `Vec::remove` would panic if there is none, and an optimiser for
/// size does not see that there is.
pub(crate) fn remove<T, const N: usize>(list: &mut Vec<T, N>, place: usize) -> Option<T> {
    let behind = list.get_mut(place..).filter(|behind| !behind.is_empty())?;
    for pair in Cell::from_mut(behind).as_slice_of_cells().windows(2) {
        if let [earlier, later] = pair {
            earlier.swap(later);
        }
    }
    list.pop()
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    const MODE_SELECT: [u8; 6] = [0x15, 0x10, 0, 0, 24, 0];

    fn task(tag: u64, attribute: Attribute, cdb: &[u8]) -> Task {
        Task { tag, attribute, cdb: Cdb::new(cdb), data_out_bytes: 0, data_in_bytes: 0 }
    }

    /// Starts all that may start, and returns their tags.
    fn start(set: &mut TaskSet<8>) -> std::vec::Vec<u64> {
        let mut tags = std::vec::Vec::new();
        while let Some((task, gate)) = set.front() {
            set.pop(Some(gate));
            tags.push(task.tag);
        }
        tags
    }

    #[test]
    fn ordered_waits_for_the_older_and_holds_the_younger() {
        let mut set = TaskSet::<8>::new();
        for (tag, attribute) in
            [(1, Attribute::Simple), (2, Attribute::Simple), (3, Attribute::Ordered), (4, Attribute::Simple)]
        {
            set.enqueue(task(tag, attribute, &READ)).unwrap();
        }
        assert_eq!(start(&mut set), [1, 2]);
        set.ended(Gate::Simple);
        assert_eq!(start(&mut set), []);
        set.ended(Gate::Simple);
        assert_eq!(start(&mut set), [3]);
        set.ended(Gate::Ordered);
        assert_eq!(start(&mut set), [4]);
    }

    #[test]
    fn head_of_queue_overtakes_what_waits_and_holds_simple_tasks() {
        let mut set = TaskSet::<8>::new();
        set.enqueue(task(1, Attribute::Ordered, &READ)).unwrap();
        assert_eq!(start(&mut set), [1]);
        set.enqueue(task(2, Attribute::Simple, &READ)).unwrap();
        set.enqueue(task(3, Attribute::HeadOfQueue, &READ)).unwrap();
        assert_eq!(start(&mut set), [3], "beside the ORDERED task that runs");
        set.ended(Gate::Ordered);
        assert_eq!(start(&mut set), []);
        set.ended(Gate::HeadOfQueue);
        assert_eq!(start(&mut set), [2]);
    }

    #[test]
    fn the_cache_switch_runs_alone_whatever_its_attribute() {
        let mut set = TaskSet::<8>::new();
        set.enqueue(task(1, Attribute::Simple, &READ)).unwrap();
        assert_eq!(start(&mut set), [1]);
        set.enqueue(task(2, Attribute::HeadOfQueue, &MODE_SELECT)).unwrap();
        assert_eq!(start(&mut set), []);
        set.ended(Gate::Simple);
        assert_eq!(start(&mut set), [2]);
        set.enqueue(task(3, Attribute::HeadOfQueue, &READ)).unwrap();
        assert_eq!(start(&mut set), [], "not even HEAD OF QUEUE runs beside it");
    }

    #[test]
    fn an_element_is_removed_from_where_it_is_and_from_nowhere_else() {
        let mut list = Vec::<u8, 4>::from([1, 2, 3]);
        assert_eq!(remove(&mut list, 1), Some(2));
        assert_eq!(remove(&mut list, 2), None);
        assert_eq!(list, [1, 3]);
        assert_eq!(
            (remove(&mut list, 1), remove(&mut list, 0), remove(&mut list, 0)),
            (Some(3), Some(1), None)
        );
    }

    #[test]
    fn the_set_counts_what_waits_runs_and_was_aborted() {
        let mut set = TaskSet::<2>::new();
        set.enqueue(task(1, Attribute::Simple, &READ)).unwrap();
        set.enqueue(task(2, Attribute::Simple, &READ)).unwrap();
        assert_eq!(set.enqueue(task(3, Attribute::HeadOfQueue, &READ)), Err(TaskSetFull));
        assert!(set.abort(1));
        assert!(!set.abort(1));
        assert_eq!(set.enqueue(task(3, Attribute::Simple, &READ)), Err(TaskSetFull));
        assert_eq!(set.next_aborted(), Some(1));
        set.enqueue(task(3, Attribute::Simple, &READ)).unwrap();
    }
}
