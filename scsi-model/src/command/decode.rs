//! Decodes command blocks, by the table.

use super::cdb::{Cdb, group_bytes};
use super::commands::Command;
use super::table::{Traits, find};
use crate::sense::Sense;

/// Decodes a command block.
///
/// The length follows from the operation code's group and is checked against what was given before any field is looked at
/// (CVE-2015-5158; host-std/tests/defects.md, 4). Reserved bits and fields that the table does not list must be zero, NACA among them.
///
/// # Errors
/// The sense data of the CHECK CONDITION. An unknown operation code is not an error here but [`Command::Unknown`].
pub fn decode(cdb: &Cdb) -> Result<Command, Sense> {
    let given = usize::from(cdb.given_bytes);
    if given == 0 || group_bytes(cdb.opcode()).is_some_and(|bytes| given < bytes) {
        return Err(Sense::cdb_field(u16::from(cdb.given_bytes), None));
    }
    let Some(row) = find(cdb) else {
        return Ok(Command::Unknown { opcode: cdb.opcode(), service_action: cdb.service_action() });
    };
    row.check_reserved(cdb)?;
    (row.decode)(cdb)
}

/// What the table says of the command, whether or not its fields make sense.
pub(crate) fn traits(cdb: &Cdb) -> Traits {
    find(cdb).map_or(Traits::empty(), |row| row.traits)
}
