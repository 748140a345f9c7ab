//! Sense data, and its two encodings.

use core::fmt;

use blk_core::storage::{IoError, IoErrorKind};
use heapless::Vec;
use zerocopy::IntoBytes;

use crate::wire::sense::{DescriptorHead, FieldPointer, Fixed, Information, KeySpecific};

/// Sense data as it goes to the guest.
pub type SenseBytes = Vec<u8, 32>;

/// SENSE KEY: SPC-4, sense key and additional sense code definitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum Key {
    /// Nothing to report.
    NoSense = 0x0,
    /// The unit cannot be accessed now.
    NotReady = 0x2,
    /// A flaw in the medium or in the recorded data.
    MediumError = 0x3,
    /// A failure that no retry mends.
    HardwareError = 0x4,
    /// Something in the command or its parameters.
    IllegalRequest = 0x5,
    /// Something happened that the guest must know before it goes on.
    UnitAttention = 0x6,
    /// The blocks are protected from this operation.
    DataProtect = 0x7,
    /// The device gave the command up; it may be tried again.
    AbortedCommand = 0xb,
    /// The data does not match what is on the medium.
    Miscompare = 0xe,
}

/// ADDITIONAL SENSE CODE (high byte) and its QUALIFIER: SPC-4 annex D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Code(pub u16);

#[allow(missing_docs, reason = "each is named as in SPC-4 annex D")]
impl Code {
    pub const NONE: Self = Self(0x0000);
    pub const INITIALIZING_COMMAND_REQUIRED: Self = Self(0x0402);
    pub const WRITE_ERROR: Self = Self(0x0c00);
    pub const UNRECOVERED_READ_ERROR: Self = Self(0x1100);
    pub const PARAMETER_LIST_LENGTH_ERROR: Self = Self(0x1a00);
    pub const MISCOMPARE_DURING_VERIFY: Self = Self(0x1d00);
    pub const INVALID_OPERATION_CODE: Self = Self(0x2000);
    pub const LBA_OUT_OF_RANGE: Self = Self(0x2100);
    pub const INVALID_FIELD_IN_CDB: Self = Self(0x2400);
    pub const LOGICAL_UNIT_NOT_SUPPORTED: Self = Self(0x2500);
    pub const INVALID_FIELD_IN_PARAMETER_LIST: Self = Self(0x2600);
    pub const WRITE_PROTECTED: Self = Self(0x2700);
    pub const SPACE_ALLOCATION_FAILED: Self = Self(0x2707);
    pub const POWER_ON_OR_RESET: Self = Self(0x2900);
    pub const BUS_RESET: Self = Self(0x2902);
    pub const DEVICE_RESET: Self = Self(0x2903);
    pub const NEXUS_LOSS: Self = Self(0x2907);
    pub const MODE_PARAMETERS_CHANGED: Self = Self(0x2a01);
    pub const CAPACITY_DATA_HAS_CHANGED: Self = Self(0x2a09);
    pub const SAVING_PARAMETERS_NOT_SUPPORTED: Self = Self(0x3900);
    pub const MEDIUM_NOT_PRESENT: Self = Self(0x3a00);
    pub const REPORTED_LUNS_CHANGED: Self = Self(0x3f0e);
    pub const INTERNAL_TARGET_FAILURE: Self = Self(0x4400);
    pub const INVALID_MESSAGE: Self = Self(0x4900);
    pub const DATA_PHASE_ERROR: Self = Self(0x4b00);
}

/// Field of a command block or parameter list that is in error: SPC-4, field pointer sense key specific data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Field {
    /// In the command block, or else in the parameter list.
    pub in_cdb: bool,
    /// Offset in bytes.
    pub byte: u16,
    /// Highest bit of the field within that byte, if it is less than the byte.
    pub bit: Option<u8>,
}

/// Why a command ended in CHECK CONDITION.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Sense {
    /// SENSE KEY.
    pub key: Key,
    /// ADDITIONAL SENSE CODE and QUALIFIER.
    pub code: Code,
    /// It concerns an earlier command, which had ended with GOOD: SPC-4, deferred errors.
    pub deferred: bool,
    /// INFORMATION: a logical block address, or an offset for COMPARE AND WRITE.
    pub information: Option<u64>,
    /// Where the guest erred.
    pub field: Option<Field>,
}

