//! REPORT SUPPORTED OPERATION CODES, printed from the command table: SPC-4, REPORT SUPPORTED OPERATION CODES.

use blk_core::storage::Info;
use zerocopy::{FromZeros, IntoBytes};

use super::reply::Reply;
use crate::command::{Row, TABLE, rows};
use crate::sense::Sense;
use crate::wire::data::{OneOpcode, OpcodeEntry, Timeouts};

const NOT_SUPPORTED: u8 = 1;
const SUPPORTED: u8 = 3;

pub(super) fn report(
    options: u8,
    timeouts: bool,
    opcode: u8,
    service_action: u16,
    info: &Info,
    reply: &mut Reply,
) -> Result<(), Sense> {
    let mut of_opcode = rows(opcode).filter(|row| row.supported(info)).peekable();
    let has_actions = of_opcode.peek().is_some_and(|row| row.service_action.is_some());
    // Any 16-bit service action may be asked for: it is compared with those of the table, never an index (CVE-2024-42416).
    let row = of_opcode.find(|row| row.service_action.is_none_or(|action| action == service_action));
    let row = match options {
        0 => {
            all(timeouts, info, reply);
            return Ok(());
        }
        // The operation code alone; it must not have service actions.
        1 if has_actions => return Err(Sense::cdb_field(2, Some(2))),
        1 => row,
        // Operation code and service action; it must have service actions.
        2 if row.is_some() && !has_actions => return Err(Sense::cdb_field(2, Some(2))),
        2 => row,
        // Either; without service actions the requested one must be 0.
        3 => row.filter(|_| has_actions || service_action == 0),
        _ => return Err(Sense::cdb_field(2, Some(2))),
    };
    one(row, timeouts, reply);
    Ok(())
}

fn all(timeouts: bool, info: &Info, reply: &mut Reply) {
    // The length is known when the entries are there.
    reply.push(&[0; 4]);
    for row in TABLE.iter().filter(|row| row.supported(info)) {
        let entry = OpcodeEntry {
            opcode: row.opcode(),
            service_action: row.service_action.unwrap_or(0).into(),
            flags: u8::from(row.service_action.is_some()) | if timeouts { 0x02 } else { 0 },
            cdb_bytes: u16::try_from(row.usage.len()).unwrap_or(0).into(),
            ..OpcodeEntry::new_zeroed()
        };
        reply.push(entry.as_bytes());
        push_timeouts(reply, timeouts);
    }
    let bytes = reply.bytes().len().saturating_sub(size_of::<u32>());
    reply.put_first(&u32::try_from(bytes).unwrap_or(0).to_be_bytes());
}

fn one(row: Option<&Row>, timeouts: bool, reply: &mut Reply) {
    let Some(row) = row else {
        reply.push(OneOpcode { support: NOT_SUPPORTED, ..OneOpcode::new_zeroed() }.as_bytes());
        return;
    };
    let support = SUPPORTED | if timeouts { 0x80 } else { 0 };
    let cdb_bytes = u16::try_from(row.usage.len()).unwrap_or(0).into();
    reply.push(OneOpcode { reserved: 0, support, cdb_bytes }.as_bytes());
    reply.push(row.usage);
    push_timeouts(reply, timeouts);
}

fn push_timeouts(reply: &mut Reply, wanted: bool) {
    if wanted {
        reply.push(Timeouts { bytes: 10.into(), ..Timeouts::new_zeroed() }.as_bytes());
    }
}
