//! Task set: decides which task may start (SAM-5 clause 8).

use core::fmt;

use blk_core::mutant::{Mutant, active};

use crate::command::{Cdb, Row, Traits, find};
use crate::fifo::Fifo;

/// A task attribute: SAM-5, task attributes. ACA is not among them: a unit that says NORMACA=0 has no ACA condition, and a
/// transport refuses tasks with that attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
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

/// The I_T nexus that a task came through: a pair of an initiator port and a target port (SAM-5, I_T nexus). The transport
/// numbers its nexuses as it likes; one with a single initiator has [`Nexus::default`] only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Nexus(pub u16);

/// A command on its way: what the guest sent, and how much memory it gave for the data. Where that memory is
/// stays with the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Task {
    /// The transport's name for it, unique among the tasks in the set, of whatever nexus.
    pub tag: u64,
    /// Who sent it.
    pub nexus: Nexus,
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
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(crate) enum Gate {
    Simple,
    HeadOfQueue,
    Ordered,
    /// Runs with nothing beside it, not even HEAD OF QUEUE: the cache switch, START STOP UNIT, COMPARE AND WRITE, ORWRITE.
    Alone,
}

impl Gate {
    fn of(attribute: Attribute, row: Option<&Row>) -> Self {
        match attribute {
            _ if row.is_some_and(|row| row.traits.contains(Traits::ALONE)) => Self::Alone,
            Attribute::Simple => Self::Simple,
            Attribute::Ordered => Self::Ordered,
            Attribute::HeadOfQueue => Self::HeadOfQueue,
        }
    }
}

/// Tasks that a function of task management is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chosen {
    /// The one of this name.
    Tag(u64),
    /// Those of a nexus.
    Nexus(Nexus),
    All,
}

impl Chosen {
    pub(crate) fn is(self, tag: u64, nexus: Nexus) -> bool {
        match self {
            Self::Tag(chosen) => tag == chosen,
            Self::Nexus(chosen) => nexus == chosen,
            Self::All => true,
        }
    }
}

/// The task that may start now.
pub(crate) struct Front<'a> {
    pub(crate) task: &'a Task,
    /// The row of its command, if there is one.
    pub(crate) row: Option<&'static Row>,
    pub(crate) gate: Gate,
}

/// Tasks that wait, in the order in which they will start; a tally of those that run; and those that were aborted and
/// not yet reported.
///
/// Tasks start strictly in this order. That is all the clause asks for: whatever runs is then older than whatever waits,
/// or HEAD OF QUEUE, so that "everything older has ended" reads "nothing runs".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(crate) struct TaskSet<const N: usize> {
    waiting: Fifo<Task, N>,
    running: Running,
    aborted: Fifo<u64, N>,
    /// All of them.
    count: u16,
}

/// Number of running tasks of each class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
struct Running {
    simple: u16,
    head_of_queue: u16,
    ordered: u16,
    alone: u16,
}

impl Running {
    const NONE: Self = Self { simple: 0, head_of_queue: 0, ordered: 0, alone: 0 };

    const fn total(self) -> u16 {
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
        Self { waiting: Fifo::new(), running: Running::NONE, aborted: Fifo::new(), count: 0 }
    }

    /// Whether nothing waits, runs or has yet to be reported as aborted.
    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    #[inline]
    pub(crate) fn enqueue(&mut self, task: Task) -> Result<(), TaskSetFull> {
        let there_is_room = usize::from(self.count) < N;
        let taken = there_is_room
            && match task.attribute {
                Attribute::HeadOfQueue => self.waiting.push_front(task),
                Attribute::Simple | Attribute::Ordered => self.waiting.push_back(task),
            };
        if !taken {
            return Err(TaskSetFull);
        }
        // At most `N`, 128 at most.
        self.count = self.count.wrapping_add(1);
        Ok(())
    }

    /// The task that may start now.
    #[inline]
    pub(crate) fn front(&self) -> Option<Front<'_>> {
        let task = self.waiting.front()?;
        let row = find(&task.cdb);
        let gate = Gate::of(task.attribute, row);
        self.admits(gate).then_some(Front { task, row, gate })
    }

    /// The front task has started.
    #[inline]
    pub(crate) fn started(&mut self, gate: Gate) {
        let _ = self.waiting.pop_front();
        let running = self.running.of(gate);
        *running = running.wrapping_add(1);
    }

    /// A running task has ended.
    #[inline]
    pub(crate) fn ended(&mut self, gate: Gate) {
        self.stopped(gate);
        self.count = self.count.saturating_sub(1);
    }

    #[inline]
    fn stopped(&mut self, gate: Gate) {
        let running = self.running.of(gate);
        *running = running.saturating_sub(1);
    }

    /// Takes the waiting tasks away that are `chosen`, and returns whether there were any. They are reported by
    /// [`Self::next_aborted`].
    #[inline(never)]
    pub(crate) fn abort(&mut self, chosen: Chosen) -> bool {
        let before = self.waiting.len();
        let aborted = &mut self.aborted;
        self.waiting.retain(|task| {
            let keep = !chosen.is(task.tag, task.nexus);
            if !keep {
                // There is room: `enqueue` counts the aborted too.
                let _ = aborted.push_back(task.tag);
            }
            keep
        });
        self.waiting.len() != before
    }

    /// A running task was dropped by a reset.
    pub(crate) fn drop_running(&mut self, tag: u64, gate: Gate) {
        self.stopped(gate);
        // There is room: it was counted when it ran.
        let _ = self.aborted.push_back(tag);
    }

    /// A running task waits again. Only under a mutant.
    pub(crate) fn run_again(&mut self, task: Task, gate: Gate) {
        self.stopped(gate);
        let _ = self.waiting.push_back(task);
    }

    pub(crate) fn next_aborted(&mut self) -> Option<u64> {
        let tag = self.aborted.pop_front()?;
        self.count = self.count.saturating_sub(1);
        Some(tag)
    }

    pub(crate) fn has_aborted(&self) -> bool {
        !self.aborted.is_empty()
    }

    pub(crate) fn waits(&self, tag: u64) -> bool {
        self.waiting.iter().any(|task| task.tag == tag) || self.aborted.iter().any(|aborted| *aborted == tag)
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    const MODE_SELECT: [u8; 6] = [0x15, 0x10, 0, 0, 24, 0];

    fn task(tag: u64, attribute: Attribute, cdb: &[u8]) -> Task {
        let nexus = Nexus::default();
        Task { tag, nexus, attribute, cdb: Cdb::new(cdb), data_out_bytes: 0, data_in_bytes: 0 }
    }

    /// Starts all that may start, and returns their tags.
    fn start(set: &mut TaskSet<8>) -> std::vec::Vec<u64> {
        let mut tags = std::vec::Vec::new();
        while let Some(Front { task, gate, .. }) = set.front() {
            tags.push(task.tag);
            set.started(gate);
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
    fn the_set_counts_what_waits_runs_and_was_aborted() {
        let mut set = TaskSet::<2>::new();
        set.enqueue(task(1, Attribute::Simple, &READ)).unwrap();
        set.enqueue(task(2, Attribute::Simple, &READ)).unwrap();
        assert_eq!(set.enqueue(task(3, Attribute::HeadOfQueue, &READ)), Err(TaskSetFull));
        assert!(set.abort(Chosen::Tag(1)));
        assert!(!set.abort(Chosen::Tag(1)));
        assert_eq!(set.enqueue(task(3, Attribute::Simple, &READ)), Err(TaskSetFull));
        assert_eq!(set.next_aborted(), Some(1));
        set.enqueue(task(3, Attribute::Simple, &READ)).unwrap();
    }
}
