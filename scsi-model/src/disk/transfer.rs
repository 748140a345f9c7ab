//! Transfer of blocks: chunk by chunk, each of one operation or two.

use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment};
use blk_core::order::Request;
use blk_core::storage::{Info, Storage};
use blk_core::units::{Extent, SECTOR_BYTES};

use super::io::Io;
use crate::command::Against;
use crate::sense::Sense;
use crate::transport::{CHUNK_BYTES, DataError, Direction, Guest, SegmentList, Transport};

/// Kind of a block transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Verb {
    Read,
    Write,
    WriteAndVerify,
    Verify(Against),
    /// WRITE SAME of a pattern.
    Fill,
    CompareAndWrite,
    OrWrite,
}

/// Moves blocks in chunks: as many at a time as the guest's segments, the storage and the staging buffer allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Transfer {
    verb: Verb,
    extent: Extent,
    fua: bool,
    done_sectors: u64,
    /// Sectors of the operation in flight.
    chunk_sectors: u64,
    phase: Phase,
}

/// Which of a verb's operations it is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
enum Phase {
    /// Keeping others from the blocks that are read, and written as they were found.
    Hold,
    First,
    /// Reading back what was written, writing after comparing or reading.
    Second,
}

/// What one operation of a transfer does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Move {
    Hold,
    ReadGuest,
    WriteGuest,
    ReadStaging,
    WriteStaging,
}

impl Verb {
    /// Whether all of it is one atomic group (SBC-3: COMPARE AND WRITE, ORWRITE: an uninterrupted series of actions).
    const fn is_atomic(self) -> bool {
        matches!(self, Self::CompareAndWrite | Self::OrWrite)
    }

    /// What the guest's buffer gave or took once `done` bytes of the disk are done.
    #[inline(never)]
    const fn moved_bytes(self, done: u64) -> u64 {
        match self {
            Self::Read | Self::Write | Self::WriteAndVerify | Self::OrWrite | Self::Verify(Against::Data) => {
                done
            }
            Self::CompareAndWrite => done.saturating_mul(2),
            Self::Verify(Against::Nothing | Against::OneBlock) | Self::Fill => 0,
        }
    }
}

impl Transfer {
    pub(super) const fn new(verb: Verb, extent: Extent, fua: bool) -> Self {
        let phase = if verb.is_atomic() { Phase::Hold } else { Phase::First };
        Self { verb, extent, fua, done_sectors: 0, chunk_sectors: 0, phase }
    }

    pub(super) const fn is_done(&self) -> bool {
        self.done_sectors >= self.extent.sectors
    }

    /// Sectors of the operation that was given last.
    pub(super) const fn planned(&self) -> u64 {
        self.chunk_sectors
    }

    pub(super) const fn is_atomic(&self) -> bool {
        self.verb.is_atomic()
    }

    /// Bytes that the guest's buffer gave or took so far.
    #[inline]
    pub(super) const fn moved_bytes(&self) -> u64 {
        let done = sector_bytes(self.done_sectors);
        if self.is_plain() { done } else { self.verb.moved_bytes(done) }
    }

    /// Whether the operation in flight reads.
    pub(super) const fn reads(&self) -> bool {
        matches!(self.movement_in_phase(), Move::ReadGuest | Move::ReadStaging)
    }

    /// Whether it is READ or WRITE, whose operations are all alike.
    #[inline]
    pub(super) const fn is_plain(&self) -> bool {
        matches!(self.verb, Verb::Read | Verb::Write)
    }

    #[inline]
    const fn movement(&self) -> Move {
        match self.verb {
            Verb::Read => Move::ReadGuest,
            Verb::Write => Move::WriteGuest,
            _ => self.movement_in_phase(),
        }
    }

    #[inline(never)]
    const fn movement_in_phase(&self) -> Move {
        match (self.verb, self.phase) {
            (_, Phase::Hold) => Move::Hold,
            (Verb::Read, _) => Move::ReadGuest,
            (Verb::Write, _)
            | (Verb::WriteAndVerify, Phase::First)
            | (Verb::CompareAndWrite, Phase::Second) => Move::WriteGuest,
            (Verb::Verify(_), _)
            | (Verb::WriteAndVerify, Phase::Second)
            | (Verb::CompareAndWrite | Verb::OrWrite, Phase::First) => Move::ReadStaging,
            (Verb::Fill, _) | (Verb::OrWrite, Phase::Second) => Move::WriteStaging,
        }
    }

