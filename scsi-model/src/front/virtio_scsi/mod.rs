//! virtio-scsi (VIRTIO 1.3, 5.6): a host adapter with several targets and logical units.
//!
//! ```text
//! rings -> requests (decode) -> LogicalUnit (one per LUN, each on its own handle) -> answer -> used rings
//!   0 control: task management, answered when what it aborts has ended
//!   1 event:   units that come, go or are resized
//!   2.. request queues, which share the units' task sets: one thread polls them all
//! ```
//!
//! [`Controller`] is the part that a server over vhost-user drives. [`Scsi`] puts negotiation and the device status before
//! it, for transports with registers: [`Mmio`] and [`Pci`].
//! A chain is walked once where response and data are each in one piece. Pieces are not kept: a chain with more of them is
//! walked again when a unit wants its data.
//!
//! | | |
//! |---|---|
//! | Queues | control, event, 1 to 62 request queues |
//! | Addresses | 256 targets, LUNs in peripheral device and flat space form; the well-known unit REPORT LUNS of the host |
//! | Functions | ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, I_T NEXUS RESET, QUERY TASK, QUERY TASK SET |
//! | Features | HOTPLUG, CHANGE, ANY_LAYOUT, INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET |
//! | **Not there** | **INOUT: no command has data both ways, and a request that has is answered with FAILURE; T10_PI; CLEAR ACA and the ACA attribute; command priority and reference number, which are not looked at; asynchronous notifications, which are of multimedia devices; packed rings; the legacy interface** |

mod address;
mod bay;
mod controller;
mod device;
mod events;
mod functions;
mod io;
mod pending;
mod policy;
mod poll;
mod requests;
mod rings;
mod sizes;
mod target;
pub mod wire;

pub use address::{Address, LUN_MAX};
pub use controller::{Config, Controller, NotInserted};
pub use device::{Mmio, Pci, Scsi};
pub use policy::Policy;
pub use poll::Polled;
pub use rings::{CONTROL, EVENT, REQUEST};
