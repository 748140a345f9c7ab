//! The queue of a drive: its commands by tag, and whether it takes any.

use core::fmt;

use blk_core::storage::{IoError, IoErrorKind};
use blk_core::units::{Extent, Lba};

use super::extents::after;
use super::failure::Failure;
use super::tags::{Tags, bit};
use crate::command::Direction;

/// The queued commands, by tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Queue<const N: usize> {
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    entries: [Entry; N],
    /// The tags whose entries are of each [`Kind`], a bit each: nobody has to look through the entries.
    tags: [u32; KINDS],
    pub(super) state: State,
    /// The tag that the storage had no room for last: it is the first to be offered again.
    pub(super) turn: u8,
}

/// A queued command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Entry {
    Free,
    /// A read with FUA: what others have written is to be made stable first.
    Unflushed(Transfer),
    /// The storage flushes for it.
    Flushing(Transfer),
    /// The front is to supply segments.
    Due(Transfer),
    /// `sectors` of it are with the storage; those of a read, if `staged`, go to the staging buffer.
    Moving {
        transfer: Transfer,
        sectors: u32,
        staged: bool,
    },
    /// `sectors` of a read are in the staging buffer of `slot`, for the front to take.
    Staged {
        transfer: Transfer,
        sectors: u32,
        slot: u16,
    },
    /// It has ended well.
    Ended,
}

/// Kind of an [`Entry`].
#[derive(Clone, Copy)]
enum Kind {
    Free,
    Unflushed,
    Due,
    /// The storage has something of it.
    Moving,
    Staged,
    Ended,
}

const KINDS: usize = 6;

impl Entry {
    const fn kind(&self) -> Kind {
        match self {
            Self::Free => Kind::Free,
            Self::Unflushed(_) => Kind::Unflushed,
            Self::Due(_) => Kind::Due,
            Self::Flushing(_) | Self::Moving { .. } => Kind::Moving,
            Self::Staged { .. } => Kind::Staged,
            Self::Ended => Kind::Ended,
        }
    }
}

/// What is left of a queued command. Its length has 32 bits: that is 2 TiB, and 65,536 blocks are the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Transfer {
    start: Lba,
    sectors: u32,
    pub(super) direction: Direction,
    pub(super) fua: bool,
}

impl Transfer {
    /// A transfer of `extent`; `None` if that is too long.
    pub(super) fn new(direction: Direction, extent: Extent, fua: bool) -> Option<Self> {
        Some(Self { start: extent.start, sectors: u32::try_from(extent.sectors).ok()?, direction, fua })
    }

    pub(super) fn left(self) -> Extent {
        Extent { start: self.start, sectors: self.sectors.into() }
    }
}

/// Whether commands are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum State {
    Open,
    /// The queue ends when nothing of it is with the storage any more.
    Ending(QueueError),
    /// It has ended, and the host was told.
    Closed(QueueError),
}

/// Why the queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct QueueError {
    /// The queued command that failed; `None` for a command that was not a queued one.
    pub tag: Option<u8>,
    /// Why.
    pub failure: Failure,
    /// How the host is told.
    pub reply: Reply,
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tag {
            Some(tag) => write!(f, "queued command {tag}: {}", self.failure),
            None => write!(f, "a command that cannot be queued: {}", self.failure),
        }
    }
}

impl core::error::Error for QueueError {}

/// Way in which a host is told that a queue has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Reply {
    /// As the answer to the command that has just come.
    Register,
    /// By Set Device Bits.
    SetDeviceBits,
}

/// A queued command of which nothing is with the storage: [`Drive::transfer_queued`](super::Drive::transfer_queued).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Due {
    /// Its tag.
    pub tag: u8,
    /// Which way.
    pub direction: Direction,
    /// What is left of it.
    pub left: Extent,
}

/// A piece of a queued read in the staging buffer: [`Drive::unstage_queued`](super::Drive::unstage_queued).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Staged {
    /// Whose.
    pub tag: u8,
    /// Whose staging buffer.
    pub slot: u16,
    /// How long.
    pub bytes: u32,
}

/// Commands that the queue admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// This command.
    Open,
    /// Not this one: it is not a queued command, and others are outstanding.
    Mixed,
    /// Nothing but the log.
    Closed,
}

impl<const N: usize> Queue<N> {
    pub(super) const TAGS: u8 = {
        assert!(N > 0 && N <= 32, "a tag has 5 bits");
        N as u8
    };

    /// Every tag that there is.
    const ALL: u32 = u32::MAX >> (32 - Self::TAGS);

    const EMPTY: [u32; KINDS] = [Self::ALL, 0, 0, 0, 0, 0];

    pub(super) const fn new() -> Self {
        Self { entries: [Entry::Free; N], tags: Self::EMPTY, state: State::Open, turn: 0 }
    }

    /// In place: a queue is too large to be made anew.
    fn clear(&mut self, state: State) {
        self.entries.fill(Entry::Free);
        (self.tags, self.state, self.turn) = (Self::EMPTY, state, 0);
    }

