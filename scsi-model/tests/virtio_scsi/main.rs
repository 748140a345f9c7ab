//! virtio-scsi, through registers and rings.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "tests"
)]

#[path = "../rig/mod.rs"]
mod rig;

mod advisories;
mod events;
mod functions;
mod machine;
mod negotiation;
mod pci;
mod pieces;
mod requests;
mod resumption;
