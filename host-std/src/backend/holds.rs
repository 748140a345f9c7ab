//! Holds of an image: sectors that a handle keeps the others from changing, while it reads, compares and writes them.
//!
//! ```text
//! a mutation begins -> nothing is held, and nobody waits (one load)  -> it goes on
//!                      no hold of another handle concerns it         -> it goes on
//!                      else it stands in line                        -> admitted; its handle is woken, and begins it
//! a hold arrives    -> it stands in line                             -> admitted, the same way: it completes
//! ```
//!
//! The line is first come, first served, as far as its entries concern each other:
//!
//! - A hold *drains* once nobody holds any of its sectors and nothing before it in the line waits for them. Then it waits for the
//!   mutations alone that other handles have begun, and these begin no more of them until it is admitted, whatever the sectors: so it
//!   ends.
//! - A mutation is admitted once no other handle holds any of its sectors and no hold before it drains.
//!
//! A handle's holds keep off none of its own mutations. Reads, flushes and records pass.
//!
//! **No circle.** A mutation counts as begun once it has passed here *and* has its room in the budgets; one that has to wait for
//! room does not count meanwhile, and one that waits here has no room. So what a hold drains waits for nothing but the host, its
//! client's memory and its handle's polls, and what an owner does under its hold waits for nothing but that.
//!
//! **What a hold costs others.** Whoever owns one and is slow to release it delays their writes, and whoever has begun mutations and
//! does not poll delays a hold. A server that no longer serves a client drops its handle, or resets its device, which releases its
//! holds.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::{Arc, Weak};

use blk_core::storage::IoErrorKind;
use blk_core::units::Extent;

use super::budget::Waiter;
use super::sync::{AtomicUsize, Mutex, lock};

/// The holds of an image. Its cache line is read by every mutation, and written only where there is a hold.
#[repr(align(128))]
pub(super) struct Holds {
    /// Holds and entries in the line: while it is 0, mutations begin and end without the lock. Stored under it.
    ///
    /// A mutation changes [`Mutator::begun`] and then looks here; a hold is counted here and then looks there, by adding 0. The
    /// additions to one count have an order: either the hold's sees the mutation, or the mutation's sees the hold's and all before it.
    active: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    handles: Vec<Weak<Mutator>>,
    held: Vec<Held>,
    line: VecDeque<Entry>,
}

struct Held {
    owner: Arc<Mutator>,
    slot: u16,
    extent: Extent,
}

/// What stands in line.
struct Entry {
    owner: Arc<Mutator>,
    extent: Extent,
    /// Of its job, among those of the handle.
    number: u16,
    what: What,
    /// It is held, or counts as begun, and its handle has yet to take it.
    admitted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Hold { slot: u16 },
    Mutation,
}

/// A handle, as its image's holds know it. The cache line is its own.
#[repr(align(128))]
pub(super) struct Mutator {
    /// Mutations that have begun and not ended.
    begun: AtomicUsize,
    holds: Arc<Holds>,
    /// Wakes its thread.
    waiter: Arc<dyn Waiter>,
}

impl Mutator {
    /// A handle with `depth` jobs.
    pub(super) fn new(holds: &Arc<Holds>, waiter: Arc<dyn Waiter>, depth: usize) -> Arc<Self> {
        let mutator = Arc::new(Self { begun: AtomicUsize::new(0), holds: Arc::clone(holds), waiter });
        let mut state = lock(&holds.state);
        state.handles.retain(|handle| handle.strong_count() != 0);
        state.handles.push(Arc::downgrade(&mutator));
        let room = state.handles.len().saturating_mul(depth);
        state.line.reserve(room);
        drop(state);
        mutator
    }

    /// Begins a mutation, or has it stand in line by the number of its job, and returns false.
    #[inline]
    pub(super) fn begin(self: &Arc<Self>, number: u16, extent: Extent) -> bool {
        self.begun.fetch_add(1, AcqRel);
        self.holds.active.load(Acquire) == 0 || self.begin_beside_holds(number, extent)
    }

    #[cold]
    fn begin_beside_holds(self: &Arc<Self>, number: u16, extent: Extent) -> bool {
        let mut state = lock(&self.holds.state);
        if !state.keeps_off(self, extent, state.drainers()) {
            return true;
        }
        let what = What::Mutation;
        state.line.push_back(Entry { owner: Arc::clone(self), extent, number, what, admitted: false });
        self.holds.count(&state);
        self.begun.fetch_sub(1, AcqRel);
        drop(state);
        // A hold that drains may have counted it.
        self.holds.advance();
        false
    }

    /// A mutation that had begun has ended, or does not begin after all.
    #[inline]
    pub(super) fn end(&self) {
        self.begun.fetch_sub(1, AcqRel);
        if self.holds.active.load(Acquire) != 0 {
            self.holds.advance();
        }
    }

    /// Has a hold stand in line by the number of its job.
    ///
    /// # Errors
    /// The slot has one already, or waits for one: this would wait for that.
    pub(super) fn hold(self: &Arc<Self>, number: u16, slot: u16, extent: Extent) -> Result<(), IoErrorKind> {
        let mut state = lock(&self.holds.state);
        if state.has(self, slot) {
            return Err(IoErrorKind::Unsupported);
        }
        let what = What::Hold { slot };
        state.line.push_back(Entry { owner: Arc::clone(self), extent, number, what, admitted: false });
        self.holds.count(&state);
        drop(state);
        self.holds.advance();
        Ok(())
    }

