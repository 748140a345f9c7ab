//! Decoder of requests, without any effect.

use blk_core::op::Op;
use blk_core::order::Order;
use blk_core::storage::Info;
use blk_core::units::{Extent, SECTOR_BYTES};

use crate::wire::{Features, RangeFlags, RangeSegment, RequestHeader, Status};

/// Most segments in a discard or write-zeroes: `max_discard_seg` and `max_write_zeroes_seg`.
pub const RANGES_MAX: usize = 16;

/// Most sectors in one segment of a discard or write-zeroes: 2 GiB, so that none keeps a host busy for long.
pub const RANGE_SECTORS_MAX: u32 = 1 << 22;

/// VIRTIO_BLK_T_BARRIER, in legacy drivers (VIRTIO 1.3, 5.2.6.3 and Linux `uapi/linux/virtio_blk.h`).
const BARRIER: u32 = 1 << 31;

/// Experimental, with REQ_FLAGS_OUT_FUA: the bit of the header's second word that asks for FUA (virtio-spec issue 237).
const REQ_FLAG_FUA: u32 = 1;

/// A request, decoded from its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Command {
    /// VIRTIO_BLK_T_IN.
    Read {
        /// First sector.
        sector: u64,
    },
    /// VIRTIO_BLK_T_OUT.
    Write {
        /// First sector.
        sector: u64,
        /// Stable on completion.
        fua: bool,
    },
    /// VIRTIO_BLK_T_FLUSH, or the legacy VIRTIO_BLK_T_FLUSH_OUT.
    Flush,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// A type that this device does not do.
    Unknown {
        /// The type, as the driver wrote it.
        kind: u32,
    },
}

/// When a type of request is done, and its feature offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Always,
    /// Where the storage releases space.
    Discards,
}

/// Command of a request type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
}

/// A type of request: what dispatches it and what advertises it.
struct Row {
    code: u32,
    kind: Kind,
    feature: Features,
    /// Whether it changes the disk: never done, nor offered, on a read-only one.
    mutates: bool,
    when: When,
}

const fn row(code: u32, kind: Kind, feature: Features, mutates: bool, when: When) -> Row {
    Row { code, kind, feature, mutates, when }
}

/// VIRTIO 1.3, 5.2.6. Not here, and so UNSUPP: the legacy SCSI commands (2, 3), GET_LIFETIME (10), SECURE_ERASE (14)
/// and the zone commands (15 on).
const ROWS: [Row; 7] = [
    row(0, Kind::In, Features::empty(), false, When::Always),
    row(1, Kind::Out, Features::empty(), true, When::Always),
    row(4, Kind::Flush, Features::FLUSH, false, When::Always),
    // VIRTIO_BLK_T_FLUSH_OUT, legacy (5.2.6.3).
    row(5, Kind::Flush, Features::FLUSH, false, When::Always),
    row(8, Kind::GetId, Features::empty(), false, When::Always),
    row(11, Kind::Discard, Features::DISCARD, true, When::Discards),
    row(13, Kind::WriteZeroes, Features::WRITE_ZEROES, true, When::Always),
];

impl Row {
    const fn done_on(&self, info: &Info) -> bool {
        match self.when {
            When::Always => true,
            When::Discards => info.discard,
        }
    }
}

/// The feature bits of the commands that are done on this storage.
#[must_use]
pub fn features(info: &Info, read_only: bool) -> Features {
    let done = ROWS.iter().filter(|row| row.done_on(info) && !(row.mutates && read_only));
    done.fold(Features::empty(), |features, row| features | row.feature)
}

/// Decodes a header for a driver that negotiated `features`.
///
/// # Errors
/// [`Status::IoErr`] for a change to a read-only disk, also from a driver that did not accept RO.
#[inline]
pub fn decode(
    header: &RequestHeader,
    features: Features,
    info: &Info,
    read_only: bool,
) -> Result<(Command, Order), Status> {
    let code = header.kind.get();
    let barrier = code & BARRIER != 0 && features.contains(Features::BARRIER);
    let (kind, order) = if barrier { (code & !BARRIER, Order::Barrier) } else { (code, Order::Free) };
    let sector = header.sector.get();
    let Some(row) = ROWS.iter().find(|row| row.code == kind && row.done_on(info)) else {
        return Ok((Command::Unknown { kind: code }, order));
    };
    if row.mutates && read_only {
        return Err(Status::IoErr);
    }
    let command = match row.kind {
        Kind::In => Command::Read { sector },
        Kind::Out => {
            let flags = features.contains(Features::REQ_FLAGS | Features::REQ_FLAGS_OUT_FUA);
            Command::Write { sector, fua: flags && header.reserved.get() & REQ_FLAG_FUA != 0 }
        }
        Kind::Flush => Command::Flush,
        Kind::GetId => Command::GetId,
        Kind::Discard => Command::Discard,
        Kind::WriteZeroes => Command::WriteZeroes,
    };
    Ok((command, order))
}

