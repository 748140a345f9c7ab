//! An ATA disk as a machine sees it: IDE channels, the PCI IDE bus master, and the drives behind them.
//!
//! ```text
//! front/ide, front/bmdma   registers, data port, interrupts, PRD tables
//!   -> wire                names bytes: task file, IDENTIFY, SMART, PRD
//!   -> command             one row per opcode; decoding is pure
//!   -> drive               executes a decoded command in order, through blk_core's sequencer
//! ```
//!
//! A drive shows a write cache exactly where the storage under it has a volatile one. FLUSH CACHE, the FUA writes, SET
//! FEATURES 82h, STANDBY and SLEEP report success only when what they promise is stable. A reset drains what was
//! submitted before the drive is ready again.
//!
//! `no_std`, no allocation, no `unsafe`, no panic that a guest can reach.

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

pub use drive::{Drive, DriveConfig};
pub use front::{Channel, IdeController};
