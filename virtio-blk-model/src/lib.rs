//! A virtio-blk device model: `no_std`, no allocation, no `unsafe`.
//!
//! It decodes what a driver puts into rings and registers into ordered operations on a
//! [`Storage`](blk_core::storage::Storage), and keeps the promises that VIRTIO makes about stable data.
//!
//! ```text
//! front (registers) -> Queue (ring, chain) -> command (decode) -> Sequencer -> Storage
//!   interrupt       <-       status, used ring             <-             completion
//! ```
//!
//! **Goals:** drivers from the legacy ones on; every request checked before any of it is done; queues that a host can give
//! threads of their own. No panic that a guest can reach. **Not goals:** a bus, threads, other virtio devices.
//!
//! | | |
//! |---|---|
//! | Requests | IN, OUT, FLUSH (also the legacy type 5, with or without data, negotiated or not), GET_ID, DISCARD and WRITE_ZEROES of up to 16 segments |
//! | Features | SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH (always), TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES, ANY_LAYOUT, INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_RESET; legacy BARRIER; experimental REQ_FLAGS with FUA |
//! | Transports | virtio-mmio, modern and legacy; virtio-pci, modern |
//! | Rings | split |
//! | **Not there** | **SECURE_ERASE, LIFETIME, ZONED, GEOMETRY, SCSI commands, packed rings, IN_ORDER, NOTIFICATION_DATA, ACCESS_PLATFORM, transitional virtio-pci, channel I/O, big-endian legacy guests** |
//!
//! **BARRIER** is of the legacy interface: it is offered as feature bit 0 by a device configured as
//! [`Interface::Legacy`](device::Interface::Legacy) with one queue, and then bit 31 of a request's type makes it one.
//!
//! **What a completed write is worth** follows what was negotiated: with neither FLUSH nor CONFIG_WCE the device is
//! write-through; with CONFIG_WCE `writeback` decides, which without FLUSH starts at 0; with FLUSH alone the driver
//! flushes. On a storage without a volatile cache `writeback` is 0 and stays so.

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

mod chain;
pub mod command;
mod control;
pub mod device;
pub mod front;
pub mod queue;
#[cfg(feature = "sim")]
pub mod sim;
pub mod wire;

pub use chain::SEGMENTS_MAX;
