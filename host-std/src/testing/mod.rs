//! Drivers of the models and servers for tests, benchmarks and demonstrations.
//!
//! - [`client`]: the other end of a server's socket, for vhost-user and vfio-user.
//! - [`guest`]: small drivers that use a model over a real image, in this process: no virtual machine is needed.
//! - [`vm`]: virtual machines of other programs, as processes.

pub mod client;
pub mod guest;
pub mod vm;
