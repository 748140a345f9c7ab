//! A drive: executes decoded commands, one at a time or, behind Serial ATA, queued, and says what its front has to do next.
//!
//! A front moves bytes between the host and memory; the drive decides everything else. What is common to PIO, the PCI
//! bus master and AHCI is [`Step`]: either the drive works by itself, or it needs segments for a piece of the disk, or
//! a page of parameters goes one way or the other through the staging buffer.
//!
//! ```text
//! execute        a command in, steps out
//!   -> start_command, queued, reset     how commands begin, what is queued, what a reset takes away
//!   -> state     the Drive
//!   -> queue, job, identify, smart      its parts, and the pages that it reads out
//!   -> settings, config, failure, extents, limits, log, tags
//! ```

mod config;
mod execute;
mod extents;
mod failure;
mod identify;
mod job;
mod limits;
mod log;
mod mutants;
mod noted;
mod queue;
mod queued;
mod reset;
mod settings;
mod smart;
mod start_command;
mod state;
mod tags;

pub use config::{DriveConfig, StagingTooSmall};
pub use execute::Step;
pub(crate) use extents::chunk_sectors;
pub(crate) use failure::report_address;
pub use failure::{Failure, Report};
pub use job::Taken;
pub use queue::{Due, QueueError, Reply, Staged};
pub use reset::Reset;
pub use settings::{Settings, TransferMode};
pub use smart::Smart;
pub use state::Drive;
pub use tags::Tags;
