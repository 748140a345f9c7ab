//! Sense data: SPC-4 4.5.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cdb::layout;

layout! {
    /// Sense key specific bytes for a field pointer: SPC-4, field pointer sense key specific data.
    FieldPointer, 3, {
        /// SKSV 7, C/D 6, BPV 3, BIT POINTER 2:0.
        flags: u8,
        /// FIELD POINTER.
        byte: U16,
    }
}
layout! {
    /// Fixed format sense data: SPC-4 4.5.3.
    Fixed, 18, {
        /// VALID 7, RESPONSE CODE 6:0.
        response: u8,
        /// Obsolete.
        obsolete: u8,
        /// FILEMARK, EOM, ILI, SENSE KEY 3:0.
        key: u8,
        /// INFORMATION.
        information: U32,
        /// Bytes that follow.
        additional_bytes: u8,
        /// COMMAND-SPECIFIC INFORMATION.
        command_specific: U32,
        /// ADDITIONAL SENSE CODE and QUALIFIER.
        code: U16,
        /// FIELD REPLACEABLE UNIT CODE.
        unit: u8,
        /// SENSE KEY SPECIFIC.
        field: FieldPointer,
    }
}
layout! {
    /// Head of descriptor format sense data: SPC-4, descriptor format sense data.
    DescriptorHead, 8, {
        /// RESPONSE CODE.
        response: u8,
        /// SENSE KEY 3:0.
        key: u8,
        /// ADDITIONAL SENSE CODE and QUALIFIER.
        code: U16,
        /// Reserved.
        reserved: [u8; 3],
        /// Bytes that follow.
        additional_bytes: u8,
    }
}
layout! {
    /// Information sense data descriptor: SPC-4, information sense data descriptor.
    Information, 12, {
        /// 00h.
        kind: u8,
        /// 0Ah.
        bytes: u8,
        /// VALID is bit 7.
        valid: u8,
        /// Reserved.
        reserved: u8,
        /// INFORMATION.
        information: U64,
    }
}
layout! {
    /// Sense key specific sense data descriptor: SPC-4, sense key specific sense data descriptor.
    KeySpecific, 8, {
        /// 02h.
        kind: u8,
        /// 06h.
        bytes: u8,
        /// Reserved.
        reserved: [u8; 2],
        /// SENSE KEY SPECIFIC.
        field: FieldPointer,
        /// Reserved.
        reserved_too: u8,
    }
}
