//! History of each change: when it was submitted, how it ended, and since when it is stable.
//!
//! The rules are those of the [storage contract](blk_core::storage::Storage) and of nothing else: the devices' own ordering
//! code, which is what is under test, has no part in this.

use std::collections::{HashMap, HashSet, VecDeque};

use blk_core::op::Op;
use blk_core::storage::{Cache, Info, IoErrorKind};
use blk_core::units::Extent;

use super::event::{Data, Event, What};

/// Index of a [`Change`] in [`History::changes`].
pub(crate) type ChangeId = u32;

/// A write, write-zeroes or discard that the host was given and may have done.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) extent: Extent,
    pub(crate) content: Content,
    /// Its record.
    pub(crate) submitted: u64,
    pub(crate) end: End,
    /// The record that makes it stable.
    pub(crate) stable: Option<u64>,
}

/// What a change leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The bytes from here on in the file.
    Data(u64),
    Zeroes,
    /// Zeroes, or what was there.
    Discarded,
}

/// How a change ended, and by which record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It has not.
    InFlight,
    Done(u64),
    /// An error, a fence or the death of the server: it may have happened or not.
    Perhaps(u64),
}

impl End {
    /// The record; after all others if there is none.
    pub(crate) const fn at(self) -> u64 {
        match self {
            Self::InFlight => u64::MAX,
            Self::Done(at) | Self::Perhaps(at) => at,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct History {
    /// In the order of submission.
    pub(crate) changes: Vec<Change>,
    /// What each record does to the set of images that a power cut can leave, in order; records that do nothing are left out.
    pub(crate) steps: Vec<(u64, Step)>,
}

/// What a record does to the set of images that a power cut can leave.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A change may have happened from here on.
    Begins(ChangeId),
    /// Changes are stable from here on.
    Stable(Vec<ChangeId>),
    /// A mark: the set stays, and more is owed.
    Mark,
}

/// What is in flight.
enum Pending {
    Change {
        id: ChangeId,
        /// Its success says that it is stable.
        durable: bool,
    },
    Flush,
    Other,
}

struct Builder {
    history: History,
    info: Option<Info>,
    /// By the record of its submission; with its handle.
    pending: HashMap<u64, (u32, Pending)>,
    /// Completed changes that no flush has covered, in the order of their completion, with its record.
    volatile: VecDeque<(u64, ChangeId)>,
    /// Submissions that the host did not take, or refused: they never touched the medium.
    never: HashSet<u64>,
}

impl History {
    /// # Errors
    /// The record that cannot be, and why.
    pub(crate) fn of(events: &[Event]) -> Result<Self, (u64, &'static str)> {
        // Known from later records: what was refused has never touched the medium.
        let never = events.iter().filter_map(|event| match event.what {
            What::Withdrawn { submission } => Some(submission),
            What::Complete { submission, result: Err(error) } if is_refusal(error.kind) => Some(submission),
            _ => None,
        });
        let mut builder = Builder {
            history: Self::default(),
            info: None,
            pending: HashMap::new(),
            volatile: VecDeque::new(),
            never: never.collect(),
        };
        for (event, at) in events.iter().zip(0..) {
            builder.event(at, event).map_err(|what| (at, what))?;
        }
        Ok(builder.history)
    }

    pub(crate) fn change(&self, id: ChangeId) -> &Change {
        &self.changes[id as usize]
    }
}

impl Builder {
    fn event(&mut self, at: u64, event: &Event) -> Result<(), &'static str> {
        match &event.what {
            What::Session { info, .. } => {
                // The server before is dead, and with it what it had in flight: some of that may have landed.
                for (_, pending) in std::mem::take(&mut self.pending).into_values() {
                    self.ends_perhaps(pending, at);
                }
                self.info = Some(*info);
            }
            What::Info(info) => self.info = Some(*info),
            What::Submit { op, data } => self.submit(at, event.handle, *op, *data)?,
            What::Complete { submission, result } => {
                let (handle, pending) = self.take(*submission)?;
                if handle != event.handle {
                    return Err("it completes an operation of another handle");
                }
                match result {
                    Ok(()) => self.succeeds(at, *submission, pending),
                    Err(_) => self.ends_perhaps(pending, at),
                }
            }
            What::Withdrawn { submission } => {
                self.take(*submission)?;
            }
            What::Fence => {
                let fenced: Vec<_> =
                    self.pending.extract_if(|_, (handle, _)| *handle == event.handle).collect();
                for (_, (_, pending)) in fenced {
                    self.ends_perhaps(pending, at);
                }
            }
            What::Mark(_) => self.history.steps.push((at, Step::Mark)),
            What::End => {}
        }
        Ok(())
    }

    fn submit(&mut self, at: u64, handle: u32, op: Op, data: Data) -> Result<(), &'static str> {
        let info = self.info.as_ref().ok_or("an operation comes before the first session")?;
        let content = match (op, data) {
            (Op::Write { .. }, Data::At(offset)) => Some(Content::Data(offset)),
            (Op::Write { .. }, Data::Zeroes) | (Op::WriteZeroes { .. }, _) => Some(Content::Zeroes),
            // Elsewhere a discard leaves the data.
            (Op::Discard { .. }, _) if info.discard => Some(Content::Discarded),
            _ => None,
        };
        let durable = match op {
            _ if info.cache == Cache::Unsafe => false,
            Op::Write { fua, .. } => info.cache == Cache::WriteThrough || fua && info.fua,
            _ => info.range_stable,
        };
        let extent = op.extent().filter(|extent| extent.sectors != 0 && extent.end().is_some());
        let pending = match (op, content, extent) {
            (Op::Flush, ..) => Pending::Flush,
            (_, Some(content), Some(extent)) if !self.never.contains(&at) => {
                let id = self.history.changes.len() as ChangeId;
                let change = Change { extent, content, submitted: at, end: End::InFlight, stable: None };
                self.history.changes.push(change);
                self.history.steps.push((at, Step::Begins(id)));
                Pending::Change { id, durable }
            }
            _ => Pending::Other,
        };
        self.pending.insert(at, (handle, pending));
        Ok(())
    }

