//! A SCSI disk: command blocks in, ordered operations on a [`Storage`](blk_core::storage::Storage) out.
//!
//! ```text
//! wire (bytes) -> command (a table, decoded into an enum) -> task_set (SAM order) -> disk (executes)
//!      -> blk_core::order::Sequencer -> Storage -> status and sense
//! ```
//!
//! A transport (virtio-scsi, say) owns what the guest shares with it: it [enqueues](LogicalUnit::enqueue) tasks, lends
//! guest memory through [`Transport`], and takes what [`LogicalUnit::poll`] says has ended.
//!
//! The texts: SAM-5 r21, SPC-4 r37, SBC-3 r36 and, for what is obsolete, SBC-2 r16. They are cited by the titles of their
//! clauses, which are the names of commands, pages and formats.
//!
//! `no_std`, no allocation, no `unsafe`, no panic that a guest can reach. **Not there**: protection information, persistent
//! reservations, ACA, more than one I_T nexus, linked and third-party-copy commands, log pages, 32-byte command blocks.

#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::arithmetic_side_effects,
        clippy::panic,
        clippy::unreachable
    )
)]

#[cfg(any(test, feature = "sim"))]
extern crate std;

pub mod command;
mod config;
pub mod disk;
pub mod sense;
#[cfg(feature = "sim")]
pub mod sim;
pub mod task_set;
pub mod transport;
pub mod wire;

pub use command::Cdb;
pub use config::Config;
pub use disk::{Ended, LogicalUnit, Outcome, Polled, ResetCause, Unsupported};
pub use sense::Sense;
pub use task_set::{Attribute, Task, TaskSetFull};
pub use transport::{DataError, Direction, SEGMENTS_MAX, SegmentList, Transport};
