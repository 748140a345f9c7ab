// In the README the names lead to the sources; of two definitions of a link the first counts, and
// here it leads to the item.
//! [`backend`]: backend
//! [`confine`]: confine
//! [`fault`]: fault
//! [`memory`]: memory
//! [`probe`]: probe
//! [`proof`]: proof
//! [`record`]: record
//! [`recording`]: recording
//! [`replay`]: replay
//! [`serve`]: serve
//! [`server`]: server
//! [`testing`]: testing
//! [`throttle`]: throttle
//! [`trace`]: trace
//!
#![doc = include_str!("../README.md")]

pub mod backend;
#[cfg(feature = "server")]
pub mod confine;
#[cfg(feature = "server")]
pub mod fault;
pub mod memory;
mod mutex;
#[cfg(feature = "program")]
pub mod probe;
#[cfg(feature = "program")]
pub mod proof;
#[cfg(feature = "program")]
pub mod record;
#[cfg(feature = "program")]
pub mod recording;
#[cfg(feature = "program")]
pub mod replay;
#[cfg(feature = "program")]
pub mod serve;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "program")]
pub mod testing;
#[cfg(feature = "server")]
pub mod throttle;
#[cfg(feature = "server")]
mod timed_wake;
#[cfg(feature = "program")]
pub mod trace;
mod wake;
