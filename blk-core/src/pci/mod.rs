//! PCI: the configuration space of a function, and the interrupts that it signals by it (PCI Local Bus Specification 3.0).
//!
//! A front describes its function once ([`Function`]); [`ConfigSpace`] is what a guest reads and writes of it. Which bits
//! a guest can change follows from the description, so that sizing a BAR, probing a capability and writing to a reserved
//! byte need no code of their own.
//!
//! ```text
//! guest: read, write -> ConfigSpace -> Changed: BARs moved, decoding, bus mastering, interrupts
//! front: lines       -> ConfigSpace::signal -> INTx level, or the messages to be sent
//! ```

mod capability;
mod config_space;
mod msix;

pub use capability::{Capability, Message};
pub use config_space::{Bar, Changed, Command, ConfigSpace, Function, Identity, Signal};
pub use msix::MsixTable;

#[cfg(test)]
mod tests;
