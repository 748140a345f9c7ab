// In the README the names lead to the sources; of two definitions of a link the first counts, and
// here it leads to the item.
//! [`Storage`]: blk_core::storage::Storage
//! [`Channel`]: Channel
//! [`PciIde`]: PciIde
//! [`Hba`]: Hba
//! [`PciAhci`]: PciAhci
//! [`DriveConfig`]: DriveConfig
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
pub mod drive;
pub mod front;
#[cfg(feature = "sim")]
pub mod sim;
pub mod wire;

pub use drive::{Drive, DriveConfig, StagingTooSmall};
pub use front::{Channel, Hba, IdeController, PciAhci, PciIde, PciIdeChip, PciIdeMode};
