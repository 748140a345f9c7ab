//! Answers of a target where there is no logical unit, and the well-known logical unit REPORT LUNS: SPC-4,
//! INQUIRY, REPORT LUNS; SAM-5, incorrect logical unit numbers.

use crate::command::{Cdb, Command, decode};
use crate::disk::{Reply, report_luns};
use crate::sense::Sense;
use crate::wire::data::{Inquiry, VpdHead};
use zerocopy::{FromZeros, IntoBytes};

/// Responder to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Responder {
    /// The well-known logical unit REPORT LUNS.
    WellKnown,
    /// The target, for a unit that it does not have.
    Absent {
        /// The unit would be LUN 0, which reports the others.
        zero: bool,
    },
}

impl Responder {
    /// PERIPHERAL QUALIFIER and DEVICE TYPE: a well-known unit; or no unit, and none can be there.
    const fn peripheral(self) -> u8 {
        match self {
            Self::WellKnown => 0x1e,
            Self::Absent { .. } => 0x7f,
        }
    }
}

/// Puts the reply to a command into `reply`, and returns its allocation length. `luns` are those that REPORT LUNS lists.
pub(super) fn answer(
    responder: Responder,
    cdb: &Cdb,
    luns: impl Iterator<Item = [u8; 8]>,
    reply: &mut Reply,
) -> Result<u32, Sense> {
    let refused = match responder {
        Responder::WellKnown => Sense::INVALID_OPCODE,
        Responder::Absent { .. } => Sense::NO_UNIT,
    };
    Ok(match decode(cdb)? {
        Command::Inquiry { page: None, allocation } => {
            reply.push(standard(responder).as_bytes());
            allocation
        }
        Command::Inquiry { page: Some(0), allocation } => {
            // The list of pages has this one.
            reply.push(VpdHead { peripheral: responder.peripheral(), page: 0, bytes: 1.into() }.as_bytes());
            reply.push(&[0]);
            allocation
        }
        Command::Inquiry { .. } => return Err(Sense::cdb_field(2, None)),
        Command::RequestSense { descriptors, allocation } => {
            let sense = if responder == Responder::WellKnown { Sense::NONE } else { Sense::NO_UNIT };
            reply.push(&sense.encode(descriptors));
            allocation
        }
        Command::TestUnitReady if responder == Responder::WellKnown => 0,
        Command::ReportLuns { select, allocation } if responder != (Responder::Absent { zero: false }) => {
            report_luns(select, luns, reply)?;
            allocation
        }
        _ => return Err(refused),
    })
}

fn standard(responder: Responder) -> Inquiry {
    Inquiry {
        peripheral: responder.peripheral(),
        version: 6,               // SPC-4
        format: 0x12,             // HISUP; NORMACA=0
        additional_bytes: 96 - 5, // SPC-4, standard INQUIRY data
        flags7: 0x02,             // CMDQUE
        vendor: [b' '; 8],
        product: [b' '; 16],
        revision: [b' '; 4],
        ..Inquiry::new_zeroed()
    }
}
