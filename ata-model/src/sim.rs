//! Register-level drivers as guests of the crash explorer: one for the IDE fronts, one for AHCI.

mod ahci;
mod config;
mod guest;
pub mod hba;
mod ide;

pub use ahci::{Ahci, AhciGuest};
pub use config::{AhciConfig, AhciReset, Belief, DriverConfig, ResetBy, Transport};
pub use guest::{AtaGuest, Bus, Driver, Steps};
pub use ide::{Ide, IdeGuest};