    /// The next operation, with its segments in the guest's list.
    #[inline]
    pub(super) fn next<M, S, T>(
        &mut self,
        slot: u16,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Request, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let movement = self.movement();
        let bytes = match movement {
            Move::ReadGuest | Move::WriteGuest => {
                let reads = movement == Move::ReadGuest;
                self.guest_segments(if reads { Direction::In } else { Direction::Out }, tag, io)?
            }
            Move::ReadStaging | Move::WriteStaging => self.staging_segment(slot, tag, io)?,
            Move::Hold => return Ok(Request::new(Op::Hold { extent: self.extent })),
        };
        if bytes == 0 {
            // One block in more pieces than the storage takes.
            return Err(Sense::DATA_PHASE);
        }
        self.chunk_sectors = bytes >> SECTOR_BYTES.trailing_zeros();
        let start = self.extent.start.0.saturating_add(self.done_sectors);
        let extent = Extent::new(start, self.chunk_sectors);
        let (op, fua) = match movement {
            Move::ReadGuest => (Op::Read { extent }, self.fua),
            // VERIFY looks at the medium: cached blocks are written first (SBC-3, VERIFY(10)). What is read back was written
            // with FUA.
            Move::ReadStaging => {
                (Op::Read { extent }, matches!(self.verb, Verb::Verify(_)) && self.done_sectors == 0)
            }
            Move::WriteGuest | Move::WriteStaging | Move::Hold => {
                (Op::Write { extent, fua: false }, self.fua)
            }
        };
        Ok(Request::new(op).with_fua(fua))
    }

    /// Most bytes of the next operation.
    #[inline]
    fn left_bytes(&self, info: &Info) -> u64 {
        let left = sector_bytes(self.extent.sectors.saturating_sub(self.done_sectors));
        let most = left.min(info.transfer_max_bytes.max(info.logical_block_bytes).into());
        if self.is_plain() { most } else { self.staged_bytes(most, info) }
    }

    /// Of a verb that has its data in the staging buffer at some time: what fits in there of `most` bytes.
    fn staged_bytes(&self, most: u64, info: &Info) -> u64 {
        if matches!(self.verb, Verb::WriteAndVerify | Verb::OrWrite) && self.phase == Phase::Second {
            // Just what was written, or read.
            return most.min(sector_bytes(self.chunk_sectors));
        }
        most.min(info.staging_bytes.into())
    }

    /// The guest's segments of the next operation, and how many bytes they hold: a whole number of blocks.
    #[inline(always)]
    fn guest_segments<M, S, T>(
        &self,
        direction: Direction,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<u64, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = io.storage.info();
        let left = self.left_bytes(info);
        // COMPARE AND WRITE: the data to compare with, and then the data to write (SBC-3 5.2).
        let skip = if self.compares_first() { sector_bytes(self.extent.sectors) } else { 0 };
        let from = skip.saturating_add(sector_bytes(self.done_sectors));
        let Guest { transport, list, .. } = &mut io.guest;
        let found = transport.segments(tag, direction, from..from.saturating_add(left), list);
        found.map_err(|DataError| Sense::DATA_PHASE)?;
        Ok(fit(list, left, info.logical_block_bytes, info.segments_max))
    }

    /// The staging buffer as the segment of the next operation, filled if that is to write a pattern, and how many bytes of
    /// it: a whole number of blocks.
    #[inline(never)]
    fn staging_segment<M, S, T>(&self, slot: u16, tag: u64, io: &mut Io<'_, M, S, T>) -> Result<u64, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = io.storage.info();
        let block_bytes = info.logical_block_bytes;
        let bytes = whole_blocks(self.left_bytes(info), block_bytes);
        if self.verb == Verb::Fill {
            repeat_pattern(slot, tag, bytes, block_bytes, io)?;
            io.guest.list.clear();
        }
        let len = u32::try_from(bytes).unwrap_or(0);
        io.guest.list.push(Segment::Staging { offset: 0, len }).map_err(|_| Sense::DATA_PHASE)?;
        Ok(bytes)
    }

