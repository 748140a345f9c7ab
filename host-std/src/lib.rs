//! Linux under the disk device models: files and block devices whose completed flushes are stable, guest memory that
//! the kernel reads and writes in place, and the question "is my stack safe?".
//!
//! - [`backend`]: a file or block device behind [`Storage`](blk_core::storage::Storage), one handle for each queue.
//! - [`memory`]: guest memory mapped into this process.

pub mod backend;
pub mod memory;
pub mod probe;
pub mod trace;
