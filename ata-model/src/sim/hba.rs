//! An AHCI HBA as its driver sees it (AHCI 1.3.1): bits of its registers, and the structures in memory.

// A panic in a test driver is a failed test, and no guest reaches it.
#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::vec;
use std::vec::Vec;

use blk_core::bus::Region;

/// Where the registers are.
pub const ABAR: Region = Region::Bar(5);

/// PxCMD: the command list is to be processed.
pub const ST: u32 = 1;
/// PxCMD: FISes are to be received.
pub const FRE: u32 = 1 << 4;
/// PxCMD: the command list is processed.
pub const CR: u32 = 1 << 15;

/// PxIS: Status has ERR set.
pub const TFES: u32 = 1 << 30;

/// A Register FIS that writes a command.
#[must_use]
pub fn command_fis(opcode: u8, features: u16, lba: u64, count: u16, device: u8) -> [u8; 20] {
    let ([f0, f1], [c0, c1]) = (features.to_le_bytes(), count.to_le_bytes());
    let [l0, l1, l2, l3, l4, l5, ..] = lba.to_le_bytes();
    [0x27, 0x80, opcode, f0, l0, l1, l2, device, l3, l4, l5, f1, c0, c1, 0, 0, 0, 0, 0, 0]
}

/// READ or WRITE FPDMA QUEUED.
#[must_use]
pub fn queued_fis(opcode: u8, tag: u8, lba: u64, count: u16, fua: bool) -> [u8; 20] {
    command_fis(opcode, count, lba, u16::from(tag) << 3, if fua { 0xc0 } else { 0x40 })
}

/// A Register FIS that writes Device Control.
#[must_use]
pub const fn control_fis(port_multiplier: u8, control: u8) -> [u8; 20] {
    [0x27, port_multiplier, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, control, 0, 0, 0, 0]
}

/// What a driver writes into memory, and where, to put a command into the slot of the list at `list`: header, FIS, and a PRD
/// entry for each region of so many bytes.
#[must_use]
pub fn prepare(list: u64, slot: u8, table: u64, fis: &[u8], regions: &[(u64, u32)]) -> Vec<(u64, Vec<u8>)> {
    let mut header = vec![0; 32];
    // The FIS's length in words of four bytes, and how many entries there are.
    let first = 5 | (regions.len() as u32) << 16;
    header[..4].copy_from_slice(&first.to_le_bytes());
    header[8..16].copy_from_slice(&table.to_le_bytes());
    let mut writes = vec![(list + u64::from(slot) * 32, header), (table, fis.to_vec())];
    for (n, &(base, bytes)) in (0..).zip(regions) {
        let mut entry = vec![0; 16];
        entry[..8].copy_from_slice(&base.to_le_bytes());
        entry[12..].copy_from_slice(&bytes.wrapping_sub(1).to_le_bytes());
        writes.push((table + 0x80 + n * 16, entry));
    }
    writes
}
