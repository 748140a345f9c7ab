//! The program `blk-host serve`: devices from a command line or a file, on sockets, under an operator's hand.
//!
//! ```text
//! Config (command line or TOML) -> Device: Server over ErrorPolicyBackend over Throttled over Recorder over FileBackend
//!                                     |          |
//!  ctl -- JSON lines --> control ----+          +--> failures -> pause, log, events
//! ```
//!
//! - [`config`]: what to serve; [`spec`]: an image and its options as one argument.
//! - [`error_policy`]: what becomes of a request that the host failed; [`meter`]: counts and latencies.
//! - [`throttle`]: limits of rate. `same_file`, `image_check`: what is looked at before images are served.
//! - `signals`: what asks for the end; `open`: images that are in use for a moment longer.
//! - `device`: one server with its images; `image`: a file and the layers over it; [`control`]: the control socket and its protocol.
//! - `confined`: what the process gives up before the first thread starts.
//! - [`log`]: lines on standard error, whatever becomes of it.
//! - [`listen`]: sockets, our own and a supervisor's; [`attach`]: how a guest is attached; [`run()`]: from start to stop.
//!
//! **Not there:** live change of the error policy, authentication on the control socket beyond the permissions of
//! its file.

pub mod attach;
pub mod config;
mod confined;
pub mod control;
mod device;
pub mod error_policy;
mod events;
mod image;
mod image_check;
pub mod listen;
pub mod log;
pub mod meter;
mod names;
mod open;
mod run;
mod same_file;
mod signals;
pub mod spec;
pub mod throttle;

pub use device::{DeviceStats, State};
pub use events::Event;
pub use image::ImageReport;
pub use run::run;
