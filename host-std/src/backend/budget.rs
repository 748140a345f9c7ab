//! Budgets of an image: bounds on the bytes that its operations have in flight, and on the private memory that they use.
//!
//! All handles of the image share them, and a device has one client at a time, so they are that client's too. An operation that is
//! beyond one waits in its handle, and handles that wait stand in line, so that none is passed by for ever:
//!
//! ```text
//! nobody in line, and there is room     -> an operation begins
//! else                                  -> its handle joins the line
//! an operation has ended, and gives back -> the first in line is woken, begins one, and goes to the end of the line
//! ```
//!
//! What is used belongs to operations that have begun, whose end wakes somebody: nothing waits for ever. An operation larger than
//! a whole budget begins when nothing else uses that.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::sync::{AtomicU64, AtomicUsize, Mutex, lock};

/// Use of a budget, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "server", derive(serde::Serialize, serde::Deserialize))]
pub struct BudgetUse {
    /// Now.
    pub used: u64,
    /// The most that was used at a time.
    pub peak: u64,
    /// What may be used; more only by an operation that is larger, alone.
    pub limit: u64,
}

/// Use of an image's budgets by its operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "server", derive(serde::Serialize, serde::Deserialize))]
pub struct BudgetReport {
    /// Bytes of reads and writes in flight.
    pub bytes_in_flight: BudgetUse,
    /// Memory of this process for the data of requests whose own memory it cannot map.
    pub private_memory: BudgetUse,
    /// Operations that wait for either now.
    pub waiting: u64,
    /// Operations that have had to wait.
    pub delayed: u64,
}

/// A bound, and what is used of it.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, used: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    /// Takes `bytes`. False, and nothing is taken, if they are not left; of a budget that nobody uses any number may be taken.
    pub(super) fn take(&self, bytes: u64) -> bool {
        self.take_if(bytes, |used, sum| used == 0 || sum <= self.limit)
    }

    fn take_if(&self, bytes: u64, may: impl Fn(u64, u64) -> bool) -> bool {
        let next = |used: u64| used.checked_add(bytes).filter(|&sum| may(used, sum));
        // Sequentially consistent: see `Budgets::join`.
        let taken = self.used.fetch_update(Ordering::SeqCst, Ordering::Relaxed, next);
        if let Ok(before) = taken
            && before + bytes > self.peak.load(Ordering::Relaxed)
        {
            self.peak.fetch_max(before + bytes, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::SeqCst);
    }

    pub(crate) fn report(&self) -> BudgetUse {
        BudgetUse {
            used: self.used.load(Ordering::Relaxed),
            peak: self.peak.load(Ordering::Relaxed),
            limit: self.limit,
        }
    }
}

/// What somebody has taken of a budget. Dropped, it is given back.
#[cfg(feature = "program")]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

#[cfg(feature = "program")]
impl Charge {
    /// Takes `bytes`, if they are left; in any case with `beyond`.
    pub(crate) fn take(budget: &Arc<Budget>, bytes: u64, beyond: bool) -> Option<Self> {
        let taken = budget.take_if(bytes, |used, sum| beyond || used == 0 || sum <= budget.limit);
        taken.then(|| Self { budget: Arc::clone(budget), bytes })
    }
}

#[cfg(feature = "program")]
impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// A handle that stands in line. Called by any thread.
pub(super) trait Waiter: Send + Sync {
    /// There may be room: wakes the handle's thread, or keeps it from falling asleep.
    fn wake(&self);
}

/// The budgets of an image, and the line of its handles.
pub(super) struct Budgets {
    pub(super) in_flight: Budget,
    pub(super) private: Budget,
    line: Mutex<VecDeque<Arc<dyn Waiter>>>,
    /// The line's length.
    in_line: AtomicUsize,
    waiting: AtomicU64,
    delayed: AtomicU64,
}

impl Budgets {
    pub(super) fn new(in_flight_bytes: u64, private_bytes: u64) -> Self {
        Self {
            in_flight: Budget::new(in_flight_bytes),
            private: Budget::new(private_bytes),
            line: Mutex::new(VecDeque::new()),
            in_line: AtomicUsize::new(0),
            waiting: AtomicU64::new(0),
            delayed: AtomicU64::new(0),
        }
    }

    /// Whether a handle may take something: nobody else is before it.
    pub(super) fn may_take(&self, who: &Arc<dyn Waiter>) -> bool {
        self.in_line.load(Ordering::SeqCst) == 0
            || lock(&self.line).front().is_none_or(|first| is(first, who))
    }