/// The numbers, as tools print them: key, code, qualifier.
impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [code, qualifier] = self.code.0.to_be_bytes();
        write!(f, "{:?} ({:x}h/{code:02x}h/{qualifier:02x}h)", self.key, self.key as u8)
    }
}

impl core::error::Error for Sense {}

impl Sense {
    /// Nothing to report.
    pub const NONE: Self = Self::new(Key::NoSense, Code::NONE);
    /// The operation code is not supported.
    pub const INVALID_OPCODE: Self = Self::new(Key::IllegalRequest, Code::INVALID_OPERATION_CODE);
    /// The blocks are not all within the disk.
    pub const OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, Code::LBA_OUT_OF_RANGE);
    /// A parameter list ends before what it announces.
    pub const LIST_LENGTH: Self = Self::new(Key::IllegalRequest, Code::PARAMETER_LIST_LENGTH_ERROR);
    /// The disk is read-only.
    pub const WRITE_PROTECTED: Self = Self::new(Key::DataProtect, Code::WRITE_PROTECTED);
    /// The unit was stopped.
    pub const STOPPED: Self = Self::new(Key::NotReady, Code::INITIALIZING_COMMAND_REQUIRED);
    /// There is no disk here.
    pub const NO_UNIT: Self = Self::new(Key::IllegalRequest, Code::LOGICAL_UNIT_NOT_SUPPORTED);
    /// The guest's data memory could not be accessed.
    pub const DATA_PHASE: Self = Self::new(Key::AbortedCommand, Code::DATA_PHASE_ERROR);

    /// A current error without further information.
    #[must_use]
    pub const fn new(key: Key, code: Code) -> Self {
        Self { key, code, deferred: false, information: None, field: None }
    }

    /// INVALID FIELD IN CDB at `byte`; `bit` is the highest of the field.
    #[must_use]
    pub const fn cdb_field(byte: u16, bit: Option<u8>) -> Self {
        let field = Some(Field { in_cdb: true, byte, bit });
        Self { field, ..Self::new(Key::IllegalRequest, Code::INVALID_FIELD_IN_CDB) }
    }

    /// INVALID FIELD IN PARAMETER LIST at `byte`; `bit` is the highest of the field.
    #[must_use]
    pub const fn list_field(byte: u16, bit: Option<u8>) -> Self {
        let field = Some(Field { in_cdb: false, byte, bit });
        Self { field, ..Self::new(Key::IllegalRequest, Code::INVALID_FIELD_IN_PARAMETER_LIST) }
    }

    /// The data differs from the medium; `information` is the block or the offset (SBC-3 5.2, VERIFY(10)).
    #[must_use]
    pub const fn miscompare(information: u64) -> Self {
        let sense = Self::new(Key::Miscompare, Code::MISCOMPARE_DURING_VERIFY);
        Self { information: Some(information), ..sense }
    }

    /// The sense data for a storage error. `read` says that a read failed; `sectors_per_block` turns
    /// the storage's sector into a logical block (a shift, since it is a power of two).
    #[must_use]
    pub fn storage(error: IoError, read: bool, sectors_per_block: u64) -> Self {
        let shift = sectors_per_block.trailing_zeros();
        let information = error.lba.map(|lba| lba.0.checked_shr(shift).unwrap_or(0));
        let (key, code) = match error.kind {
            IoErrorKind::Medium if read => (Key::MediumError, Code::UNRECOVERED_READ_ERROR),
            IoErrorKind::Medium => (Key::MediumError, Code::WRITE_ERROR),
            IoErrorKind::NoSpace => (Key::DataProtect, Code::SPACE_ALLOCATION_FAILED),
            IoErrorKind::ReadOnly => (Key::DataProtect, Code::WRITE_PROTECTED),
            IoErrorKind::OutOfRange => (Key::IllegalRequest, Code::LBA_OUT_OF_RANGE),
            IoErrorKind::Memory => (Key::AbortedCommand, Code::DATA_PHASE_ERROR),
            IoErrorKind::Absent => (Key::NotReady, Code::MEDIUM_NOT_PRESENT),
            IoErrorKind::Latched | IoErrorKind::Unsupported => {
                (Key::HardwareError, Code::INTERNAL_TARGET_FAILURE)
            }
        };
        // Reads go on after a failed durable operation: one that meets the latch was a READ with FUA, whose flush
        // failed. What was lost is the data of earlier writes, so this is a deferred error (SPC-4, deferred errors).
        let deferred = read && error.kind == IoErrorKind::Latched;
        Self { information, deferred, ..Self::new(key, code) }
    }

    /// The bytes, in descriptor format if `descriptors` (D_SENSE, or DESC of REQUEST SENSE), else in fixed format.
    #[must_use]
    pub fn encode(&self, descriptors: bool) -> SenseBytes {
        let mut bytes = SenseBytes::new();
        // Every part is shorter than the room for it, so that nothing is cut off here.
        let mut put = |part: &[u8]| bytes.extend_from_slice(part).unwrap_or_default();
        let deferred = u8::from(self.deferred);
        let field = self.field.map(pointer);
        if !descriptors {
            // VALID=0 where the information does not fit: SPC-4 4.5.3.
            let information = self.information.and_then(|value| u32::try_from(value).ok());
            let valid = if information.is_some() { 0x80 } else { 0 };
            let fixed = Fixed {
                response: 0x70 | deferred | valid,
                obsolete: 0,
                key: self.key as u8,
                information: information.unwrap_or(0).into(),
                additional_bytes: 10,
                command_specific: 0.into(),
                code: self.code.0.into(),
                unit: 0,
                field: field.unwrap_or(FieldPointer { flags: 0, byte: 0.into() }),
            };
            put(fixed.as_bytes());
            return bytes;
        }
        let information = self.information.map(|value| Information {
            kind: 0x00,
            bytes: 0x0a,
            valid: 0x80,
            reserved: 0,
            information: value.into(),
        });
        let specific = field.map(|field| KeySpecific {
            kind: 0x02,
            bytes: 0x06,
            reserved: [0; 2],
            field,
            reserved_too: 0,
        });
        let head = DescriptorHead {
            response: 0x72 | deferred,
            key: self.key as u8,
            code: self.code.0.into(),
            reserved: [0; 3],
            additional_bytes: match (information.is_some(), specific.is_some()) {
                (false, false) => 0,
                (true, false) => 12,
                (false, true) => 8,
                (true, true) => 20,
            },
        };
        put(head.as_bytes());
        put(information.as_ref().map_or(&[][..], IntoBytes::as_bytes));
        put(specific.as_ref().map_or(&[][..], IntoBytes::as_bytes));
        bytes
    }
}

