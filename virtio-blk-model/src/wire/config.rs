//! The configuration space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, little_endian as le};

/// `struct virtio_blk_config` (VIRTIO 1.3, 5.2.4), up to the fields of the features that are offered.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConfigSpace {
    /// Capacity in 512-byte sectors.
    pub capacity: le::U64,
    /// Most bytes in a data segment, with SIZE_MAX.
    pub size_max: le::U32,
    /// Most data segments in a request, with SEG_MAX.
    pub seg_max: le::U32,
    /// Cylinders, heads and sectors, with GEOMETRY, which is not offered.
    pub geometry: [u8; 4],
    /// Bytes of a logical block, with BLK_SIZE.
    pub blk_size: le::U32,
    /// Logical blocks in a physical block, as a power of two, with TOPOLOGY.
    pub physical_block_exp: u8,
    /// Logical block at which the first physical block begins.
    pub alignment_offset: u8,
    /// Smallest I/O without a penalty, in logical blocks.
    pub min_io_size: le::U16,
    /// Preferred I/O, in logical blocks.
    pub opt_io_size: le::U32,
    /// 1: write-back; 0: write-through. With CONFIG_WCE, and then writable.
    pub writeback: u8,
    /// Unused.
    pub unused0: u8,
    /// Request queues, with MQ.
    pub num_queues: le::U16,
    /// Most sectors in a segment of a discard, with DISCARD.
    pub max_discard_sectors: le::U32,
    /// Most segments in a discard.
    pub max_discard_seg: le::U32,
    /// What the sectors of a discard should be aligned to, in sectors.
    pub discard_sector_alignment: le::U32,
    /// Most sectors in a segment of a write-zeroes, with WRITE_ZEROES.
    pub max_write_zeroes_sectors: le::U32,
    /// Most segments in a write-zeroes.
    pub max_write_zeroes_seg: le::U32,
    /// Whether a write-zeroes with the unmap flag may release space.
    pub write_zeroes_may_unmap: u8,
    /// Unused.
    pub unused1: [u8; 3],
}

impl ConfigSpace {
    /// Offset of `writeback`, the one writable field.
    pub const WRITEBACK: u64 = core::mem::offset_of!(Self, writeback) as u64;
}

const _: () = assert!(size_of::<ConfigSpace>() == 60);
const _: () = assert!(ConfigSpace::WRITEBACK == 32);
