//! Command descriptor blocks. Commands of one length share a layout where their fields have the same places.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$field_doc])* pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}
pub(crate) use layout;

layout! {
    /// READ(6), WRITE(6): SBC-3, READ(6).
    Block6, 6, {
        /// Operation code.
        opcode: u8,
        /// Bits 4:0 are bits 20:16 of the LBA.
        lba_high: u8,
        /// The rest of the LBA.
        lba_low: U16,
        /// Blocks; 0 stands for 256.
        blocks: u8,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// READ(10), WRITE(10), VERIFY(10), SYNCHRONIZE CACHE(10), WRITE SAME(10): SBC-3, READ(10).
    Block10, 10, {
        /// Operation code.
        opcode: u8,
        /// DPO, FUA and their like.
        flags: u8,
        /// First logical block.
        lba: U32,
        /// GROUP NUMBER.
        group: u8,
        /// Blocks.
        blocks: U16,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// READ(12) and its like: SBC-3, READ(12).
    Block12, 12, {
        /// Operation code.
        opcode: u8,
        /// DPO, FUA and their like.
        flags: u8,
        /// First logical block.
        lba: U32,
        /// Blocks.
        blocks: U32,
        /// GROUP NUMBER.
        group: u8,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// READ(16) and its like: SBC-3, READ(16). COMPARE AND WRITE (5.2) has its count in the last byte of `blocks`.
    Block16, 16, {
        /// Operation code.
        opcode: u8,
        /// DPO, FUA and their like.
        flags: u8,
        /// First logical block.
        lba: U64,
        /// Blocks.
        blocks: U32,
        /// GROUP NUMBER.
        group: u8,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// UNMAP: SBC-3 5.28. MODE SELECT(10) has its length in the same place.
    ParameterOut10, 10, {
        /// Operation code.
        opcode: u8,
        /// ANCHOR; or PF and SP.
        flags: u8,
        /// Reserved, and GROUP NUMBER in the last byte.
        reserved: [u8; 5],
        /// PARAMETER LIST LENGTH in bytes.
        list_bytes: U16,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// INQUIRY: SPC-4, INQUIRY.
    Inquiry6, 6, {
        /// Operation code.
        opcode: u8,
        /// EVPD is bit 0.
        flags: u8,
        /// PAGE CODE.
        page: u8,
        /// ALLOCATION LENGTH in bytes.
        allocation: U16,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// Other 6-byte commands: REQUEST SENSE, MODE SENSE(6), MODE SELECT(6), START STOP UNIT.
    Short6, 6, {
        /// Operation code.
        opcode: u8,
        /// DESC; DBD; PF and SP; IMMED.
        flags: u8,
        /// PC and PAGE CODE.
        page: u8,
        /// SUBPAGE CODE.
        subpage: u8,
        /// A length in bytes, or START and its like.
        last: u8,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// MODE SENSE(10): SPC-4, MODE SENSE(10).
    ModeSense10, 10, {
        /// Operation code.
        opcode: u8,
        /// LLBAA is bit 4, DBD bit 3.
        flags: u8,
        /// PC and PAGE CODE.
        page: u8,
        /// SUBPAGE CODE.
        subpage: u8,
        /// Reserved.
        reserved: [u8; 3],
        /// ALLOCATION LENGTH in bytes.
        allocation: U16,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// REPORT LUNS: SPC-4, REPORT LUNS.
    ReportLuns12, 12, {
        /// Operation code.
        opcode: u8,
        /// Reserved.
        reserved: u8,
        /// SELECT REPORT.
        select: u8,
        /// Reserved.
        reserved_too: [u8; 3],
        /// ALLOCATION LENGTH in bytes.
        allocation: U32,
        /// Reserved.
        reserved_last: u8,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// REPORT SUPPORTED OPERATION CODES: SPC-4, REPORT SUPPORTED OPERATION CODES.
    ReportOpcodes12, 12, {
        /// Operation code.
        opcode: u8,
        /// SERVICE ACTION.
        service_action: u8,
        /// RCTD is bit 7, REPORTING OPTIONS bits 2:0.
        options: u8,
        /// REQUESTED OPERATION CODE.
        requested_opcode: u8,
        /// REQUESTED SERVICE ACTION.
        requested_service_action: U16,
        /// ALLOCATION LENGTH in bytes.
        allocation: U32,
        /// Reserved.
        reserved: u8,
        /// CONTROL.
        control: u8,
    }
}
layout! {
    /// READ CAPACITY(16), GET LBA STATUS: SBC-3 5.16, GET LBA STATUS.
    ServiceActionIn16, 16, {
        /// Operation code.
        opcode: u8,
        /// SERVICE ACTION.
        service_action: u8,
        /// LOGICAL BLOCK ADDRESS.
        lba: U64,
        /// ALLOCATION LENGTH in bytes.
        allocation: U32,
        /// PMI is bit 0.
        flags: u8,
        /// CONTROL.
        control: u8,
    }
}
