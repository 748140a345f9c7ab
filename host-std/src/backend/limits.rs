//! Limits of one operation: bytes and segments.

/// Bytes of a staging buffer.
pub(super) const STAGING_BYTES: u32 = 64 * 1024;
/// Bytes that one read or write may move: more than one ATA command can (65,536 sectors), and than firmware that reads a kernel
/// from virtio-blk in one request; below what Linux moves in one call (`MAX_RW_COUNT`).
pub(super) const TRANSFER_MAX_BYTES: u32 = 256 * 1024 * 1024;
/// Bytes that one read or write through an io_uring may move: the kernel pins the memory of all that is submitted, and makes bios of
/// it, on the queue's thread (some 100 us for each MiB). What is larger goes to the workers, of whom a few keep a disk busy with that.
pub(super) const RING_BYTES_MAX: u32 = 4 * 1024 * 1024;
/// Largest block that direct I/O may demand: the largest page of an architecture that Linux runs on.
pub(super) const ALIGN_MAX: u32 = 64 * 1024;
/// Segments that one operation may have: as many as Linux puts into a command of an AHCI drive (`AHCI_MAX_SG`), so that none is done
/// in pieces, one after the other.
pub(super) const SEGMENTS_MAX: u16 = 168;
