//! Tables of the memory regions of a transfer, whatever their layout: walked once, bounded, and cut into storage operations.

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::op::Segment;
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use heapless::Vec;

use crate::command::Direction;
use crate::drive::chunk_sectors;

/// Most segments of one storage operation, which are on the stack while one is made: 512 KiB of scattered pages, and as many as
/// Linux puts into a command of a PCI IDE controller (`LIBATA_MAX_PRD`). What a table scatters wider goes in several, or through
/// the staging buffer.
const SEGMENTS: usize = 128;

/// The segments of one storage operation.
pub(super) type Segments = Vec<Segment, SEGMENTS>;

/// A place in a table of regions.
pub(super) trait Table: Copy {
    /// Whether nothing is left of the table.
    fn is_exhausted(&self) -> bool;

    /// What is left of the region at this place; `None` at the end of the table.
    fn region<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<Option<(GuestAddr, u32)>, MemoryError>;

    /// Goes on by `bytes` of the region at this place, which has as many.
    fn pass(&mut self, bytes: u32);

    /// Makes `list` one of the next at most `bytes` bytes in at most `segments_max` segments, all of them memory; returns how many
    /// bytes that are. Neighbours become one segment.
    #[inline(always)]
    fn gather<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        bytes: u32,
        segments_max: usize,
        list: &mut Segments,
    ) -> Result<u32, MemoryError> {
        list.clear();
        let mut got = 0_u32;
        while got < bytes {
            let Some((addr, left)) = self.region(memory)? else { break };
            let len = left.min(bytes.saturating_sub(got));
            if !memory.contains(addr, u64::from(len)) {
                return Err(MemoryError);
            }
            if !append(list, addr, len, segments_max) {
                break;
            }
            self.pass(len);
            got = got.saturating_add(len);
        }
        Ok(got)
    }

    /// Copies the next bytes into memory if the command reads, and out of memory if it writes.
    ///
    /// # Errors
    /// [`Stop::Short`] if the table has less of them, once those are copied.
    fn copy<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        direction: Direction,
        mut buffer: &mut [u8],
    ) -> Result<(), Stop> {
        while !buffer.is_empty() {
            let room = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
            let (addr, left) = self.region(memory)?.ok_or(Stop::Short)?;
            let len = left.min(room);
            let (piece, rest) = buffer.split_at_mut_checked(to_usize(len)).ok_or(Stop::Short)?;
            match direction {
                Direction::Read => memory.write(addr, piece)?,
                Direction::Write => memory.read(addr, piece)?,
            }
            self.pass(len);
            buffer = rest;
        }
        Ok(())
    }
}

/// A storage operation's worth of a transfer.
pub(super) struct Piece {
    pub(super) bytes: u32,
    /// It is read into the staging buffer, and goes to where the table says by [`Table::copy`].
    pub(super) staged: bool,
}

/// Why there is no next piece.
pub(super) enum Stop {
    /// The table ends before the transfer does.
    Short,
    /// The table, or what it describes, is no memory.
    Memory,
    /// It is to go through the staging buffer, and there is none that is long enough.
    NoStaging,
}

impl From<MemoryError> for Stop {
    fn from(MemoryError: MemoryError) -> Self {
        Self::Memory
    }
}

/// The next piece of a transfer, from the start of the `sectors` on that are left of it: as many whole blocks as go into one
/// operation, or one block through the staging buffer of `slot`, which is filled with it if it is to be written. Its segments are
/// put into `segments`: a list that is too long to be passed on from hand to hand. `table` is then behind the piece; of a staged
/// one that is read, before it.
#[inline(never)]
pub(super) fn next_piece<T: Table, M: GuestMemory + ?Sized, H: Storage<M>>(
    table: &mut T,
    (direction, sectors): (Direction, u64),
    segments: &mut Segments,
    slot: u16,
    memory: &M,
    storage: &mut H,
) -> Result<Piece, Stop> {
    let info = storage.info();
    let block_bytes = info.logical_block_bytes;
    let sectors = chunk_sectors(sectors, info.transfer_max_bytes, info);
    let mut wanted = u32::try_from(sectors.saturating_mul(512)).unwrap_or(u32::MAX);
    let segments_max = usize::from(info.segments_max).min(SEGMENTS);
    let start = *table;
    let mut again = false;
    loop {
        let bytes = table.gather(memory, wanted, segments_max, segments)?;
        // Nearly always all: and that is of whole blocks.
        if bytes == wanted {
            return Ok(Piece { bytes, staged: false });
        }
        if again {
            // A table that changed in between is no memory.
            return Err(Stop::Memory);
        }
        let whole = bytes.saturating_sub(bytes.checked_rem(block_bytes).unwrap_or(0));
        if whole == 0 {
            break;
        }
        if whole == bytes {
            return Ok(Piece { bytes, staged: false });
        }
        // The walk once more, and no further than the last whole block.
        (*table, wanted, again) = (start, whole, true);
    }
    if table.is_exhausted() {
        return Err(Stop::Short);
    }
    *table = start;
    through_staging(table, direction, segments, slot, memory, storage)
}

/// One block, scattered wider than an operation has segments.
#[cold]
#[inline(never)]
fn through_staging<T: Table, M: GuestMemory + ?Sized, H: Storage<M>>(
    table: &mut T,
    direction: Direction,
    segments: &mut Segments,
    slot: u16,
    memory: &M,
    storage: &mut H,
) -> Result<Piece, Stop> {
    let bytes = storage.info().logical_block_bytes;
    let buffer = storage.staging(slot).get_mut(..to_usize(bytes)).ok_or(Stop::NoStaging)?;
    if direction == Direction::Write {
        table.copy(memory, direction, buffer)?;
    }
    segments.clear();
    let _ = segments.push(Segment::Staging { offset: 0, len: bytes });
    Ok(Piece { bytes, staged: direction == Direction::Read })
}

pub(super) fn to_usize(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Adds a region to a list; returns false if that needs more than `segments_max` segments.
#[inline(always)]
fn append(list: &mut Segments, addr: GuestAddr, len: u32, segments_max: usize) -> bool {
    if let Some(Segment::Guest { addr: start, len: before }) = list.last_mut()
        && start.checked_add(u64::from(*before)) == Some(addr)
        && let Some(sum) = before.checked_add(len)
    {
        *before = sum;
        return true;
    }
    list.len() < segments_max && list.push(Segment::Guest { addr, len }).is_ok()
}
