//! Command descriptor blocks, as bytes: SBC-3 and SPC-4, the clauses with the commands' names.

/// Byte 1 bit 3 of a write or read: on the medium before GOOD.
const FUA: u8 = 0x08;

/// TEST UNIT READY.
pub const TEST_UNIT_READY: [u8; 6] = [0; 6];

/// READ (16).
#[must_use]
pub const fn read_16(lba: u64, blocks: u32, fua: bool) -> [u8; 16] {
    transfer(0x88, lba, blocks, fua)
}

/// WRITE (16).
#[must_use]
pub const fn write_16(lba: u64, blocks: u32, fua: bool) -> [u8; 16] {
    transfer(0x8a, lba, blocks, fua)
}

/// ORWRITE (16): the data are ORed into what the blocks hold.
#[must_use]
pub const fn or_write_16(lba: u64, blocks: u32, fua: bool) -> [u8; 16] {
    transfer(0x8b, lba, blocks, fua)
}

/// COMPARE AND WRITE: the data to compare with and then those to write, `blocks` each.
#[must_use]
pub const fn compare_and_write(lba: u64, blocks: u8, fua: bool) -> [u8; 16] {
    let mut cdb = transfer(0x89, lba, 0, fua);
    cdb[13] = blocks;
    cdb
}

/// SYNCHRONIZE CACHE (16) of everything.
#[must_use]
pub const fn synchronize_cache_16() -> [u8; 16] {
    transfer(0x91, 0, 0, false)
}

/// READ CAPACITY (16), into `allocation` bytes.
#[must_use]
pub const fn read_capacity_16(allocation: u32) -> [u8; 16] {
    let [a, b, c, d] = allocation.to_be_bytes();
    [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
}

/// REPORT LUNS of the target, into `allocation` bytes.
#[must_use]
pub const fn report_luns(allocation: u32) -> [u8; 12] {
    let [a, b, c, d] = allocation.to_be_bytes();
    [0xa0, 0, 0, 0, 0, 0, a, b, c, d, 0, 0]
}

/// MODE SELECT (6) of a page, with as many bytes of parameters as [`caching_page`] has.
pub const MODE_SELECT_6: [u8; 6] = [0x15, 0x10, 0, 0, CACHING_BYTES as u8, 0];

const CACHING_BYTES: usize = 4 + 20;

/// The parameters of MODE SELECT (6) that turn the write cache on or off: a mode parameter header, and the caching page.
#[must_use]
pub const fn caching_page(write_cache: bool) -> [u8; CACHING_BYTES] {
    let mut parameters = [0; CACHING_BYTES];
    parameters[4] = 0x08;
    parameters[5] = 18;
    parameters[6] = if write_cache { 0x04 } else { 0 };
    parameters
}

const fn transfer(opcode: u8, lba: u64, blocks: u32, fua: bool) -> [u8; 16] {
    let [l0, l1, l2, l3, l4, l5, l6, l7] = lba.to_be_bytes();
    let [b0, b1, b2, b3] = blocks.to_be_bytes();
    let flags = if fua { FUA } else { 0 };
    [opcode, flags, l0, l1, l2, l3, l4, l5, l6, l7, b0, b1, b2, b3, 0, 0]
}