    /// All of a chunk is done: the operation has succeeded, of READ or WRITE.
    #[inline]
    pub(super) const fn chunk_done(&mut self) {
        self.done_sectors = self.done_sectors.saturating_add(self.chunk_sectors);
    }

    /// The operation has succeeded, of a verb that has its data in the staging buffer at some time.
    pub(super) fn completed_staged<M, S, T>(
        &mut self,
        slot: u16,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<(), Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let next = match (self.verb, self.phase) {
            (_, Phase::Hold) => Phase::First,
            // What was written is read back.
            (Verb::WriteAndVerify, Phase::First) => Phase::Second,
            // What was compared is written, whatever becomes of this device.
            (Verb::CompareAndWrite, Phase::First) => {
                self.compare(slot, tag, io)?;
                io.guest.transport.note_begun(tag);
                Phase::Second
            }
            // Done once more it comes to the same, so that nobody has to know how far it came.
            (Verb::OrWrite, Phase::First) => {
                self.merge(slot, tag, io)?;
                Phase::Second
            }
            _ => {
                if matches!(self.verb, Verb::WriteAndVerify | Verb::Verify(_)) {
                    self.compare(slot, tag, io)?;
                }
                self.chunk_done();
                Phase::First
            }
        };
        self.phase = next;
        Ok(())
    }

    /// Compares what was read into the staging buffer with the guest's data.
    #[inline(never)]
    fn compare<M, S, T>(&self, slot: u16, tag: u64, io: &mut Io<'_, M, S, T>) -> Result<(), Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let block_bytes = io.storage.info().logical_block_bytes.max(SECTOR_BYTES) as usize;
        let sectors_per_block = io.storage.info().sectors_per_block();
        let len = usize::try_from(sector_bytes(self.chunk_sectors)).map_err(|_| Sense::DATA_PHASE)?;
        let mut data: &[u8] = io.storage.staging(slot).get(..len).ok_or(Sense::DATA_PHASE)?;
        let done = sector_bytes(self.done_sectors);
        let mut index = 0_u64;
        while let Some((block, rest)) = data.split_at_checked(block_bytes) {
            data = rest;
            let within = index.saturating_mul(block_bytes as u64);
            let offset = match self.verb {
                Verb::Verify(Against::Nothing) => return Ok(()),
                Verb::Verify(Against::OneBlock) => 0,
                _ => done.saturating_add(within),
            };
            let place = io.guest.differs(tag, offset, block).map_err(|_| Sense::DATA_PHASE)?;
            let Some(place) = place.filter(|_| !self.was_written(offset, tag, block, &mut io.guest)) else {
                index = index.saturating_add(1);
                continue;
            };
            // COMPARE AND WRITE gives the offset of the first byte that differs (SBC-3 5.2), VERIFY the block.
            return Err(Sense::miscompare(if self.compares_first() {
                offset.saturating_add(place)
            } else {
                let sector = self.extent.start.0.saturating_add(self.done_sectors);
                (sector >> sectors_per_block.trailing_zeros()).saturating_add(index)
            }));
        }
        Ok(())
    }