    /// Gives back what an operation had, and wakes the first in line.
    pub(super) fn give_back(&self, budget: &Budget, bytes: u64) {
        if bytes == 0 {
            return;
        }
        budget.give_back(bytes);
        if self.in_line.load(Ordering::SeqCst) != 0 {
            self.wake_first();
        }
    }

    /// Gives back what a handle took before it found that it has to wait. To itself that is no news, and would wake it for ever;
    /// another may have found no room meanwhile.
    pub(super) fn put_back(&self, budget: &Budget, bytes: u64, who: &Arc<dyn Waiter>) {
        if bytes == 0 {
            return;
        }
        budget.give_back(bytes);
        if !self.may_take(who) {
            self.wake_first();
        }
    }

    /// Joins the line, if the handle is not in it. It is to try once more then: either that sees what was given back before, or
    /// whoever gives something back sees the line.
    pub(super) fn join(&self, who: &Arc<dyn Waiter>) {
        let mut line = lock(&self.line);
        if !line.iter().any(|waiter| is(waiter, who)) {
            line.push_back(Arc::clone(who));
            self.in_line.store(line.len(), Ordering::SeqCst);
        }
    }

    /// The handle has had its turn, and wants another or not. The next one's is now.
    pub(super) fn pass(&self, who: &Arc<dyn Waiter>, again: bool) {
        if self.in_line.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut line = lock(&self.line);
        let Some(at) = line.iter().position(|waiter| is(waiter, who)) else { return };
        let waiter = line.remove(at);
        line.extend(waiter.filter(|_| again));
        self.in_line.store(line.len(), Ordering::SeqCst);
        drop(line);
        self.wake_first();
    }

    /// An operation waits, or waits no more.
    pub(super) fn count_waiting(&self, begins: bool) {
        if begins {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            self.delayed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn report(&self) -> BudgetReport {
        BudgetReport {
            bytes_in_flight: self.in_flight.report(),
            private_memory: self.private.report(),
            waiting: self.waiting.load(Ordering::Relaxed),
            delayed: self.delayed.load(Ordering::Relaxed),
        }
    }

    #[cold]
    fn wake_first(&self) {
        let first = lock(&self.line).front().cloned();
        // Without the lock: the handle has one of its own.
        if let Some(first) = first {
            first.wake();
        }
    }
}

fn is(one: &Arc<dyn Waiter>, other: &Arc<dyn Waiter>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Waiter for Woken {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waiters() -> [(Arc<Woken>, Arc<dyn Waiter>); 2] {
        [(); 2].map(|()| {
            let woken = Arc::new(Woken::default());
            (Arc::clone(&woken), woken as _)
        })
    }

    #[test]
    fn a_budget_is_not_exceeded_but_by_one_operation_alone() {
        let budget = Budget::new(100);
        assert!(budget.take(60) && budget.take(40));
        assert!(!budget.take(1));
        budget.give_back(60);
        assert!(!budget.take(61));
        budget.give_back(40);
        assert!(budget.take(1000), "larger than the budget, and alone");
        assert!(!budget.take(1));
        budget.give_back(1000);
        assert_eq!(budget.report(), BudgetUse { used: 0, peak: 1000, limit: 100 });
    }

    #[test]
    fn who_waits_is_passed_by_by_nobody_and_woken_in_its_turn() {
        let budgets = Budgets::new(10, 10);
        let [(first, one), (second, two)] = waiters();
        assert!(budgets.may_take(&one) && budgets.in_flight.take(10));
        budgets.join(&one);
        budgets.join(&two);
        budgets.join(&one);
        assert!(budgets.may_take(&one) && !budgets.may_take(&two));
        budgets.give_back(&budgets.in_flight, 10);
        let woken = || [&first, &second].map(|woken| woken.0.load(Ordering::Relaxed));
        assert_eq!(woken(), [1, 0]);
        // It has begun one, and another waits: the other handle's turn.
        budgets.pass(&one, true);
        assert_eq!(woken(), [1, 1]);
        assert!(budgets.may_take(&two) && !budgets.may_take(&one));
        budgets.pass(&two, false);
        assert_eq!(woken(), [2, 1]);
        budgets.pass(&one, false);
        assert!(budgets.may_take(&one) && budgets.may_take(&two));
        budgets.give_back(&budgets.private, 0);
        assert_eq!(woken(), [2, 1]);
    }
}
