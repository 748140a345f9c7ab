//! The bytes that a guest sees, named. Layouts only; what they mean is decided in [`command`](crate::command) and
//! [`drive`](crate::drive).

pub mod ahci;
pub mod fis;
mod identify;
mod prd;
mod queue_log;
mod smart;
mod task_file;

pub use identify::IdentifyData;
pub use prd::Prd;
pub use queue_log::QueueErrorLog;
pub use smart::{LogDirectory, SelfTestEntry, SelfTestLog, SmartData, SummaryErrorLog};
pub use task_file::{Control, DeviceBits, ErrorBits, Pair, Status, TaskFile};