fn pointer(field: Field) -> FieldPointer {
    let place = if field.in_cdb { 0xc0 } else { 0x80 };
    let bit = field.bit.map_or(0, |bit| 0x08 | (bit & 7));
    FieldPointer { flags: place | bit, byte: field.byte.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blk_core::units::Lba;

    #[test]
    fn sense_is_printed_by_its_numbers() {
        let printed = std::string::ToString::to_string(&Sense::cdb_field(2, None));
        assert_eq!(printed, "IllegalRequest (5h/24h/00h)");
    }

    #[test]
    fn both_formats_carry_key_code_information_and_field() {
        let sense = Sense { information: Some(0x1_0000_0002), ..Sense::cdb_field(2, Some(5)) };
        let fixed = sense.encode(false);
        assert_eq!(fixed.len(), 18);
        assert_eq!(fixed[0], 0x70, "VALID=0: the information does not fit");
        assert_eq!((fixed[2], fixed[7], fixed[12], fixed[13]), (5, 10, 0x24, 0));
        assert_eq!(fixed[15..18], [0xcd, 0, 2]);
        let descriptors = sense.encode(true);
        assert_eq!(descriptors[..8], [0x72, 5, 0x24, 0, 0, 0, 0, 20]);
        assert_eq!(descriptors[8..20], [0, 0x0a, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 2]);
        assert_eq!(descriptors[20..28], [2, 6, 0, 0, 0xcd, 0, 2, 0]);
        let small = Sense { information: Some(7), ..Sense::OUT_OF_RANGE }.encode(false);
        assert_eq!((small[0], &small[3..7]), (0xf0, &[0, 0, 0, 7][..]));
    }

    #[test]
    fn a_latched_read_with_fua_is_a_deferred_error() {
        let error = IoError { kind: IoErrorKind::Latched, lba: Some(Lba(16)) };
        let sense = Sense::storage(error, true, 8);
        assert!(sense.deferred);
        assert_eq!((sense.key, sense.information), (Key::HardwareError, Some(2)));
        assert_eq!(sense.encode(false)[0], 0xf1);
        assert_eq!(sense.encode(true)[0], 0x73);
        assert!(!Sense::storage(error, false, 8).deferred);
    }
}