    /// The number of a job that stood in line and is admitted.
    pub(super) fn take_admitted(self: &Arc<Self>) -> Option<u16> {
        let mut state = lock(&self.holds.state);
        let mine = |entry: &Entry| entry.admitted && self.is(&entry.owner);
        let at = state.line.iter().position(mine)?;
        let entry = state.line.remove(at)?;
        self.holds.count(&state);
        Some(entry.number)
    }

    /// Ends the hold of a slot, or, with `None`, all holds of this handle.
    pub(super) fn release(self: &Arc<Self>, slot: Option<u16>) {
        if self.holds.active.load(Acquire) == 0 {
            return;
        }
        let released = |held: &Held| self.is(&held.owner) && slot.is_none_or(|slot| held.slot == slot);
        lock(&self.holds.state).held.retain(|held| !released(held));
        self.holds.advance();
    }

    /// The handle goes: its holds end, and what of it stands in line leaves. What it has begun still counts until it has ended.
    pub(super) fn leave(self: &Arc<Self>) {
        let mut state = lock(&self.holds.state);
        let begun = |entry: &&Entry| entry.admitted && entry.what == What::Mutation && self.is(&entry.owner);
        self.begun.fetch_sub(state.line.iter().filter(begun).count(), AcqRel);
        state.line.retain(|entry| !self.is(&entry.owner));
        self.holds.count(&state);
        drop(state);
        self.release(None);
    }

    fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Holds {
    pub(super) fn new() -> Self {
        let state = State { handles: Vec::new(), held: Vec::new(), line: VecDeque::new() };
        Self { active: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    fn count(&self, state: &State) {
        self.active.store(state.held.len() + state.line.len(), Release);
    }

    /// Admits what may go.
    #[cold]
    fn advance(&self) {
        loop {
            let mut state = lock(&self.state);
            let admitted = state.admit();
            self.count(&state);
            drop(state);
            // Without the lock: the handle has one of its own.
            let Some(owner) = admitted else { return };
            owner.waiter.wake();
        }
    }
}

/// Whose holds drain, as far as anybody has to know.
#[derive(Clone, Copy)]
enum Drainers<'a> {
    Nobody,
    One(&'a Arc<Mutator>),
    Several,
}

impl<'a> Drainers<'a> {
    fn and(self, owner: &'a Arc<Mutator>) -> Self {
        match self {
            Self::Nobody => Self::One(owner),
            Self::One(one) if one.is(owner) => self,
            Self::One(_) | Self::Several => Self::Several,
        }
    }

    fn any_but(self, owner: &Arc<Mutator>) -> bool {
        match self {
            Self::Nobody => false,
            Self::One(one) => !one.is(owner),
            Self::Several => true,
        }
    }
}

impl State {
    /// Admits the first that may go. It stays in the line until its handle takes it.
    fn admit(&mut self) -> Option<Arc<Mutator>> {
        let at = self.first_to_go()?;
        let entry = self.line.get_mut(at)?;
        entry.admitted = true;
        let owner = Arc::clone(&entry.owner);
        match entry.what {
            What::Mutation => _ = owner.begun.fetch_add(1, AcqRel),
            What::Hold { slot } => {
                self.held.push(Held { owner: Arc::clone(&owner), slot, extent: entry.extent })
            }
        }
        Some(owner)
    }

    fn first_to_go(&self) -> Option<usize> {
        let mut drainers = Drainers::Nobody;
        for (at, entry) in self.line.iter().enumerate().filter(|(_, entry)| !entry.admitted) {
            let goes = match entry.what {
                What::Mutation => !self.keeps_off(&entry.owner, entry.extent, drainers),
                What::Hold { .. } if self.drains(at, entry) => {
                    drainers = drainers.and(&entry.owner);
                    self.is_quiet_but_for(&entry.owner)
                }
                What::Hold { .. } => false,
            };
            if goes {
                return Some(at);
            }
        }
        None
    }

    /// Whether a mutation has to wait that comes behind holds that drain.
    fn keeps_off(&self, owner: &Arc<Mutator>, extent: Extent, drainers: Drainers<'_>) -> bool {
        let others = |held: &Held| !owner.is(&held.owner) && held.extent.overlaps(extent);
        drainers.any_but(owner) || self.held.iter().any(others)
    }

    fn drainers(&self) -> Drainers<'_> {
        let drain = self.line.iter().enumerate().filter(|(at, entry)| self.drains(*at, entry));
        drain.fold(Drainers::Nobody, |drainers, (_, entry)| drainers.and(&entry.owner))
    }

    /// Whether what stands at `at` is a hold that waits for nothing but mutations that have begun.
    fn drains(&self, at: usize, entry: &Entry) -> bool {
        let before = |before: &Entry| {
            let concerns = before.what != What::Mutation || !entry.owner.is(&before.owner);
            !before.admitted && concerns && before.extent.overlaps(entry.extent)
        };
        matches!(entry.what, What::Hold { .. })
            && !entry.admitted
            && !self.held.iter().any(|held| held.extent.overlaps(entry.extent))
            && !self.line.range(..at).any(before)
    }

    /// Whether no other handle has begun a mutation that has not ended. One that is gone may have some yet, whose jobs keep it.
    fn is_quiet_but_for(&self, owner: &Arc<Mutator>) -> bool {
        let handles = self.handles.iter().filter_map(Weak::upgrade);
        handles.filter(|handle| !handle.is(owner)).all(|handle| handle.begun.fetch_add(0, AcqRel) == 0)
    }

    fn has(&self, owner: &Arc<Mutator>, slot: u16) -> bool {
        let waits = |entry: &Entry| entry.what == What::Hold { slot } && owner.is(&entry.owner);
        let holds = |held: &Held| held.slot == slot && owner.is(&held.owner);
        self.held.iter().any(holds) || self.line.iter().any(waits)
    }
}
