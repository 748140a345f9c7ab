//! The command in execution, and whose an operation of the storage is.

use blk_core::units::Extent;

use super::failure::Failure;
use crate::command::{Direction, Power};

/// Result of handing a command to a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Taken {
    /// It is in execution, or has ended: [`Drive::poll`](super::Drive::poll).
    NonQueued,
    /// It is queued.
    Queued,
    /// It ends the queue, when what the storage has of it is done: [`Drive::queue_error`](super::Drive::queue_error).
    Refused,
}

/// Effect of a completed flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Then {
    Nothing,
    CacheOff,
    Power(Power),
}

/// The command in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Job {
    Idle,
    /// `moving` sectors of `left` are with the storage.
    Transfer {
        direction: Direction,
        left: Extent,
        fua: bool,
        moving: u64,
    },
    /// As a read, without a host.
    Verify {
        left: Extent,
        moving: u64,
    },
    Flush(Then),
    ToHost {
        bytes: u32,
    },
    /// The list of ranges of a TRIM.
    FromHost {
        bytes: u32,
    },
    /// Entry `next` of the ranges in the staging buffer, all of which are valid, is due or with the storage.
    Trim {
        next: u32,
        entries: u32,
    },
    Ended(Result<(), Failure>),
}

/// Whose an operation in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Owner {
    /// The command in execution.
    NonQueued,
    /// The queued command with this tag.
    Queued(u8),
}
