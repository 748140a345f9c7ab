//! The queue of a drive: its commands by tag, and whether it takes any.

use core::fmt;

use blk_core::storage::{IoError, IoErrorKind};
use blk_core::units::Extent;

use super::extents::after;
use super::failure::Failure;
use crate::command::Direction;

/// The queued commands, by tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Queue<const N: usize> {
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    pub(super) entries: [Entry; N],
    pub(super) state: State,
    /// The tag that the storage had no room for last: it is the first to be offered again.
    pub(super) turn: u8,
}

/// A queued command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) enum Entry {
    Free,
    /// A read with FUA: what others have written is to be made stable first.
    Unflushed(Extent),
    /// The storage flushes for it.
    Flushing(Extent),
    /// The front is to supply segments.
    Due(Transfer),
    /// `sectors` of it are with the storage; those of a read, if `staged`, go to the staging buffer.
    Moving {
        transfer: Transfer,
        sectors: u64,
        staged: bool,
    },
    /// `sectors` of a read are in the staging buffer of `slot`, for the front to take.
    Staged {
        transfer: Transfer,
        sectors: u64,
        slot: u16,
    },
    /// It has ended well.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Transfer {
    pub(super) direction: Direction,
    pub(super) left: Extent,
    pub(super) fua: bool,
}

/// Whether commands are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) enum State {
    Open,
    /// The queue ends when nothing of it is with the storage any more.
    Ending(QueueError),
    /// It has ended, and the host was told.
    Closed(QueueError),
}

/// Why the queue ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
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

    pub(super) const fn new() -> Self {
        Self { entries: [Entry::Free; N], state: State::Open, turn: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| *entry == Entry::Free)
    }

    pub(super) fn entry(&self, tag: u8) -> Entry {
        self.entries.get(usize::from(tag)).copied().unwrap_or(Entry::Free)
    }

    pub(super) fn set(&mut self, tag: u8, entry: Entry) {
        if let Some(place) = self.entries.get_mut(usize::from(tag)) {
            *place = entry;
        }
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
        *self = Self { state, ..Self::new() };
    }

    /// The tags from that on whose turn it is.
    pub(super) fn tags(&self) -> impl Iterator<Item = u8> + use<N> {
        (self.turn..Self::TAGS).chain(0..self.turn)
    }
}

/// A command of which `sectors` more have moved.
pub(super) fn moved(transfer: Transfer, sectors: u64) -> Entry {
    match after(transfer.left, sectors) {
        Some(left) => Entry::Due(Transfer { left, ..transfer }),
        None => Entry::Ended,
    }
}

/// A medium error has an address in the log: if the storage names none, that of the piece that failed.
pub(super) fn located(error: IoError, entry: Entry) -> IoError {
    match (error, entry) {
        (IoError { kind: IoErrorKind::Medium, lba: None }, Entry::Moving { transfer, .. }) => {
            IoError { lba: Some(transfer.left.start), ..error }
        }
        _ => error,
    }
}
