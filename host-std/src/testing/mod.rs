//! Drivers of the models and servers for tests, benchmarks and demonstrations: no virtual machine is needed.
//!
//! - [`client`]: the other end of a server's socket, for vhost-user and vfio-user.
//! - [`guest`]: small drivers that use a model over a real image, in this process.

pub mod client;
pub mod guest;