/// The operation of a read or write that moves `bytes` bytes, or of a flush, and whether the driver asked for FUA.
///
/// # Errors
/// [`Status::IoErr`] as [`transfer`] has it; [`Status::Unsupported`] for what is no such command.
#[inline]
pub fn operation(command: Command, bytes: u64, info: &Info) -> Result<(Op, bool), Status> {
    Ok(match command {
        Command::Read { sector } => (Op::Read { extent: transfer(sector, bytes, info)? }, false),
        Command::Write { sector, fua } => {
            (Op::Write { extent: transfer(sector, bytes, info)?, fua: false }, fua)
        }
        Command::Flush => (Op::Flush, false),
        _ => return Err(Status::Unsupported),
    })
}

/// The sectors of a read or write of `bytes` bytes from `sector` on.
///
/// # Errors
/// [`Status::IoErr`] if there is no data, if it is no multiple of 512 bytes or of the logical block (CVE-2011-1750), or
/// more than the storage moves at once, or if the range leaves the disk or wraps.
#[inline]
pub fn transfer(sector: u64, bytes: u64, info: &Info) -> Result<Extent, Status> {
    let whole = bytes.is_multiple_of(u64::from(SECTOR_BYTES));
    if bytes == 0 || !whole || bytes > u64::from(info.transfer_max_bytes) {
        return Err(Status::IoErr);
    }
    within(Extent::new(sector, bytes >> SECTOR_BYTES.trailing_zeros()), info)
}

/// The segments of a discard or write-zeroes, all of them checked.
///
/// # Errors
/// [`Status::IoErr`] for no segment, or half of one; and as [`range`] has it.
pub fn ranges<'a>(command: Command, bytes: &'a [u8], info: &Info) -> Result<&'a [RangeSegment], Status> {
    use zerocopy::FromBytes as _;
    let segments = <[RangeSegment]>::ref_from_bytes(bytes).map_err(|_| Status::IoErr)?;
    if segments.is_empty() {
        return Err(Status::IoErr);
    }
    segments.iter().try_for_each(|segment| range(command, segment, info).map(drop))?;
    Ok(segments)
}

/// Decodes a segment of a discard or write-zeroes.
///
/// # Errors
/// [`Status::Unsupported`] for a flag that is unknown, or unmap in a discard (VIRTIO 1.3, 5.2.6.2); [`Status::IoErr`] for a segment
/// that is empty, too long or leaves the disk.
pub fn range(command: Command, segment: &RangeSegment, info: &Info) -> Result<Op, Status> {
    let flags = RangeFlags::from_bits(segment.flags.get()).ok_or(Status::Unsupported)?;
    let may_unmap = flags.contains(RangeFlags::UNMAP);
    let discard = command == Command::Discard;
    if discard && may_unmap {
        return Err(Status::Unsupported);
    }
    let sectors = segment.num_sectors.get();
    if sectors == 0 || sectors > RANGE_SECTORS_MAX {
        return Err(Status::IoErr);
    }
    let extent = within(Extent::new(segment.sector.get(), u64::from(sectors)), info)?;
    Ok(if discard { Op::Discard { extent } } else { Op::WriteZeroes { extent, may_unmap } })
}

/// `extent`, if it lies within the disk and on logical blocks.
#[inline]
fn within(extent: Extent, info: &Info) -> Result<Extent, Status> {
    // A logical block is a power of two (`Info`).
    let block_mask = info.sectors_per_block().wrapping_sub(1);
    let aligned = (extent.start.0 | extent.sectors) & block_mask == 0;
    if aligned && extent.fits(info.sectors) { Ok(extent) } else { Err(Status::IoErr) }
}
