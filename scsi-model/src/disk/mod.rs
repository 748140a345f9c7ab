//! The logical unit: takes tasks, executes them, says how they ended.
//!
//! ```text
//! execute                the poll: tasks in, outcomes out
//!   -> logical_unit      the tasks, and what is done to them from outside
//!   -> start_command     what each command checks and begins with
//!   -> started           a task that runs, operation by operation
//!   -> answer, mode      what is answered from what the unit knows
//!   -> unit, job         what the unit remembers; work on the storage
//!   -> transfer          blocks that are moved, chunk by chunk
//!   -> settings, limits, reply, outcome, io
//! ```

mod answer;
mod execute;
mod io;
mod job;
mod limits;
mod logical_unit;
mod mode;
mod noted;
mod opcodes;
mod outcome;
mod reply;
mod settings;
mod start_command;
mod started;
mod transfer;
mod unit;

pub use execute::Polled;
pub(crate) use execute::Progress;
pub use logical_unit::{LogicalUnit, Unsupported};
pub use outcome::{Ended, Outcome};
pub(crate) use reply::{LUNS_MAX, Reply, report_luns};
pub use unit::{ResetCause, Setting, UnitAttention};
