//! Command blocks, decoded: bytes to an enum, by a table. Pure; nothing here knows the disk.
//!
//! ```text
//! decode -> table (a row for each command) -> fields (by the kind of a row) -> commands, cdb
//! ```

mod cdb;
mod commands;
mod decode;
mod fields;
mod table;

pub use cdb::{Cdb, group_bytes};
pub use commands::{Against, Blocks, Command, ModeForm, ModeSense, PageControl};
pub use decode::decode;
pub(crate) use decode::decode_as;
pub(crate) use table::rows;
pub use table::{Row, TABLE, Traits, find};
