//! Storage backends over Linux.
//!
//! [`FileBackend`] is an image, a regular file or a block device, opened once; [`FileStorage`] is a handle to it, one
//! for each queue. Operations take this way:
//!
//! ```text
//! submit -> job -> worker threads: preadv, pwritev, fallocate   -> completions of the handle -> poll
//!               -> flusher thread: fdatasync, one at a time     ->
//! ```
//!
//! - A job is allocated with its handle and moves by pointer: nothing is allocated, and nothing copied, for a request.
//! - The kernel reads and writes guest memory in place. What `O_DIRECT` cannot take as it is goes through a bounce buffer.
//! - A flush that arrives while fdatasync runs joins the next one, never the one that runs.
//! - A failed durable operation latches ([`FileBackend::latched`]).
//!
//! Not here: image formats, asynchronous I/O by io_uring, **a promise that what was submitted will not land**
//! (`Storage::fence`): a reset waits for the operations in flight.

mod bounce;
mod counters;
mod engine;
mod file;
mod handle;
mod host;
mod image;
mod iovecs;
mod job;
mod latch;
mod live;
mod lock;
mod queue;
mod range;
mod ring;
mod staging;
mod storage;
mod transfer;

pub use counters::Counts;
pub use file::{FileBackend, FileOptions, Way};
pub use handle::{Backend, Handle};
pub use host::{Host, LinuxHost};
pub use image::OpenError;
pub use iovecs::IoVecs;
pub use latch::{Durable, LatchCause};
pub use storage::FileStorage;
