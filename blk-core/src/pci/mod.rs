//! PCI: the configuration space of a function, and the interrupts that it signals by it (PCI Local Bus Specification 3.0).
//!
//! A front describes its function once ([`Function`]); [`ConfigSpace`] is what a guest reads and writes of it. Which bits
//! a guest can change follows from the description, so that sizing a BAR, probing a capability and writing to a reserved
//! byte need no code of their own.
//!
//! ```text
//! machine -> PciFunction -> ConfigSpace: BARs, decoding, bus mastering, interrupts
//!                        -> MsixTable
//!                        -> Endpoint: the device's registers and its interrupts
//! ```

mod capability;
mod config_space;
mod function;
mod msix;
mod pci_function;

pub use capability::{Capability, Message};
pub use config_space::{Changed, Command, ConfigSpace};
pub use function::{Bar, Function, Identity};
pub use msix::MsixTable;
pub use pci_function::{Endpoint, MsixOwner, PciFunction, Permissions};

#[cfg(test)]
mod tests;
