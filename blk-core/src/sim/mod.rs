//! The proof: a disk that loses power, an oracle that knows what may then be left, and an explorer of every schedule
//! and crash point of small guest programs through the real fronts.
//!
//! A front takes part by a [`Guest`]: a small driver that speaks the front's own bytes, registers, rings or command blocks.

#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    reason = "the proof is a test: a panic in it is a failed test, and no guest's machine runs it"
)]

mod bench;
mod cell;
mod disk;
mod driver;
mod explore;
mod guest;
mod history;
mod memory;
mod oracle;
mod state;
mod value;
pub mod virtio;

pub use bench::{Bench, BenchRing};
pub use cell::{Cell, Counterexample, Progress, Report, SAFE_MODES, Verdict};
pub use disk::{AtOnce, Choices, DiskConfig, DoneAtOnce, Fate, SimDisk, SimHandle, TRACKED};
pub use driver::{World, get, put, read_back};
pub use explore::{example, explore, explore_all, sample, sample_all};
pub use guest::{Action, Ended, Guest, Outcome, SectorRun, alphabet, layout};
pub use history::{Ending, Happened, History, HistoryEvent, OpName, Party};
pub use memory::SimMemory;
pub use oracle::{Oracle, Violation, Why};
pub use state::SimGuest;
pub use value::{Contents, GARBAGE, INITIAL, STEPS_MAX, ValueSet, ZEROES, step_name, written_by};
