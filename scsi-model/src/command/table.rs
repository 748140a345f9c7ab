//! One row per command: operation code, the bits that are looked at, what the command needs, and of which kind it is.
//!
//! REPORT SUPPORTED OPERATION CODES is printed from these rows.

use bitflags::bitflags;
use blk_core::storage::Info;

use super::cdb::{Cdb, group_bytes};
use super::fields::Kind;
use crate::sense::Sense;

bitflags! {
    /// Conditions of a command on the unit before it runs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Traits: u8 {
        /// The unit must be started: otherwise NOT READY.
        const MEDIUM = 1;
        /// Runs in spite of a pending unit attention or deferred error: SAM-5, unit attention conditions; SPC-4, deferred errors.
        const QUIET = 2;
        /// Runs with nothing beside it.
        const ALONE = 4;
        /// Changes the medium: refused by a read-only disk.
        const WRITES = 8;
        /// Is supported only where the storage has a staging buffer for at least one block.
        const STAGING = 16;
        /// Is supported only where the storage releases space.
        const DISCARD = 32;
        /// Is supported only where the storage keeps other writers out.
        const HOLDS = 64;
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Traits {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

/// A supported command.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// SERVICE ACTION, where the operation code has them.
    pub service_action: Option<u16>,
    /// CDB USAGE DATA (SPC-4, REPORT SUPPORTED OPERATION CODES): the operation code, and then a 1 for each bit that is evaluated. The service
    /// action's bits hold the service action. As long as the command.
    pub usage: &'static [u8],
    /// What it needs.
    pub traits: Traits,
    /// The bits that must be zero, as in [`Cdb::bits`].
    reserved: u128,
    pub(super) kind: Kind,
}

impl Row {
    /// OPERATION CODE.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        match self.usage.first() {
            Some(opcode) => *opcode,
            None => 0,
        }
    }

    /// Whether a disk on a storage described by `info` supports it.
    #[must_use]
    pub const fn supported(&self, info: &Info) -> bool {
        if !self.traits.intersects(Traits::STAGING.union(Traits::DISCARD).union(Traits::HOLDS)) {
            return true;
        }
        let staging = info.staging_bytes >= info.logical_block_bytes && info.staging_bytes != 0;
        (staging || !self.traits.contains(Traits::STAGING))
            && (info.discard || !self.traits.contains(Traits::DISCARD))
            && (info.holds || !self.traits.contains(Traits::HOLDS))
    }

    /// Refuses the first bit that is not evaluated and set.
    #[inline]
    pub(super) const fn check_reserved(&self, cdb: &Cdb) -> Result<(), Sense> {
        let stray = cdb.bits() & self.reserved;
        if stray == 0 { Ok(()) } else { Err(reserved_is_set(stray)) }
    }
}

#[cold]
const fn reserved_is_set(stray: u128) -> Sense {
    let from_top = stray.leading_zeros();
    Sense::cdb_field((from_top >> 3) as u16, Some(7_u8.wrapping_sub((from_top & 7) as u8)))
}

/// The row of a command.
#[must_use]
#[inline]
pub fn find(cdb: &Cdb) -> Option<&'static Row> {
    let first = TABLE.get(first_of(cdb.opcode()))?;
    if first.service_action.is_none() { Some(first) } else { find_action(cdb) }
}

#[inline(never)]
fn find_action(cdb: &Cdb) -> Option<&'static Row> {
    rows(cdb.opcode()).find(|row| row.service_action == Some(cdb.service_action()))
}

/// The rows of an operation code: several where it has service actions.
pub(crate) fn rows(opcode: u8) -> impl Iterator<Item = &'static Row> {
    TABLE.get(first_of(opcode)..).unwrap_or_default().iter().take_while(move |row| row.opcode() == opcode)
}

const NONE: Traits = Traits::empty();
const MEDIUM: Traits = Traits::MEDIUM;
const QUIET: Traits = Traits::QUIET;
const ALONE: Traits = Traits::ALONE;
const WRITES: Traits = MEDIUM.union(Traits::WRITES);
const VERIFIES: Traits = MEDIUM.union(Traits::STAGING);
const VERIFIED: Traits = WRITES.union(Traits::STAGING);
const ATOMIC: Traits = VERIFIED.union(Traits::ALONE).union(Traits::HOLDS);

const fn row(usage: &'static [u8], traits: Traits, kind: Kind) -> Row {
    Row { service_action: None, usage, traits, reserved: reserved(usage, false), kind }
}

const fn action(service_action: u16, usage: &'static [u8], traits: Traits, kind: Kind) -> Row {
    Row { service_action: Some(service_action), usage, traits, reserved: reserved(usage, true), kind }
}