    /// Whether a block holds what COMPARE AND WRITE was to write there, and a device before this one had begun to: it has compared.
    /// A block that is neither was written by somebody else since.
    fn was_written<M, T>(&self, offset: u64, tag: u64, block: &[u8], guest: &mut Guest<'_, M, T>) -> bool
    where
        M: GuestMemory + ?Sized,
        T: Transport + ?Sized,
    {
        let at = sector_bytes(self.extent.sectors).saturating_add(offset);
        self.compares_first() && guest.transport.has_begun(tag) && guest.differs(tag, at, block) == Ok(None)
    }

    /// ORs the guest's data into what was read into the staging buffer.
    #[inline(never)]
    fn merge<M, S, T>(&self, slot: u16, tag: u64, io: &mut Io<'_, M, S, T>) -> Result<(), Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let len = usize::try_from(sector_bytes(self.chunk_sectors)).map_err(|_| Sense::DATA_PHASE)?;
        let data = io.storage.staging(slot).get_mut(..len).ok_or(Sense::DATA_PHASE)?;
        let mut at = sector_bytes(self.done_sectors);
        let mut theirs = [0; CHUNK_BYTES];
        for chunk in data.chunks_exact_mut(CHUNK_BYTES) {
            io.guest.take(tag, at, &mut theirs).map_err(|_| Sense::DATA_PHASE)?;
            for (ours, theirs) in chunk.iter_mut().zip(&theirs) {
                *ours |= theirs;
            }
            at = at.saturating_add(CHUNK_BYTES as u64);
        }
        Ok(())
    }

    const fn compares_first(&self) -> bool {
        matches!(self.verb, Verb::CompareAndWrite)
    }
}

/// Fills `bytes` bytes of the staging buffer with copies of the guest's block. It is taken from the guest for each chunk,
/// since the buffer is kept for one operation only; a guest that changes it meanwhile gets some of each.
#[inline(never)]
fn repeat_pattern<M, S, T>(
    slot: u16,
    tag: u64,
    bytes: u64,
    block_bytes: u32,
    io: &mut Io<'_, M, S, T>,
) -> Result<(), Sense>
where
    M: GuestMemory + ?Sized,
    S: Storage<M> + ?Sized,
    T: Transport + ?Sized,
{
    let block_bytes = block_bytes.max(SECTOR_BYTES) as usize;
    let bytes = usize::try_from(bytes).unwrap_or(0);
    let staging = io.storage.staging(slot).get_mut(..bytes).ok_or(Sense::DATA_PHASE)?;
    let (first, mut rest) = staging.split_at_mut_checked(block_bytes).ok_or(Sense::DATA_PHASE)?;
    io.guest.take(tag, 0, first).map_err(|_| Sense::DATA_PHASE)?;
    while let Some((block, more)) = rest.split_at_mut_checked(first.len()) {
        block.iter_mut().zip(&*first).for_each(|(to, from)| *to = *from);
        rest = more;
    }
    Ok(())
}

/// Cuts the list to what one operation takes: `most` bytes, the storage's number of segments, whole blocks.
#[inline]
fn fit(list: &mut SegmentList, most: u64, block_bytes: u32, segments_max: u16) -> u64 {
    if let [segment] = list.as_slice()
        && u64::from(segment.len()) == most
    {
        // Whatever is asked for is whole blocks, but for what the storage can take at most.
        let bytes = whole_blocks(most, block_bytes);
        if bytes == most {
            return bytes;
        }
    }
    fit_many(list, most, block_bytes, segments_max)
}

#[inline(never)]
fn fit_many(list: &mut SegmentList, most: u64, block_bytes: u32, segments_max: u16) -> u64 {
    list.truncate(usize::from(segments_max.max(1)));
    let total = blk_core::op::total_bytes(list).unwrap_or(0);
    let bytes = whole_blocks(total.min(most), block_bytes);
    let mut excess = total.saturating_sub(bytes);
    while excess != 0 {
        let Some(last) = list.pop() else { return 0 };
        let keep = u64::from(last.len()).checked_sub(excess);
        excess = excess.saturating_sub(last.len().into());
        let Some(keep) = keep.and_then(|keep| u32::try_from(keep).ok()).filter(|keep| *keep != 0) else {
            continue;
        };
        let shorter = match last {
            Segment::Guest { addr, .. } => Segment::Guest { addr, len: keep },
            Segment::Staging { offset, .. } => Segment::Staging { offset, len: keep },
        };
        // It takes the place of the segment that was just taken out.
        let _ = list.push(shorter);
    }
    bytes
}

/// `bytes` without what is less than a block. The block is a power of two.
fn whole_blocks(bytes: u64, block_bytes: u32) -> u64 {
    bytes & !u64::from(block_bytes.saturating_sub(1))
}

/// The bytes of some of a transfer's sectors, all of which fit in 64 bits: they were counted when the command began.
const fn sector_bytes(sectors: u64) -> u64 {
    sectors.wrapping_shl(SECTOR_BYTES.trailing_zeros())
}
