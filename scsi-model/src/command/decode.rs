//! Decodes command blocks, by the table.

use super::cdb::{Cdb, group_bytes};
use super::commands::Command;
use super::table::{Row, find};
use crate::sense::Sense;

/// Decodes a command block.
///
/// The length follows from the operation code's group and is checked against what was given before any field is looked at
/// (CVE-2015-5158; host-std/tests/defects.md, 4). Reserved bits and fields that the table does not list must be zero, NACA among them.
///
/// # Errors
/// The sense data of the CHECK CONDITION. An unknown operation code is not an error here but [`Command::Unknown`].
pub fn decode(cdb: &Cdb) -> Result<Command, Sense> {
    decode_as(cdb, find(cdb))
}

/// As [`decode`], of a block whose row is known.
pub(crate) fn decode_as(cdb: &Cdb, row: Option<&Row>) -> Result<Command, Sense> {
    let given = usize::from(cdb.given_bytes);
    let bytes = match row {
        Some(row) => Some(row.usage.len()),
        None => group_bytes(cdb.opcode()),
    };
    if given == 0 || bytes.is_some_and(|bytes| given < bytes) {
        return Err(Sense::cdb_field(u16::from(cdb.given_bytes), None));
    }
    let Some(row) = row else {
        return Ok(Command::Unknown { opcode: cdb.opcode(), service_action: cdb.service_action() });
    };
    row.check_reserved(cdb)?;
    (row.decode)(cdb)
}
