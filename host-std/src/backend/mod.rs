//! Storage backends over Linux.
//!
//! [`FileBackend`] is an image, a regular file or a block device, opened once; [`FileStorage`] is a handle to it, one
//! for each queue. An operation takes the first of these ways that suits it and that the engine ([`IoEngine`]) allows:
//!
//! ```text
//! submit -> this thread:  all on a file in memory; what the page cache has (RWF_NOWAIT)     -> queued in the handle -> poll
//!        -> io_uring:     direct I/O; reads that the page cache has not                     -> its completion queue ->
//!        -> workers:      buffered and O_DSYNC writes, ranges, bounced pieces: pwritev, ... -> the handle's list    ->
//!        -> flusher:      fdatasync, one at a time                                          ->
//! ```
//!
//! What its files know of each other, from the top down:
//!
//! ```text
//! file        the image that is served          storage, admission   a queue's handle to it
//! io_threads  workers, the flusher              ring       io_uring
//! transfer, range, bounce                       what a worker does
//! shared      what all of them share
//! image       opened, locked, measured          job, queue what waits, what has ended
//! state_file  records beside the image          state_layout  how they lie there
//! budget      what operations may use           holds      what they keep each other from changing
//! options, latch, counters, iovecs, limits, syscalls
//! ```
//!
//! - Nothing that may wait for a device runs on the queue's thread, and no more than 1 MiB is copied there between two polls. A file
//!   in memory counts as one that does not wait, although
//!   the kernel may have swapped it out.
//! - A job is allocated with its handle and moves by pointer: nothing is allocated, and nothing copied, for a request.
//! - Bytes in flight and private memory have budgets, which all handles of an image share; an operation that is beyond one waits in
//!   its handle (`budget`).
//! - The kernel reads and writes guest memory in place. What `O_DIRECT` cannot take as it is goes through a bounce buffer, and so
//!   does memory that is not mapped into this process.
//! - A handle's io_uring is entered once for all that was submitted before a poll; completions are taken without a system call.
//! - A flush that arrives while fdatasync runs joins the next one, never the one that runs.
//! - A handle's hold keeps off what others would change (`holds`). Two additions to a count of the handle's own are all that it costs
//!   a write where nobody holds anything.
//! - Records lie in a file beside the image, two copies of each (`state_file`); workers read and store them.
//! - A failed durable operation latches ([`FileBackend::latched`]).
//! - The image lock is held until the kernel has ended the last operation, also for a process that is killed: while a
//!   thread is in a call, or a ring has an operation in flight, the file that carries the lock stays open.
//!
//! Not here: image formats; taking back what is in flight (`Storage::cancel_in_flight` promises only where nothing is); buffers
//! registered with the ring, which would pin the guest's memory.

mod admission;
mod bounce;
mod bounce_buffer;
mod budget;
mod convert;
mod counters;
mod file;
mod handle;
mod holds;
mod image;
mod image_info;
mod image_lock;
mod image_size;
mod inline;
mod io_threads;
mod iovecs;
mod job;
mod latch;
mod limits;
#[cfg(all(test, loom))]
mod loom_models;
mod open_error;
mod options;
mod queue;
mod range;
mod range_lock;
mod remote_buffer;
mod ring;
mod shared;
mod staging;
mod state_file;
mod state_layout;
mod storage;
mod sync;
mod syscalls;
mod transfer;
mod worker;

#[cfg(feature = "program")]
pub(crate) use budget::{Budget, Charge};
pub use budget::{BudgetReport, BudgetUse};
pub use counters::Counts;
pub use file::FileBackend;
pub use handle::{Backend, Handle};
pub use io_threads::IoThread;
pub use iovecs::IoVecs;
pub use latch::{Durable, LatchCause};
pub use open_error::OpenError;
#[cfg(feature = "program")]
pub(crate) use open_error::size_text;
pub use options::{FileOptions, IoEngine, StatePlace};
#[cfg(feature = "server")]
pub(crate) use ring::can_restrict;
pub use storage::FileStorage;
pub use syscalls::{LinuxSyscalls, Syscalls};
