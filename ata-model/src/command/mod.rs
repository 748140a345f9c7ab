//! The command set: which commands there are, and what a guest's task file asks for.
//!
//! [`decode`] is pure, and decides everything that the registers decide. What a command does is in [`drive`](crate::drive).

mod decode;
mod geometry;
mod interface;
mod power;
mod table;

pub use decode::{Blocks, Command, Queued, Reject, decode};
pub use geometry::Geometry;
pub use interface::{Direction, Interface};
pub use power::Power;
pub use table::{Addressing, Advertised, Needs, Operation, Protocol, Row, TABLE};
