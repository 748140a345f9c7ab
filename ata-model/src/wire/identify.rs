//! IDENTIFY DEVICE data (ACS-3 and, for what it has dropped, ATA/ATAPI-7 volume 1; names after Linux `include/linux/ata.h`).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// 256 little-endian words. Fields carry their word numbers; `_n` are words that stay zero.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the words that stay zero")]
pub struct IdentifyData {
    /// 0: bit 15 clear: an ATA device. Bit 6: not removable.
    pub general: U16,
    /// 1: cylinders of the default translation.
    pub cylinders: U16,
    pub _2: U16,
    /// 3: heads of the default translation.
    pub heads: U16,
    pub _4: [U16; 2],
    /// 6: sectors per track of the default translation.
    pub sectors_per_track: U16,
    pub _7: [U16; 3],
    /// 10-19: serial number; the bytes of each word are swapped, as in all strings here.
    pub serial: [u8; 20],
    pub _20: [U16; 3],
    /// 23-26: firmware revision.
    pub firmware: [u8; 8],
    /// 27-46: model number.
    pub model: [u8; 40],
    /// 47: bits 15:8 80h; bits 7:0 most blocks per DRQ of the MULTIPLE commands.
    pub multiple_max: U16,
    pub _48: U16,
    /// 49: bit 8 DMA, bit 9 LBA, bit 10 IORDY can be disabled, bit 11 IORDY.
    pub capabilities: U16,
    /// 50: bits 15:14 01b.
    pub capabilities_2: U16,
    pub _51: [U16; 2],
    /// 53: bit 0 words 54-58, bit 1 words 64-70, bit 2 word 88 are valid.
    pub validity: U16,
    /// 54: cylinders of the current translation.
    pub current_cylinders: U16,
    /// 55: heads of the current translation.
    pub current_heads: U16,
    /// 56: sectors per track of the current translation.
    pub current_sectors_per_track: U16,
    /// 57-58: sectors that the current translation reaches.
    pub current_sectors: U32,
    /// 59: bit 8 valid; bits 7:0 the current setting of SET MULTIPLE MODE.
    pub multiple: U16,
    /// 60-61: sectors that 28-bit commands reach.
    pub lba28_sectors: U32,
    pub _62: U16,
    /// 63: multiword DMA modes: bits 2:0 supported, 10:8 selected.
    pub multiword_dma: U16,
    /// 64: bits 1:0 PIO modes 4 and 3.
    pub pio_modes: U16,
    /// 65-68: cycle times in nanoseconds.
    pub cycle_times: [U16; 4],
    /// 69: additional supported.
    pub additional: U16,
    pub _70: [U16; 5],
    /// 75: queue depth minus one; 0 without queuing.
    pub queue_depth: U16,
    /// 76: Serial ATA capabilities: bits 3:1 signalling speeds, bit 8 queuing; 0 on a parallel device.
    pub sata_capabilities: U16,
    /// 77: more of them: bit 5 NCQ NON-DATA, bit 6 SEND and RECEIVE FPDMA QUEUED.
    pub sata_capabilities_2: U16,
    /// 78: Serial ATA features supported; bit 6: settings outlive a COMRESET.
    pub sata_features: U16,
    /// 79: the same, enabled.
    pub sata_features_enabled: U16,
    /// 80: major version: one bit for each standard followed.
    pub major_version: U16,
    pub _81: U16,
    /// 82-84 supported, 85-87 enabled command and feature sets.
    pub command_sets: [U16; 6],
    /// 88: Ultra DMA modes: bits 6:0 supported, 14:8 selected.
    pub ultra_dma: U16,
    pub _89: [U16; 4],
    /// 93: hardware reset result; bits 15:14 01b on a parallel device, bit 13 an 80-conductor cable.
    pub hardware_reset: U16,
    pub _94: [U16; 6],
    /// 100-103: sectors that 48-bit commands reach.
    pub lba48_sectors: U64,
    pub _104: U16,
    /// 105: most 512-byte blocks of a DATA SET MANAGEMENT command.
    pub dsm_blocks_max: U16,
    /// 106: bits 15:14 01b; 13 several logical sectors per physical one, 2^(3:0) of them; 12 words 117-118 are valid.
    pub sector_size: U16,
    pub _107: U16,
    /// 108-111: world wide name, most significant word first.
    pub world_wide_name: [U16; 4],
    pub _112: [U16; 5],
    /// 117-118: words per logical sector.
    pub logical_sector_words: U32,
    pub _119: [U16; 50],
    /// 169: bit 0 TRIM.
    pub data_set_management: U16,
    pub _170: [U16; 39],
    /// 209: bits 15:14 01b; bits 13:0 where logical sector 0 lies in its physical one.
    pub alignment: U16,
    pub _210: [U16; 7],
    /// 217: 1 for a medium that does not rotate; 0 unknown.
    pub rotation_rate: U16,
    pub _218: [U16; 4],
    /// 222: transport major version: bits 15:12 1h serial, one bit for each revision followed.
    pub transport_version: U16,
    pub _223: [U16; 32],
    /// 255: bits 7:0 A5h; bits 15:8 make the sum of all 512 bytes zero.
    pub integrity: U16,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<IdentifyData>() == 512);
    assert!(offset_of!(IdentifyData, serial) == 10 * 2);
    assert!(offset_of!(IdentifyData, model) == 27 * 2);
    assert!(offset_of!(IdentifyData, multiple) == 59 * 2);
    assert!(offset_of!(IdentifyData, additional) == 69 * 2);
    assert!(offset_of!(IdentifyData, sata_features) == 78 * 2);
    assert!(offset_of!(IdentifyData, transport_version) == 222 * 2);
    assert!(offset_of!(IdentifyData, command_sets) == 82 * 2);
    assert!(offset_of!(IdentifyData, hardware_reset) == 93 * 2);
    assert!(offset_of!(IdentifyData, lba48_sectors) == 100 * 2);
    assert!(offset_of!(IdentifyData, sector_size) == 106 * 2);
    assert!(offset_of!(IdentifyData, logical_sector_words) == 117 * 2);
    assert!(offset_of!(IdentifyData, data_set_management) == 169 * 2);
    assert!(offset_of!(IdentifyData, alignment) == 209 * 2);
    assert!(offset_of!(IdentifyData, rotation_rate) == 217 * 2);
    assert!(offset_of!(IdentifyData, integrity) == 255 * 2);
};