/// The bits that are not evaluated and must be zero, NACA among them. Bits 7:5 of byte 1 of a 6-byte command, where SCSI-2
/// initiators put the logical unit number, are let pass, and so are the vendor-specific bits of CONTROL.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "runs at compile time")]
const fn reserved(usage: &[u8], has_service_action: bool) -> u128 {
    let mut bytes = [0; 16];
    let mut at = 1;
    while at < usage.len() {
        let pass = match at {
            1 if has_service_action => 0x1f,
            1 if usage.len() == 6 => 0xe0,
            _ if at == usage.len() - 1 => 0xc0,
            _ => 0,
        };
        bytes[at] = !usage[at] & !pass;
        at += 1;
    }
    u128::from_be_bytes(bytes)
}

/// Every supported command, by operation code and service action.
///
/// Byte 1 of the commands that move blocks: DPO 10h, FUA 08h, FUA_NV 02h (SBC-2), BYTCHK 06h, ANCHOR 10h, UNMAP 08h, NDOB 01h,
/// IMMED 02h, SYNC_NV 04h (SBC-2). RDPROTECT and WRPROTECT are not among them: there is no protection information.
#[rustfmt::skip]
pub static TABLE: &[Row] = &[
    row(&[0x00, 0, 0, 0, 0, 0], MEDIUM, Kind::TestUnitReady),
    row(&[0x03, 0x01, 0, 0, 0xff, 0], QUIET, Kind::RequestSense),
    row(&[0x08, 0x1f, 0xff, 0xff, 0xff, 0], MEDIUM, Kind::Read),
    row(&[0x0a, 0x1f, 0xff, 0xff, 0xff, 0], WRITES, Kind::Write),
    row(&[0x12, 0x01, 0xff, 0xff, 0xff, 0], QUIET, Kind::Inquiry),
    row(&[0x15, 0x11, 0, 0, 0xff, 0], ALONE, Kind::ModeSelect6),
    row(&[0x1a, 0x08, 0xff, 0xff, 0xff, 0], NONE, Kind::ModeSense6),
    row(&[0x1b, 0x01, 0, 0, 0xf7, 0], ALONE, Kind::StartStopUnit),
    row(&[0x1e, 0, 0, 0, 0x03, 0], NONE, Kind::PreventAllow),
    row(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], MEDIUM, Kind::ReadCapacity10),
    row(&[0x28, 0x1a, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0], MEDIUM, Kind::Read),
    row(&[0x2a, 0x1a, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0], WRITES, Kind::Write),
    row(&[0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0], VERIFIED, Kind::WriteAndVerify),
    row(&[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0], VERIFIES, Kind::Verify),
    row(&[0x35, 0x06, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0], MEDIUM, Kind::SynchronizeCache),
    row(&[0x41, 0x18, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff, 0], WRITES, Kind::WriteSame),
    row(&[0x42, 0x01, 0, 0, 0, 0, 0x3f, 0xff, 0xff, 0], WRITES.union(Traits::DISCARD), Kind::Unmap),
    row(&[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0], ALONE, Kind::ModeSelect10),
    row(&[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0], NONE, Kind::ModeSense10),
    row(&[0x88, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], MEDIUM, Kind::Read),
    row(&[0x89, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0x3f, 0],
        ATOMIC, Kind::CompareAndWrite),
    row(&[0x8a, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], WRITES, Kind::Write),
    row(&[0x8b, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0],
        ATOMIC, Kind::OrWrite),
    row(&[0x8e, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0],
        VERIFIED, Kind::WriteAndVerify),
    row(&[0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], VERIFIES, Kind::Verify),
    row(&[0x91, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0],
        MEDIUM, Kind::SynchronizeCache),
    row(&[0x93, 0x19, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0],
        WRITES, Kind::WriteSame),
    action(0x10, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], MEDIUM, Kind::ReadCapacity16),
    action(0x12, &[0x9e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        MEDIUM, Kind::GetLbaStatus),
    row(&[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], QUIET, Kind::ReportLuns),
    action(0x0c, &[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], NONE, Kind::ReportOpcodes),
    row(&[0xa8, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], MEDIUM, Kind::Read),
    row(&[0xaa, 0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], WRITES, Kind::Write),
    row(&[0xae, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], VERIFIED, Kind::WriteAndVerify),
    row(&[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0], VERIFIES, Kind::Verify),
];

fn first_of(opcode: u8) -> usize {
    FIRST.get(usize::from(opcode)).map_or(TABLE.len(), |row| usize::from(*row))
}

/// Index of an operation code's first row, or the number of rows.
static FIRST: [u8; 256] = index();

#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "runs at compile time"
)]
const fn index() -> [u8; 256] {
    assert!(TABLE.len() < 256);
    let mut first = [TABLE.len() as u8; 256];
    let mut at = TABLE.len();
    while at > 0 {
        at -= 1;
        let usage = TABLE[at].usage;
        let opcode = usage[0];
        assert!(at == 0 || TABLE[at - 1].usage[0] <= opcode, "rows are sorted by operation code");
        match group_bytes(opcode) {
            Some(bytes) => assert!(usage.len() == bytes, "a command is as long as its group says"),
            None => panic!("a group without a length"),
        }
        first[opcode as usize] = at as u8;
    }
    first
}
