//! SCSI disks, and the host adapter virtio-scsi in front of them: command blocks in, ordered operations on a
//! [`Storage`](blk_core::storage::Storage) out.
//!
//! ```text
//! wire (bytes) -> command (a table, decoded into an enum) -> task_set (SAM order) -> disk (executes)
//!      -> blk_core::order::Sequencer -> Storage -> status and sense
//! ```
//!
//! A transport ([`front::virtio_scsi`], or one of yours) owns what the guest shares with it: it
//! [enqueues](LogicalUnit::enqueue) tasks, lends guest memory through [`Transport`], and takes what [`LogicalUnit::poll`] says
//! has ended.
//!
//! The texts: SAM-5 r21, SPC-4 r37, SBC-3 r36 and, for what is obsolete, SBC-2 r16. They are cited by the titles of their
//! clauses, which are the names of commands, pages and formats.
//!
//! **Goals:** the order and the durability that SAM and SBC promise, over any storage; one table of commands, from which
//! they are dispatched and reported. `no_std`, no allocation, no `unsafe`, no panic that a guest can reach.
//!
//! **Not goals:** other transports; CD-ROMs, tapes, enclosures; multipath.
//!
//! | there | |
//! |---|---|
//! | blocks | READ and WRITE 6/10/12/16 with FUA, WRITE AND VERIFY and VERIFY 10/12/16, COMPARE AND WRITE, SYNCHRONIZE CACHE 10/16, ORWRITE, UNMAP, WRITE SAME 10/16, GET LBA STATUS |
//! | identity | INQUIRY with pages 00h 80h 83h 86h B0h B1h B2h, READ CAPACITY 10/16, REPORT LUNS, REPORT SUPPORTED OPERATION CODES |
//! | state | TEST UNIT READY, REQUEST SENSE, MODE SENSE and MODE SELECT 6/10 of pages 01h 08h 0Ah 1Ch, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL |
//! | tasks | SIMPLE, ORDERED, HEAD OF QUEUE; abort, abort set, reset, query; unit attentions, deferred errors |
//! | transport | virtio-scsi: several targets and units, task management, hotplug and resize events, virtio-mmio |
//!
//! | **not there** | **other transports; protection information; reservations, persistent and old; ACA (NORMACA=0, so NACA and the ACA attribute are refused and CLEAR ACA is not a function); more than one I_T nexus; third-party copy; WRITE ATOMIC, SANITIZE, FORMAT UNIT, SEND DIAGNOSTIC; log pages; saved mode parameters; power conditions; command blocks of more than 16 bytes** |
//!
//! VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, ORWRITE and WRITE SAME of a pattern need a storage with a staging buffer.
//! GET LBA STATUS says of every block that it is mapped or unknown, since a storage cannot be asked. A SYNCHRONIZE CACHE
//! flushes the whole disk, and waits also with IMMED.

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
pub use task_set::{Attribute, Task, TaskSetFull};
pub use transport::{DataError, Direction, SEGMENTS_MAX, SegmentList, Transport};
