//! A ring of a client: its descriptors, and what of it survives this process.

mod inflight;
mod inflight_recorder;
mod io;
mod persistent_state;

pub(super) use inflight::{InflightLayout, Region};
pub(super) use inflight_recorder::InflightRecorder;
pub(super) use io::{Run, VringIo};
pub(super) use persistent_state::PersistentState;
