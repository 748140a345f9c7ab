//! Virtual machines of other programs, as processes that end with their owner: what the tests with real guests and `blk-host demo`
//! have in common.
//!
//! - [`Uml`]: how User-Mode Linux is started, a Linux kernel as a process, with one of our disks.
//! - [`Machine`]: the process and its [`Console`], lines in both directions with deadlines.
//! - [`ServedDisk`]: a disk that this process serves over vhost-user.
//! - [`fetched`]: Debian's packages that guests are made of, unpacked and not installed.

mod console;
pub mod fetched;
mod machine;
mod served_disk;
mod uml;

pub use console::{Console, Silence};
pub use machine::Machine;
pub use served_disk::{ServeDiskError, ServedDisk};
pub use uml::{Root, Uml};
