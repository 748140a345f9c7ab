//! What programs without an operating system bring themselves, and a machine of which the optimiser knows nothing.

#![no_std]

pub mod glue;
pub mod machine;
pub mod memory;
