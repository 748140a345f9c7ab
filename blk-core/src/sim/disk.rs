//! The disk that loses power.
//!
//! Its physics is what a host file or device does in a [`CacheMode`]; what it *says* about itself is that mode's
//! [`Info`]. The two agree unless a mutant makes them disagree.
//!
//! - An operation is done at once, when it is submitted, or is in flight until it completes: [`SimDisk::choose`].
//! - A mutation takes effect on the live image when it completes, and may be on the medium from its submission on.
//! - Completed, it is stable at once (`O_DSYNC`, native FUA) or volatile until a flush that was submitted after its
//!   completion was polled has completed. Until then any subset of the volatile sectors may be on the medium. Zeroes
//!   and discards are volatile even under `O_DSYNC`: holes are metadata.
//! - A sector is never torn, and sectors persist independently of each other. So what a power cut can leave is one set
//!   of values for each sector.
//! - A record is stable once its store has completed; until then it may hold either.
//! - While one handle holds sectors, what the others have in flight for them does not complete. It may have been begun.
//! - A failed flush or durable write may have persisted anything, and latches: flushes and mutations fail from then on.

mod choice;
mod config;
mod handle;
mod medium;
mod segments;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

use serde::{Serialize, Serializer};

use crate::op::Op;
use crate::sim::memory::SimMemory;
use crate::sim::value::{INITIAL, ValueSet};
use crate::storage::{CacheMode, Completion};
use crate::units::StateKey;

use medium::{DiskState, Sector, Work};

pub use choice::{AtOnce, Choices, DoneAtOnce, Fate};
pub use config::DiskConfig;
pub use handle::SimHandle;
pub use medium::TRACKED;

/// Several handles to one disk.
#[derive(Debug)]
pub struct SimDisk {
    shared: Rc<RefCell<DiskState>>,
    handles: Vec<SimHandle>,
}

impl SimDisk {
    /// A disk of which every sector holds [`INITIAL`].
    #[must_use]
    pub fn new(config: &DiskConfig) -> Self {
        let shared = Rc::new(RefCell::new(DiskState {
            writes_stable: config.mode.dsync(),
            flushes: !matches!(config.mode, CacheMode::Unsafe),
            latched: false,
            strayed: false,
            sectors: [INITIAL; TRACKED].map(Sector::holding),
            records: Vec::new(),
            holds: Vec::new(),
            in_flight: std::vec![Vec::new(); config.handles],
            choices: Choices::default(),
        }));
        let handles = (0..config.handles as u8)
            .map(|index| SimHandle::new(index, config, config.info(), Rc::clone(&shared)))
            .collect();
        Self { shared, handles }
    }

    /// The handles, for a front.
    pub fn handles(&mut self) -> &mut [SimHandle] {
        &mut self.handles
    }

