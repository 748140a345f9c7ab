//! Data of INQUIRY, READ CAPACITY, REPORT LUNS and REPORT SUPPORTED OPERATION CODES, and UNMAP's parameter list.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cdb::layout;

layout! {
    /// Standard INQUIRY data: SPC-4, standard INQUIRY data.
    Inquiry, 96, {
        /// PERIPHERAL QUALIFIER 7:5 and DEVICE TYPE 4:0.
        peripheral: u8,
        /// RMB is bit 7.
        removable: u8,
        /// VERSION.
        version: u8,
        /// NORMACA bit 5, HISUP bit 4, RESPONSE DATA FORMAT 3:0.
        format: u8,
        /// Bytes that follow.
        additional_bytes: u8,
        /// SCCS, TPGS, 3PC, PROTECT.
        flags5: u8,
        /// ENCSERV, MULTIP.
        flags6: u8,
        /// CMDQUE is bit 1.
        flags7: u8,
        /// T10 VENDOR IDENTIFICATION.
        vendor: [u8; 8],
        /// PRODUCT IDENTIFICATION.
        product: [u8; 16],
        /// PRODUCT REVISION LEVEL.
        revision: [u8; 4],
        /// Vendor specific, and two reserved bytes.
        vendor_specific: [u8; 22],
        /// VERSION DESCRIPTORS.
        versions: [U16; 8],
        /// Reserved.
        reserved: [u8; 22],
    }
}
layout! {
    /// Head of every vital product data page: SPC-4, vital product data parameters.
    VpdHead, 4, {
        /// PERIPHERAL QUALIFIER and DEVICE TYPE.
        peripheral: u8,
        /// PAGE CODE.
        page: u8,
        /// Bytes that follow.
        bytes: U16,
    }
}
layout! {
    /// Head of a designation descriptor of page 83h: SPC-4, Device Identification VPD page.
    Designator, 4, {
        /// PROTOCOL IDENTIFIER 7:4, CODE SET 3:0.
        code_set: u8,
        /// PIV 7, ASSOCIATION 5:4, DESIGNATOR TYPE 3:0.
        kind: u8,
        /// Reserved.
        reserved: u8,
        /// Bytes that follow.
        bytes: u8,
    }
}
layout! {
    /// Extended INQUIRY data, page 86h, without its head: SPC-4, Extended INQUIRY Data VPD page.
    ExtendedInquiry, 60, {
        /// Protection.
        flags4: u8,
        /// UASK_SUP 5, GROUP_SUP 4, PRIOR_SUP 3, HEADSUP 2, ORDSUP 1, SIMPSUP 0.
        attributes: u8,
        /// WU_SUP 3, CRD_SUP 2, NV_SUP 1, V_SUP 0.
        cache: u8,
        /// The rest.
        rest: [u8; 57],
    }
}
layout! {
    /// Block limits, page B0h, without its head: SBC-3, Block Limits VPD page.
    BlockLimits, 60, {
        /// WSNZ is bit 0.
        wsnz: u8,
        /// MAXIMUM COMPARE AND WRITE LENGTH in blocks.
        compare_and_write_max: u8,
        /// OPTIMAL TRANSFER LENGTH GRANULARITY in blocks.
        transfer_granularity: U16,
        /// MAXIMUM TRANSFER LENGTH in blocks.
        transfer_max: U32,
        /// OPTIMAL TRANSFER LENGTH in blocks.
        transfer_optimal: U32,
        /// MAXIMUM PREFETCH LENGTH in blocks.
        prefetch_max: U32,
        /// MAXIMUM UNMAP LBA COUNT in blocks.
        unmap_max: U32,
        /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
        unmap_descriptors_max: U32,
        /// OPTIMAL UNMAP GRANULARITY in blocks.
        unmap_granularity: U32,
        /// UGAVALID is bit 31, UNMAP GRANULARITY ALIGNMENT the rest.
        unmap_alignment: U32,
        /// MAXIMUM WRITE SAME LENGTH in blocks.
        write_same_max: U64,
        /// Atomic lengths of SBC-4, and reserved bytes.
        atomic: [u8; 20],
    }
}
layout! {
    /// Block device characteristics, page B1h, without its head: SBC-3, Block Device Characteristics VPD page.
    Characteristics, 60, {
        /// MEDIUM ROTATION RATE: 1 is a medium that does not rotate, 0 is not reported.
        rotation: U16,
        /// The rest.
        rest: [u8; 58],
    }
}
layout! {
    /// Logical block provisioning, page B2h, without its head: SBC-3, Logical Block Provisioning VPD page.
    Provisioning, 4, {
        /// THRESHOLD EXPONENT.
        threshold: u8,
        /// LBPU 7, LBPWS 6, LBPWS10 5, LBPRZ 2, ANC_SUP 1, DP 0.
        flags: u8,
        /// PROVISIONING TYPE 2:0.
        kind: u8,
        /// Reserved.
        reserved: u8,
    }
}
layout! {
    /// READ CAPACITY(10) data: SBC-3 5.15.2.
    Capacity10, 8, {
        /// LBA of the last block, or FFFFFFFFh.
        last: U32,
        /// Bytes in a logical block.
        block_bytes: U32,
    }
}
layout! {
    /// READ CAPACITY(16) data: SBC-3 5.16.2.
    Capacity16, 32, {
        /// LBA of the last block.
        last: U64,
        /// Bytes in a logical block.
        block_bytes: U32,
        /// P_TYPE and PROT_EN.
        protection: u8,
        /// P_I_EXPONENT 7:4, LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT 3:0.
        exponent: u8,
        /// LBPME 15, LBPRZ 14, LOWEST ALIGNED LOGICAL BLOCK ADDRESS 13:0.
        provisioning: U16,
        /// Reserved.
        reserved: [u8; 16],
    }
}
layout! {
    /// GET LBA STATUS data with one descriptor: SBC-3, GET LBA STATUS.
    LbaStatus, 24, {
        /// Bytes that follow.
        bytes: U32,
        /// Reserved.
        reserved: [u8; 4],
        /// First logical block.
        lba: U64,
        /// Blocks that are alike.
        blocks: U32,
        /// PROVISIONING STATUS 3:0. 0: mapped, or in an unknown state.
        status: u8,
        /// Reserved.
        reserved_too: [u8; 3],
    }
}
layout! {
    /// Head of REPORT LUNS data: SPC-4, REPORT LUNS.
    LunsHead, 8, {
        /// Bytes that follow this head.
        bytes: U32,
        /// Reserved.
        reserved: [u8; 4],
    }
}
layout! {
    /// A command of REPORT SUPPORTED OPERATION CODES with REPORTING OPTIONS 0: SPC-4, all_commands parameter data format.
    OpcodeEntry, 8, {
        /// OPERATION CODE.
        opcode: u8,
        /// Reserved.
        reserved: u8,
        /// SERVICE ACTION.
        service_action: U16,
        /// Reserved.
        reserved_too: u8,
        /// CTDP is bit 1, SERVACTV bit 0.
        flags: u8,
        /// CDB LENGTH.
        cdb_bytes: U16,
    }
}
layout! {
    /// Head of REPORT SUPPORTED OPERATION CODES for one command: SPC-4, REPORT SUPPORTED OPERATION CODES.
    OneOpcode, 4, {
        /// Reserved.
        reserved: u8,
        /// CTDP is bit 7, SUPPORT 2:0.
        support: u8,
        /// Bytes of CDB USAGE DATA that follow.
        cdb_bytes: U16,
    }
}
layout! {
    /// Command timeouts descriptor: SPC-4, command timeouts descriptor.
    Timeouts, 12, {
        /// Bytes that follow: 000Ah.
        bytes: U16,
        /// Reserved.
        reserved: u8,
        /// COMMAND SPECIFIC.
        command_specific: u8,
        /// NOMINAL COMMAND PROCESSING TIMEOUT in seconds, 0: none.
        nominal: U32,
        /// RECOMMENDED COMMAND TIMEOUT in seconds, 0: none.
        recommended: U32,
    }
}
layout! {
    /// Head of the UNMAP parameter list: SBC-3 5.28.2.
    UnmapHead, 8, {
        /// UNMAP DATA LENGTH: bytes that follow it.
        bytes: U16,
        /// UNMAP BLOCK DESCRIPTOR DATA LENGTH in bytes.
        descriptor_bytes: U16,
        /// Reserved.
        reserved: [u8; 4],
    }
}
layout! {
    /// UNMAP block descriptor: SBC-3 5.28.2.
    UnmapDescriptor, 16, {
        /// First logical block.
        lba: U64,
        /// Blocks.
        blocks: U32,
        /// Reserved.
        reserved: [u8; 4],
    }
}