    /// The tags of a kind, a bit each.
    const fn tags(&self, kind: Kind) -> u32 {
        let [free, unflushed, due, moving, staged, ended] = self.tags;
        match kind {
            Kind::Free => free,
            Kind::Unflushed => unflushed,
            Kind::Due => due,
            Kind::Moving => moving,
            Kind::Staged => staged,
            Kind::Ended => ended,
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.tags(Kind::Free) == Self::ALL
    }

    pub(super) fn entry(&self, tag: u8) -> Entry {
        self.entries.get(usize::from(tag)).copied().unwrap_or(Entry::Free)
    }

    #[inline]
    pub(super) fn set(&mut self, tag: u8, entry: Entry) {
        let Some(place) = self.entries.get_mut(usize::from(tag)) else { return };
        let (before, after) = (place.kind(), entry.kind());
        *place = entry;
        if let Some(tags) = self.tags.get_mut(before as usize) {
            *tags &= !bit(tag);
        }
        if let Some(tags) = self.tags.get_mut(after as usize) {
            *tags |= bit(tag);
        }
    }

    /// The commands that a flush is to be submitted for.
    pub(super) const fn unflushed(&self) -> Tags {
        Tags::new(self.tags(Kind::Unflushed))
    }

    /// The commands that wait for segments, from the one on whose turn it is.
    pub(super) const fn due(&self) -> Tags {
        Tags::from(self.turn, self.tags(Kind::Due))
    }

    /// The lowest command of which the staging buffer holds a piece.
    pub(super) fn staged(&self) -> Option<u8> {
        Tags::new(self.tags(Kind::Staged)).next()
    }

    /// Frees what has ended, and returns the tags, a bit each.
    pub(super) fn take_ended(&mut self) -> u32 {
        let ended = self.tags(Kind::Ended);
        for tag in Tags::new(ended) {
            if let Some(place) = self.entries.get_mut(usize::from(tag)) {
                *place = Entry::Free;
            }
        }
        let [free, .., before] = &mut self.tags;
        (*free, *before) = (*free | ended, 0);
        ended
    }

    /// The queue has ended: what was outstanding is aborted.
    pub(super) fn close(&mut self, error: QueueError) {
        self.clear(State::Closed(error));
    }

    /// The log has been read.
    pub(super) const fn reopen(&mut self) {
        self.state = State::Open;
    }

    /// A reset has taken all commands. An error stays in the log (`keep_error`) unless the reset reaches the drive.
    pub(super) fn drop_all(&mut self, keep_error: bool) {
        let state = match self.state {
            State::Ending(error) | State::Closed(error) if keep_error => State::Closed(error),
            _ => State::Open,
        };
        self.clear(state);
    }
}

/// A command of which `sectors` more have moved.
pub(super) fn moved(transfer: Transfer, sectors: u32) -> Entry {
    let left = after(transfer.left(), sectors.into());
    match left.and_then(|left| Transfer::new(transfer.direction, left, transfer.fua)) {
        Some(transfer) => Entry::Due(transfer),
        None => Entry::Ended,
    }
}

/// A medium error has an address in the log: if the storage names none, that of the piece that failed.
pub(super) fn located(error: IoError, entry: Entry) -> IoError {
    match (error, entry) {
        (IoError { kind: IoErrorKind::Medium, lba: None }, Entry::Moving { transfer, .. }) => {
            IoError { lba: Some(transfer.start), ..error }
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let transfer = Transfer { start: Lba(3), sectors: 9, direction: Direction::Read, fua: true };
        prop_oneof![
            Just(Entry::Free),
            Just(Entry::Unflushed(transfer)),
            Just(Entry::Flushing(transfer)),
            Just(Entry::Due(transfer)),
            Just(Entry::Moving { transfer, sectors: 4, staged: true }),
            Just(Entry::Staged { transfer, sectors: 4, slot: 1 }),
            Just(Entry::Ended),
        ]
    }

    /// Under Miri one takes seconds.
    const CASES: u32 = if cfg!(miri) { 2 } else { 256 };

    proptest! {
        #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

        /// What the bits say is what a look through the entries finds.
        #[test]
        fn tags_are_those_of_the_entries(sets in proptest::collection::vec((0..8_u8, entry()), 0..40), turn in 0..7_u8) {
            let mut queue = Queue::<7>::new();
            queue.turn = turn;
            for (tag, entry) in sets {
                queue.set(tag, entry);
            }
            let found = |kind: fn(&Entry) -> bool| -> Vec<u8> {
                (0..7).filter(|&tag| kind(&queue.entry(tag))).collect()
            };
            let due = found(|entry| matches!(entry, Entry::Due(_)));
            let (later, first): (Vec<u8>, Vec<u8>) = due.into_iter().partition(|&tag| tag < turn);
            prop_assert_eq!(queue.due().collect::<Vec<_>>(), [first, later].concat());
            let unflushed = found(|entry| matches!(entry, Entry::Unflushed(_)));
            prop_assert_eq!(queue.unflushed().collect::<Vec<_>>(), unflushed);
            let staged = found(|entry| matches!(entry, Entry::Staged { .. }));
            prop_assert_eq!(queue.staged(), staged.first().copied());
            prop_assert_eq!(queue.is_empty(), found(|entry| *entry == Entry::Free).len() == 7);
            let ended = found(|entry| *entry == Entry::Ended);
            prop_assert_eq!(Tags::new(queue.take_ended()).collect::<Vec<_>>(), ended);
            prop_assert_eq!(queue.take_ended(), 0);
        }
    }
}
