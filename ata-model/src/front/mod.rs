//! Front ends: IDE channels, PCI IDE, AHCI.

mod ahci;
mod bmdma;
mod channel_bus;
mod controller;
mod data;
mod ide;
mod pci_ahci;
mod pci_ide;
mod scatter;

pub use ahci::Hba;
pub use bmdma::{BusMaster, Cursor};
pub use controller::IdeController;
pub use ide::{Channel, Staged};
pub use pci_ahci::PciAhci;
pub use pci_ide::{PciIde, PciIdeChip, PciIdeMode};
