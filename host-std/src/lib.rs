//! Linux under the disk device models: files and block devices whose completed flushes are stable, guest memory that
//! the kernel reads and writes in place, and the question "is my stack safe?".
//!
//! - [`backend`]: a file or block device behind [`Storage`](blk_core::storage::Storage), one handle for each queue.
//! - [`guest`]: small drivers that use a model over a real image, in this process.
//! - [`memory`]: guest memory mapped into this process.
//! - [`probe`]: what lies between a path and the medium, and whether it keeps what was acknowledged.
//! - [`proof`]: the guests that the crash explorer runs, front by front.
//! - [`trace`]: the kernel's own count of the writes and flushes that reach a block device.

pub mod backend;
pub mod guest;
pub mod memory;
pub mod probe;
pub mod proof;
pub mod trace;
