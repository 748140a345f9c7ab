//! The disk that loses power.
//!
//! Its physics is what a host file or device does in a [`CacheMode`]; what it *says* about itself is that mode's
//! [`Info`]. The two agree unless a mutant makes them disagree.
//!
//! - A mutation takes effect on the live image when it completes, and may be on the medium from its submission on.
//! - Completed, it is stable at once (`O_DSYNC`, native FUA) or volatile until a flush that was submitted after its
//!   completion was polled has completed. Until then any subset of the volatile sectors may be on the medium. Zeroes
//!   and discards are volatile even under `O_DSYNC`: holes are metadata.
//! - A sector is never torn, and sectors persist independently of each other. So what a power cut can leave is one set
//!   of values for each sector.
//! - A failed flush or durable write may have persisted anything, and latches: flushes and mutations fail from then on.

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
use crate::storage::{CacheMode, Completion, IoError, IoErrorKind};
use crate::units::Lba;

use medium::{DiskState, InFlight, Sector, Work};

pub use config::DiskConfig;
pub use handle::SimHandle;
pub use medium::TRACKED;

/// End of an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It succeeds, unless the latch or a wrong range fails it.
    Succeeds,
    /// The host reports an error.
    Fails,
}

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
        self.handles.iter().all(|handle| handle.in_flight.is_empty() && handle.completed.is_empty())
    }

    /// Whether a completion waits to be polled.
    #[must_use]
    pub fn has_unpolled(&self) -> bool {
        self.handles.iter().any(|handle| !handle.completed.is_empty())
    }

    /// Operations in flight: handle, position among those of the handle, and the operation.
    pub fn in_flight(&self) -> impl Iterator<Item = (usize, usize, Op)> {
        self.handles.iter().enumerate().flat_map(|(handle, h)| {
            h.in_flight.iter().enumerate().map(move |(index, pending)| (handle, index, pending.op))
        })
    }

    /// Whether an injected error can hit this operation: a flush, or a write that must be stable when it completes.
    #[must_use]
    pub fn can_fail(&self, handle: usize, index: usize) -> bool {
        let shared = self.shared.borrow();
        let pending = self.handles.get(handle).and_then(|handle| handle.in_flight.get(index));
        !shared.latched
            && pending.is_some_and(|pending| match pending.work {
                Work::Flush { .. } => shared.flushes,
                Work::Mutate { stable, .. } => stable,
                Work::Read(_) | Work::Refused(_) => false,
            })
    }

    /// Completes an operation in flight: its effect happens now, its completion waits to be polled.
    ///
    /// # Panics
    /// If there is no such operation.
    pub fn complete(&mut self, memory: &SimMemory, handle: usize, index: usize, fate: Fate) {
        let InFlight { tag, op, work } = self.handles[handle].in_flight.remove(index);
        let mut shared = self.shared.borrow_mut();
        let result = match work {
            Work::Refused(kind) => Err(kind.into()),
            Work::Read(segments) => {
                let data = shared.read(op);
                self.handles[handle].scatter(memory, tag.slot, &segments, &data)
            }
            Work::Mutate { changes, .. } if shared.latched => {
                shared.persist_perhaps(handle, tag, changes);
                Err(IoErrorKind::Latched.into())
            }
            Work::Mutate { changes, stable } => match fate {
                Fate::Succeeds => {
                    let settled = shared.apply(handle, tag, changes, stable);
                    uncover(&mut self.handles, settled);
                    Ok(())
                }
                Fate::Fails => {
                    shared.persist_perhaps(handle, tag, changes);
                    uncover(&mut self.handles, shared.fail());
                    Err(IoErrorKind::Medium.into())
                }
            },
            Work::Flush { .. } if shared.latched => Err(IoErrorKind::Latched.into()),
            Work::Flush { covered } => match fate {
                Fate::Succeeds => {
                    let settled = shared.flush(handle, covered);
                    uncover(&mut self.handles, settled);
                    Ok(())
                }
                Fate::Fails => {
                    let lba = shared.sectors.iter().position(|s| !s.volatile.is_empty());
                    uncover(&mut self.handles, shared.fail());
                    Err(IoError { kind: IoErrorKind::Medium, lba: lba.map(|sector| Lba(sector as u64)) })
                }
            },
        };
        self.handles[handle].completed.push(Completion { tag, result });
    }

    /// All values that `sector` can hold if the power is cut now.
    #[must_use]
    pub fn reachable(&self, sector: usize) -> ValueSet {
        let in_flight = self.handles.iter().flat_map(|handle| &handle.in_flight);
        in_flight.fold(self.shared.borrow().sectors[sector].settled_or_volatile(), |set, pending| {
            match pending.work {
                Work::Mutate { changes, .. } => set.with(changes[sector].new_values()),
                _ => set,
            }
        })
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

/// Takes entries that were settled off the coverage of the flushes in flight.
fn uncover(handles: &mut [SimHandle], settled: [u8; TRACKED]) {
    for pending in handles.iter_mut().flat_map(|handle| &mut handle.in_flight) {
        if let Work::Flush { covered } = &mut pending.work {
            for (covered, settled) in covered.iter_mut().zip(settled) {
                *covered = covered.saturating_sub(settled);
            }
        }
    }
}