    /// Whether nothing is in flight on any handle, and no completion waits to be polled.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        !self.has_unpolled() && self.shared.borrow().in_flight.iter().all(Vec::is_empty)
    }

    /// Whether a completion waits to be polled.
    #[must_use]
    pub fn has_unpolled(&self) -> bool {
        self.handles.iter().any(|handle| !handle.completed.is_empty())
    }

    /// Operations in flight: handle, position among those of the handle, and the operation.
    #[must_use]
    pub fn in_flight(&self) -> Vec<(usize, usize, Op)> {
        let shared = self.shared.borrow();
        let handles = shared.in_flight.iter().enumerate();
        let each = handles.flat_map(|(handle, in_flight)| {
            in_flight.iter().enumerate().map(move |(index, pending)| (handle, index, pending.op))
        });
        each.collect()
    }

    /// Whether an operation in flight can complete: it does not wait for a hold of another handle to end.
    #[must_use]
    pub fn can_complete(&self, handle: usize, index: usize) -> bool {
        let shared = self.shared.borrow();
        let pending = shared.in_flight.get(handle).and_then(|in_flight| in_flight.get(index));
        pending.is_some_and(|pending| !shared.waits(handle, &pending.work, pending.op))
    }

    /// Whether nothing can go on unless a guest or a device does: everything in flight waits for holds to end.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        if self.shared.borrow().holds.is_empty() {
            return false;
        }
        let in_flight = self.in_flight();
        let waits = |&(handle, index, _): &(usize, usize, Op)| !self.can_complete(handle, index);
        !in_flight.is_empty() && !self.has_unpolled() && in_flight.iter().all(waits)
    }

    /// Whether an injected error can hit this operation: a flush, a record's store, or a write that must be stable when it completes.
    #[must_use]
    pub fn can_fail(&self, handle: usize, index: usize) -> bool {
        let shared = self.shared.borrow();
        let pending = shared.in_flight.get(handle).and_then(|in_flight| in_flight.get(index));
        pending.is_some_and(|pending| shared.can_fail(&pending.work))
    }

    /// Chooses which of the operations that are submitted next are done at once. Until then all are in flight.
    pub fn choose(&mut self, at_once: AtOnce) {
        self.shared.borrow_mut().choices = Choices::new(at_once);
    }

    /// What came of the choice, which is over.
    pub fn take_choices(&mut self) -> Choices {
        core::mem::take(&mut self.shared.borrow_mut().choices)
    }

    /// Completes an operation in flight: its effect happens now, its completion waits to be polled.
    ///
    /// # Panics
    /// If there is no such operation, or it [cannot complete](Self::can_complete).
    pub fn complete(&mut self, memory: &SimMemory, handle: usize, index: usize, fate: Fate) {
        assert!(self.can_complete(handle, index), "it waits for a hold to end");
        let operation = self.shared.borrow_mut().in_flight[handle].remove(index);
        let tag = operation.tag;
        let handle = &mut self.handles[handle];
        let result = handle.perform(memory, operation, fate);
        handle.completed.push(Completion { tag, result });
    }

    /// All values that `sector` can hold if the power is cut now.
    #[must_use]
    pub fn reachable(&self, sector: usize) -> ValueSet {
        let shared = self.shared.borrow();
        let settled = shared.sectors[sector].settled_or_volatile();
        shared.in_flight.iter().flatten().fold(settled, |set, pending| match pending.work {
            Work::Mutate { changes, .. } => set.with(changes[sector].new_values()),
            _ => set,
        })
    }

    /// All that a record can hold if the power is cut now.
    #[must_use]
    pub fn reachable_record(&self, key: StateKey) -> Vec<Vec<u8>> {
        let shared = self.shared.borrow();
        let record = shared.records.iter().find(|record| record.key == key);
        let mut all = record.map_or_else(
            || std::vec![Vec::new()],
            |record| core::iter::once(&record.live).chain(&record.perhaps).cloned().collect(),
        );
        all.extend(shared.in_flight.iter().flatten().filter_map(|pending| match &pending.work {
            Work::Store(of, bytes) if *of == key => Some(bytes.clone()),
            _ => None,
        }));
        all
    }

    /// The value that a read of `sector` would return now.
    #[must_use]
    pub fn live(&self, sector: usize) -> u8 {
        self.shared.borrow().sectors[sector].live
    }

    /// Whether a sector that no program uses was written.
    #[must_use]
    pub fn strayed(&self) -> bool {
        self.shared.borrow().strayed
    }

    /// Replaces the contents of an idle disk, as after a power cut that left `values`.
    pub fn fill(&mut self, values: [u8; TRACKED]) {
        self.shared.borrow_mut().sectors = values.map(Sector::holding);
    }
}

impl Clone for SimDisk {
    fn clone(&self) -> Self {
        let shared = Rc::new(RefCell::new(self.shared.borrow().clone()));
        let mut handles = self.handles.clone();
        for handle in &mut handles {
            handle.shared = Rc::clone(&shared);
        }
        Self { shared, handles }
    }
}

impl Serialize for SimDisk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&*self.shared.borrow(), &self.handles).serialize(serializer)
    }
}