    fn take(&mut self, submission: u64) -> Result<(u32, Pending), &'static str> {
        self.pending.remove(&submission).ok_or("it ends an operation that is not in flight")
    }

    fn succeeds(&mut self, at: u64, submission: u64, pending: Pending) {
        match pending {
            Pending::Change { id, durable } => {
                self.change(id).end = End::Done(at);
                if durable {
                    self.stable(at, vec![id]);
                } else {
                    self.volatile.push_back((at, id));
                }
            }
            Pending::Flush if self.info.is_some_and(|info| info.cache != Cache::Unsafe) => {
                // What completed, for whoever polls, before the flush was submitted.
                let covered = self.volatile.partition_point(|&(done, _)| done < submission);
                let ids = self.volatile.drain(..covered).map(|(_, id)| id).collect();
                self.stable(at, ids);
            }
            Pending::Flush | Pending::Other => {}
        }
    }

    fn stable(&mut self, at: u64, ids: Vec<ChangeId>) {
        for &id in &ids {
            self.change(id).stable = Some(at);
        }
        if !ids.is_empty() {
            self.history.steps.push((at, Step::Stable(ids)));
        }
    }

    fn ends_perhaps(&mut self, pending: Pending, at: u64) {
        if let Pending::Change { id, .. } = pending {
            self.change(id).end = End::Perhaps(at);
        }
    }

    fn change(&mut self, id: ChangeId) -> &mut Change {
        &mut self.history.changes[id as usize]
    }
}

/// Whether an error says that nothing was attempted.
const fn is_refusal(kind: IoErrorKind) -> bool {
    matches!(kind, IoErrorKind::ReadOnly | IoErrorKind::OutOfRange | IoErrorKind::Unsupported)
}
