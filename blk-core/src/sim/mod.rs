//! The proof: a disk that loses power, an oracle that knows what may then be left, and an explorer of every schedule
//! and crash point of small guest programs through the real fronts.
//!
//! A front takes part by a [`Guest`]: a small driver that speaks the front's own bytes, registers, rings or command blocks.

mod guest;

pub use guest::{Action, Ended, Guest, Outcome, SectorRun, layout};
