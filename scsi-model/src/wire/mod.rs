//! Layouts, and nothing else: big-endian structures whose sizes are asserted.

pub mod cdb;
pub mod data;
pub mod mode;
pub mod sense;
