//! The thread of a queue, or of queues that share something.

mod command;
mod worker;

pub(super) use command::{Command, VringSetup};
pub(super) use worker::Worker;
