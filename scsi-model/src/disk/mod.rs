//! The logical unit: takes tasks, executes them, says how they ended.
//!
//! ```text
//! logical_unit           tasks in, outcomes out
//!   -> start_command     what each command checks and begins with
//!   -> answer, mode      what is answered from what the unit knows
//!   -> unit, job         what the unit remembers; work on the storage
//!   -> settings, limits, reply, outcome, io
//! ```

mod answer;
mod io;
mod job;
mod limits;
mod logical_unit;
mod mode;
mod opcodes;
mod outcome;
mod reply;
mod settings;
mod start_command;
mod unit;

pub use logical_unit::{LogicalUnit, Polled, Unsupported};
pub use outcome::{Ended, Outcome};
pub(crate) use reply::{LUNS_MAX, Reply, report_luns};
pub use unit::{ResetCause, Setting, UnitAttention};
