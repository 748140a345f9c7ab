//! vhost-user: the protocol by the crate vhost, the rings and what they need by us.
//!
//! The connection's thread ([`handler`]) takes the client's messages and tells the queues' threads ([`worker`]) what they
//! need; it waits for their answers, so that a reply to the client means that every queue knows.
//!
//! - A ring runs from the moment that it is enabled and has its size, its addresses and a kick, in whichever order these
//!   come, until GET_VRING_BASE, RESET_DEVICE or the client's end; each lets what is in flight complete first.
//! - The memory table may change while rings run: an operation in flight holds the mapping that it began with.
//! - A message that makes no sense, or that cannot be obeyed where no reply was asked for, ends that client.

mod connection;
mod device;
mod handler;
mod header;
mod memory_table;
mod raw_messages;
mod serve;
mod vring;

pub(super) use device::{QueueThread, VhostUserDevice};
