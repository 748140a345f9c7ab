//! Command blocks, decoded: bytes to an enum, by a table. Pure; nothing here knows the disk.

mod decode;
mod table;

use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use crate::sense::Sense;

pub(crate) use table::rows;
pub use table::{Row, TABLE, Traits, find};

/// A command descriptor block as the guest gave it: its first 16 bytes, and how many were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Cdb {
    bytes: [u8; 16],
    given_bytes: u8,
}

impl Cdb {
    /// Copies a command block. Transports give blocks of a fixed size (virtio-scsi: 32 bytes): what lies beyond the length
    /// of the command is not looked at, and commands longer than 16 bytes are not supported.
    #[must_use]
    pub fn new(given: &[u8]) -> Self {
        let mut bytes = [0; 16];
        for (place, byte) in bytes.iter_mut().zip(given) {
            *place = *byte;
        }
        Self { bytes, given_bytes: u8::try_from(given.len()).unwrap_or(u8::MAX) }
    }

    /// OPERATION CODE; 0 for an empty block, which [`decode`] refuses.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.byte(0)
    }

    /// SERVICE ACTION, where the command has one: SPC-4, service action, bits 4:0 of byte 1.
    #[must_use]
    pub fn service_action(&self) -> u16 {
        u16::from(self.byte(1) & 0x1f)
    }

    pub(crate) fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// The block as layout `T`, which is at most 16 bytes long.
    pub(crate) fn view<T: FromBytes>(&self) -> T {
        const { assert!(size_of::<T>() <= 16, "a layout of a command block") };
        T::read_from_prefix(&self.bytes).map_or_else(|_| T::new_zeroed(), |(layout, _)| layout)
    }
}

/// The length that an operation code's group implies: SPC-4, operation code. `None` for reserved and vendor-specific groups
/// and for the variable-length format (7Fh).
#[must_use]
pub const fn group_bytes(opcode: u8) -> Option<usize> {
    match opcode >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}

/// A run of logical blocks, as the guest names it. Not yet checked against the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Blocks {
    /// First logical block.
    pub lba: u64,
    /// Blocks.
    pub count: u64,
}

/// Whether a command exists in a form of 6 bytes or of 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ModeForm {
    /// MODE SENSE(6), MODE SELECT(6).
    Six,
    /// MODE SENSE(10), MODE SELECT(10).
    Ten,
}

/// Which values of the mode pages MODE SENSE asks for: SPC-4, MODE SENSE(6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PageControl {
    /// In force.
    Current,
    /// A mask of what MODE SELECT can change.
    Changeable,
    /// After a reset.
    Default,
    /// Saved; there are none.
    Saved,
}

/// What VERIFY compares with: BYTCHK, SBC-3, VERIFY(10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Against {
    /// Nothing: the medium is read, and that is all (00b).
    Nothing,
    /// A block of data for each block (01b).
    Data,
    /// One block of data, for every block (11b).
    OneBlock,
}

/// A decoded command. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[allow(missing_docs, reason = "each variant and field is named as in the standards")]
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptors: bool,
        allocation: u32,
    },
    Inquiry {
        page: Option<u8>,
        allocation: u32,
    },
    ReportLuns {
        select: u8,
        allocation: u32,
    },
    ReportOpcodes {
        options: u8,
        timeouts: bool,
        opcode: u8,
        service_action: u16,
        allocation: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: u32,
    },
    GetLbaStatus {
        lba: u64,
        allocation: u32,
    },
    ModeSense(ModeSense),
    ModeSelect {
        form: ModeForm,
        list: u16,
    },
    StartStopUnit {
        start: bool,
        flush: bool,
    },
    PreventAllow {
        prevent: bool,
    },
    Read {
        blocks: Blocks,
        fua: bool,
    },
    Write {
        blocks: Blocks,
        fua: bool,
    },
    WriteAndVerify {
        blocks: Blocks,
    },
    Verify {
        blocks: Blocks,
        against: Against,
    },
    CompareAndWrite {
        blocks: Blocks,
        fua: bool,
    },
    OrWrite {
        blocks: Blocks,
        fua: bool,
    },
    SynchronizeCache {
        blocks: Blocks,
    },
    WriteSame {
        blocks: Blocks,
        unmap: bool,
        no_data: bool,
    },
    Unmap {
        list: u16,
    },
    /// Not in the table; kept for the log.
    Unknown {
        opcode: u8,
        service_action: u16,
    },
}

/// MODE SENSE, of 6 bytes or of 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ModeSense {
    /// Which header.
    pub form: ModeForm,
    /// LLBAA: block descriptors may be long.
    pub long_lba: bool,
    /// DBD: no block descriptors.
    pub no_descriptors: bool,
    /// PC.
    pub control: PageControl,
    /// PAGE CODE; 3Fh is all of them.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    /// ALLOCATION LENGTH in bytes.
    pub allocation: u16,
}

/// Decodes a command block.
///
/// The length follows from the operation code's group and is checked against what was given before any field is looked at
/// (CVE-2015-5158; PEERS, 4). Reserved bits and fields that the table does not list must be zero, NACA among them.
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
