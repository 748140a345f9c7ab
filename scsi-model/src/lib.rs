// In the README the names lead to the sources; of two definitions of a link the first counts, and
// here it leads to the item.
//! [`Storage`]: blk_core::storage::Storage
//! [`LogicalUnit`]: LogicalUnit
//! [`Transport`]: Transport
//! [`Task`]: Task
//! [`Command`]: command::Command
//! [`Sense`]: Sense
//! [`front::virtio_scsi`]: front::virtio_scsi
//!
#![doc = include_str!("../README.md")]
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
mod fifo;
pub mod front;
pub mod sense;
#[cfg(feature = "sim")]
pub mod sim;
pub mod task_set;
pub mod transport;
pub mod wire;

pub use command::Cdb;
pub use config::Config;
pub use disk::{Ended, LogicalUnit, Outcome, Polled, ResetCause, Setting, Unsupported};
pub use sense::Sense;
pub use task_set::{Attribute, Nexus, Task, TaskSetFull};
pub use transport::{DataError, Direction, SEGMENTS_MAX, SegmentList, Transport};
