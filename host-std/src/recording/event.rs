//! Events: the records of a recording, decoded.

use blk_core::op::Op;
use blk_core::storage::{Info, IoError};

/// One record. Its number is its place in [`Log::events`](super::Log::events).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The handle that it concerns, numbered within the session.
    pub handle: u32,
    /// What happened.
    pub what: What,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A server begins.
    Session {
        /// Seconds since 1970.
        time: u64,
        /// Its process.
        process: u32,
        /// The storage under it.
        info: Info,
    },
    /// The storage has changed: it was resized.
    Info(Info),
    /// An operation is given to the host.
    Submit {
        /// The operation.
        op: Op,
        /// The data, if it is a write.
        data: Data,
    },
    /// A completion was polled.
    Complete {
        /// The record of the submission.
        submission: u64,
        /// How it ended.
        result: Result<(), IoError>,
    },
    /// The host took nothing.
    Withdrawn {
        /// The record of the submission.
        submission: u64,
    },
    /// Nothing in flight on the handle lands any more.
    Fence,
    /// What a harness noted.
    Mark(String),
    /// The server stopped in order.
    End,
}

/// Where the data of a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Not a write, or one of no sectors.
    None,
    /// It is all zeroes.
    Zeroes,
    /// In the file, from this byte on.
    At(u64),
}

/// A mark, and the first position of which it is part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The position right after it.
    pub position: u64,
    /// What it says.
    pub text: String,
}
