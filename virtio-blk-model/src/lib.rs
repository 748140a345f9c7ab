// In the README the names lead to the sources; of two definitions of a link the first counts, and
// here it leads to the item.
//! [`Storage`]: blk_core::storage::Storage
//! [`Interface::Legacy`]: device::Interface::Legacy
//! [embedding]: embedding
//! [`Mmio`]: front::Mmio
//! [`Pci`]: front::Pci
//! [`Blk`]: device::Blk
//! [`Queue`]: queue::Queue
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

mod chain;
pub mod command;
mod control;
pub mod device;
pub mod embedding {
    //! [`GuestMemory`]: blk_core::memory::GuestMemory
    //! [`CellMemory`]: blk_core::memory::CellMemory
    //! [`AtomicMemory`]: blk_core::atomic_memory::AtomicMemory
    //! [`Storage`]: blk_core::storage::Storage
    //! [`RamDisk`]: blk_core::ram::RamDisk
    //! [`IoMedium`]: blk_core::io_medium::IoMedium
    //! [`Medium`]: blk_core::sync::Medium
    //! [`Synchronous`]: blk_core::sync::Synchronous
    //! [`Info`]: blk_core::storage::Info
    //! [`Mmio<1, 64>`]: crate::front::Mmio
    //! [`Pci<1, 64>`]: crate::front::Pci
    //! [`PciFunction`]: blk_core::pci::PciFunction
    //! [`Region::Config`]: blk_core::bus::Region::Config
    //! [`Blk`]: crate::device::Blk
    //! [`split_mut`]: crate::device::Blk::split_mut
    //! [`blk_core::snapshot`]: blk_core::snapshot
    //!
    #![doc = include_str!("../EMBEDDING.md")]
}
pub mod front;
pub mod queue;
#[cfg(feature = "sim")]
pub mod sim;
pub mod wire;

pub use chain::SEGMENTS_MAX;
