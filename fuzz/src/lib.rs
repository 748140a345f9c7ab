//! Fuzz targets for the disk device models, and what they share.
//!
//! A target is a function from bytes to nothing that panics when a model breaks a promise; `fuzz_targets/` gives each of
//! them to libFuzzer, and a test here runs each over its seeds with the stable toolchain.
//!
//! - [`program`]: bytes to a setup and actions, and back (the seeds);
//! - [`memory`]: guest memory that a device may write only where the guest has lent it;
//! - [`contents`]: what sectors hold;
//! - [`disk`]: a storage that completes when, in which order and how the fuzzer says, keeping medium and cache apart;
//! - [`front`]: a virtio device behind any of its transports;
//! - [`ring`]: the driver's side of a virtqueue;
//! - [`virtio`]: a driver of a virtio device, whichever;
//! - [`image`]: an image for whole servers;
//! - [`oracle`]: the oracle: what a guest may read, and what must survive a power cut.

#![allow(missing_docs, reason = "the macros generate helpers")]

pub mod contents;
pub mod disk;
pub mod front;
pub mod image;
pub mod memory;
pub mod oracle;
pub mod program;
pub mod ring;
pub mod targets;
pub mod virtio;
