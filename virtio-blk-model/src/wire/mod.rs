//! Layouts in guest memory and configuration space, and nothing else.

mod config;
mod features;
mod request;

pub use config::ConfigSpace;
pub use features::{DeviceStatus, Features};
pub use request::{RangeFlags, RangeSegment, RequestHeader, Status};
