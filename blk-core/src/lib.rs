//! The vocabulary and the promises of the disk device models.
//!
//! A model decodes what a guest does to registers, rings and command blocks into ordered operations on a
//! [`Storage`](storage::Storage). This crate holds what the models share: units, operations, the storage contract,
//! guest memory, the durability [plan](order::plan) and the [sequencer](order::Sequencer) that keeps it, the
//! [machine-facing interface](bus::Device), and, with the feature `sim`, the disk that loses power, the oracle and the
//! explorer that prove the promises.
//!
//! **Goals:** a completed flush, FUA write or write with the cache off survives a power cut, whatever the storage is; one
//! place where that is decided; devices that are plain data, saved, compared and explored state by state.
//! `no_std`, no allocation, no `unsafe`, no panic that a guest can reach. The feature `sim`, for tests and for the proof,
//! brings in `std`.
//!
//! **Not goals:** a device of its own, image formats, caching, a scheduler, threads.
//!
//! | | |
//! |---|---|
//! | Operations | read, write with or without FUA, write-zeroes, discard, flush; requests free or as barriers |
//! | Storage | the trait; a RAM disk; whatever is behind `embedded-io`; a latch for storages without one |
//! | virtio | the register blocks of virtio-mmio, modern and legacy, and of virtio-pci, modern, for any device |
//! | Virtqueues | split rings with indirect descriptors and EVENT_IDX |
//! | PCI | configuration space: type 0 header, BARs, power management, MSI, MSI-X, INTx |
//! | State | snapshots with a version and a CRC, of devices with nothing in flight |
//! | **Not there** | **packed rings and IN_ORDER; PCI Express capabilities; a device's own check of a restored snapshot; copy on write; more than 128 requests in flight in a queue** |

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

pub mod bus;
pub mod memory;
pub mod mutant;
pub mod op;
pub mod order;
pub mod pci;
pub mod ram;
#[cfg(feature = "sim")]
pub mod sim;
pub mod snapshot;
pub mod sticky;
pub mod storage;
pub mod sync;
pub mod units;
pub mod virtio;
pub mod virtq;
