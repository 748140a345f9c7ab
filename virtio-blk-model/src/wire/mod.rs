//! Layouts in guest memory and configuration space, and nothing else.

mod config;
mod features;
mod request;

pub use blk_core::virtio::DeviceStatus;
pub use config::ConfigSpace;
pub use features::Features;
pub use request::{RangeFlags, RangeSegment, RequestHeader, Status};
