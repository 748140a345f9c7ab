//! Decodes command blocks, by the table.

use super::cdb::{Cdb, group_bytes};
use super::commands::Command;
use super::fields;
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
#[inline(always)]
pub(crate) fn decode_as(cdb: &Cdb, row: Option<&Row>) -> Result<Command, Sense> {
    let Some(row) = row else { return unknown(cdb) };
    if usize::from(cdb.given_bytes) < row.usage.len() {
        return Err(too_short(cdb));
    }
    row.check_reserved(cdb)?;
    fields::decode(row.kind, cdb)
}

/// A block without a row: too short for its group, or a command that is not known.
#[cold]
fn unknown(cdb: &Cdb) -> Result<Command, Sense> {
    let bytes = group_bytes(cdb.opcode()).unwrap_or(1);
    if usize::from(cdb.given_bytes) < bytes {
        return Err(too_short(cdb));
    }
    Ok(Command::Unknown { opcode: cdb.opcode(), service_action: cdb.service_action() })
}

#[cold]
fn too_short(cdb: &Cdb) -> Sense {
    Sense::cdb_field(u16::from(cdb.given_bytes), None)
}
