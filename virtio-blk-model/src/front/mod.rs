//! Transports.

pub mod mmio;
pub mod pci;

pub use mmio::Mmio;
pub use pci::Pci;
