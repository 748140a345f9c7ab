//! Transports: how a guest reaches the device.

pub mod mmio;
