// In the README the names lead to the sources; of two definitions of a link the first counts, and
// here it leads to the item.
//! [plan]: order::plan()
//! [`Storage`]: storage::Storage
//! [`Info`]: storage::Info
//! [`Medium`]: sync::Medium
//! [`GuestMemory`]: memory::GuestMemory
//! [`AtomicMemory`]: atomic_memory::AtomicMemory
//! [`Device`]: bus::Device
//! [`PciFunction`]: pci::PciFunction
//! [`Op`]: op::Op
//! [`Request`]: order::Request
//! [`Sequencer`]: order::Sequencer
//! [`Device::write`]: bus::Device::write
//! [`Device::poll`]: bus::Device::poll
#![cfg_attr(feature = "spin", doc = "[`SharedDevice`]: shared_device::SharedDevice")]
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

#[macro_use]
mod log;

#[cfg(target_has_atomic = "32")]
pub mod atomic_memory;
pub mod bus;
#[cfg(feature = "spin")]
pub mod embedding {
    //! [`AtomicMemory`]: crate::atomic_memory::AtomicMemory
    //! [`CellMemory`]: crate::memory::CellMemory
    //! [`SharedDevice`]: crate::shared_device::SharedDevice
    //! [`SharedDevice::handle_interrupt`]: crate::shared_device::SharedDevice::handle_interrupt
    //! [`SharedDevice::start_write`]: crate::shared_device::SharedDevice::start_write
    //! [`MmioDevice`]: crate::shared_device::MmioDevice
    //!
    #![doc = include_str!("../EMBEDDING.md")]
}
#[cfg(feature = "embedded-io")]
pub mod io_medium;
pub mod latch;
pub mod memory;
pub mod mutant;
pub mod op;
pub mod order;
pub mod pci;
pub mod ram;
#[cfg(feature = "spin")]
pub mod shared_device;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "snapshot")]
pub mod snapshot;
pub mod storage;
pub mod sync;
pub mod units;
pub mod virtio;
pub mod virtq;
