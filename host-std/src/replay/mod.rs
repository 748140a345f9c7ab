//! The image at any point of a [recording](crate::recording), and every image that a power cut could have left there.
//!
//! - [`Log`]: a recording, read and checked.
//! - [`Image`]: a disk's contents at a position, as reads returned them or as a power cut left them; read in place or written to
//!   a file.
//! - [`CrashStates`]: goes through the states, position by position; all of them where they are few, else the adversarial ones
//!   first and then samples from a seed, with torn and reordered writes.
//! - [`OverlayBackend`]: a disk over an image, for a guest that recovers from it; the next state is swapped in.
//!
//! What a power cut can leave follows from the [storage contract](blk_core::storage::Storage) and from what the storage said of
//! itself, and from nothing else: none of the devices' code, whose work is judged by this, has a part in it.
//!
//! | at the cut | what may be on the medium |
//! |---|---|
//! | a write, zeroes or a discard in flight | it, or not, block by block |
//! | completed, not covered by a flush | the same |
//! | completed with FUA, or on a write-through storage | it; zeroes and discards too where ranges are stable, else as above |
//! | completed before a flush was submitted that has succeeded | it |
//! | several that were in flight together, on the same block | any of them, in any order, even once they are stable |
//! | a discard that completed | what was there, or zeroes |
//! | failed, or in flight as its server died | it, or not, until a later one is stable |
//! | refused (out of range, read-only, unsupported) | not it |
//! | anything, on an unsafe storage | it, or not |
//!
//! A logical block is never torn; blocks persist independently of each other.
//!
//! **Not here:** what a disk does that lies, or whose error a host has forgotten: a flush that the recorded host acknowledged
//! counts.

mod crash_choices;
mod image;
mod medium;
mod overlay;
mod states;
#[cfg(test)]
mod tests;

pub use crate::recording::{Data, Event, Log, LogError, Mark, What};
pub use image::{Base, Image};
pub use overlay::OverlayBackend;
pub use states::{CrashState, CrashStates, Options, Positions};
