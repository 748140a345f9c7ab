//! Mode parameters: SPC-4, mode parameters; SBC-3, parameters for direct access block devices.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cdb::layout;

layout! {
    /// Mode parameter header(6): SPC-4, mode parameter header formats.
    Header6, 4, {
        /// MODE DATA LENGTH: bytes that follow it.
        data_bytes: u8,
        /// MEDIUM TYPE.
        medium: u8,
        /// WP is bit 7, DPOFUA bit 4 (SBC-3, mode parameters, device-specific parameter).
        device_specific: u8,
        /// BLOCK DESCRIPTOR LENGTH in bytes.
        descriptor_bytes: u8,
    }
}
layout! {
    /// Mode parameter header(10): SPC-4, mode parameter header formats.
    Header10, 8, {
        /// MODE DATA LENGTH: bytes that follow it.
        data_bytes: U16,
        /// MEDIUM TYPE.
        medium: u8,
        /// WP is bit 7, DPOFUA bit 4 (SBC-3, mode parameters, device-specific parameter).
        device_specific: u8,
        /// LONGLBA is bit 0.
        long_lba: u8,
        /// Reserved.
        reserved: u8,
        /// BLOCK DESCRIPTOR LENGTH in bytes.
        descriptor_bytes: U16,
    }
}
layout! {
    /// Short LBA mode parameter block descriptor: SBC-3, short LBA mode parameter block descriptor.
    ShortDescriptor, 8, {
        /// NUMBER OF LOGICAL BLOCKS, or FFFFFFFFh.
        blocks: U32,
        /// Bits 23:0 are the LOGICAL BLOCK LENGTH in bytes.
        block_bytes: U32,
    }
}
layout! {
    /// Long LBA mode parameter block descriptor: SBC-3, long LBA mode parameter block descriptor.
    LongDescriptor, 16, {
        /// NUMBER OF LOGICAL BLOCKS.
        blocks: U64,
        /// Reserved.
        reserved: U32,
        /// LOGICAL BLOCK LENGTH in bytes.
        block_bytes: U32,
    }
}
layout! {
    /// Read-write error recovery page 01h: SBC-3, Read-Write Error Recovery mode page.
    ErrorRecovery, 12, {
        /// PS 7, SPF 6, PAGE CODE 5:0.
        code: u8,
        /// Bytes that follow.
        bytes: u8,
        /// AWRE 7, ARRE 6 and others.
        flags: u8,
        /// READ RETRY COUNT.
        read_retries: u8,
        /// Obsolete.
        obsolete: [u8; 3],
        /// LBPERE is bit 7.
        flags7: u8,
        /// WRITE RETRY COUNT.
        write_retries: u8,
        /// Reserved.
        reserved: u8,
        /// RECOVERY TIME LIMIT.
        time_limit: U16,
    }
}
layout! {
    /// Caching page 08h: SBC-3, Caching mode page.
    Caching, 20, {
        /// PS 7, SPF 6, PAGE CODE 5:0.
        code: u8,
        /// Bytes that follow.
        bytes: u8,
        /// WCE is bit 2, RCD bit 0.
        flags: u8,
        /// RETENTION PRIORITIES.
        retention: u8,
        /// Prefetch: disable length, minimum, maximum, ceiling.
        prefetch: [U16; 4],
        /// FSW 7, LBCSS 6, DRA 5, NV_DIS 0.
        flags12: u8,
        /// NUMBER OF CACHE SEGMENTS.
        segments: u8,
        /// CACHE SEGMENT SIZE.
        segment_size: U16,
        /// Reserved and obsolete.
        reserved: [u8; 4],
    }
}
layout! {
    /// Control page 0Ah: SPC-4, Control mode page.
    Control, 12, {
        /// PS 7, SPF 6, PAGE CODE 5:0.
        code: u8,
        /// Bytes that follow.
        bytes: u8,
        /// TST 7:5, TMF_ONLY 4, DPICZ 3, D_SENSE 2, GLTSD 1, RLEC 0.
        flags: u8,
        /// QUEUE ALGORITHM MODIFIER 7:4, NUAR 3, QERR 2:1.
        queue: u8,
        /// RAC 6, UA_INTLCK_CTRL 5:4, SWP 3.
        flags4: u8,
        /// ATO 7, TAS 6, AUTOLOAD MODE 2:0.
        flags5: u8,
        /// Obsolete.
        obsolete: [u8; 2],
        /// BUSY TIMEOUT PERIOD.
        busy_timeout: U16,
        /// EXTENDED SELF-TEST COMPLETION TIME.
        self_test: U16,
    }
}
layout! {
    /// Informational exceptions control page 1Ch: SPC-4, Informational Exceptions Control mode page (for disks SBC-3, Informational Exceptions Control mode page).
    Exceptions, 12, {
        /// PS 7, SPF 6, PAGE CODE 5:0.
        code: u8,
        /// Bytes that follow.
        bytes: u8,
        /// PERF 7, EWASC 4, DEXCPT 3 and others.
        flags: u8,
        /// MRIE.
        method: u8,
        /// INTERVAL TIMER.
        interval: U32,
        /// REPORT COUNT.
        reports: U32,
    }
}
