//! A command's work on the storage: one operation after the other, in one slot.

use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment};
use blk_core::order::{Order, Request};
use blk_core::storage::Storage;
use blk_core::units::{Extent, SECTOR_BYTES};

use super::io::Io;
use super::limits::unmapped;
use super::settings::Settings;
use crate::command::Against;
use crate::sense::Sense;
use crate::transport::{CHUNK_BYTES, Direction, Guest, SegmentList, Transport};

/// Effect on the unit when a job has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) enum After {
    Nothing,
    /// MODE SELECT: these are in force.
    Settings(Settings),
    /// START STOP UNIT: stopped.
    Stop,
}

/// A command's work.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) enum Job {
    /// Moves blocks.
    Transfer(Transfer),
    /// Writes zeroes.
    Zeroes { extent: Extent, may_unmap: bool, done: bool },
    /// Discards an extent, and then those of the first `left` descriptors in the staging buffer, from the last to the first.
    /// `None`: all are done.
    Discard { extent: Option<Extent>, left: u8 },
    /// Flushes.
    Flush(After),
    /// Has flushed.
    Flushed(After),
}

/// Result of starting a command.
pub(super) struct Begun {
    /// Bytes of reply given, or of parameters taken.
    pub(super) moved_bytes: u64,
    /// What it needs the storage for; otherwise it has ended with GOOD.
    pub(super) job: Option<Job>,
}

impl Begun {
    pub(super) const GOOD: Self = Self { moved_bytes: 0, job: None };
}

/// Kind of a block transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub(super) struct Transfer {
    verb: Verb,
    extent: Extent,
    fua: bool,
    done_sectors: u64,
    /// Sectors of the operation in flight.
    chunk_sectors: u64,
    /// The second of a verb's two operations: reading back what was written, writing after comparing or reading.
    second: bool,
}

/// What one operation of a transfer does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Move {
    ReadGuest,
    WriteGuest,
    ReadStaging,
    WriteStaging,
}

impl Job {
    pub(super) const fn transfer(verb: Verb, extent: Extent, fua: bool) -> Self {
        Self::Transfer(Transfer { verb, extent, fua, done_sectors: 0, chunk_sectors: 0, second: false })
    }

    /// Whether nothing is left to do.
    pub(super) const fn is_done(&self) -> bool {
        match self {
            Self::Transfer(transfer) => transfer.done_sectors >= transfer.extent.sectors,
            Self::Zeroes { done, .. } => *done,
            Self::Discard { extent, .. } => extent.is_none(),
            Self::Flush(_) => false,
            Self::Flushed(_) => true,
        }
    }

    /// The next operation of a job that is not done, with its segments in the guest's list. The same once more until it
    /// [has succeeded](Self::completed).
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
        io.guest.list.clear();
        Ok(match self {
            Self::Transfer(transfer) => transfer.next(slot, tag, io)?,
            Self::Zeroes { extent, may_unmap, .. } => {
                Request::new(Op::WriteZeroes { extent: *extent, may_unmap: *may_unmap })
            }
            Self::Discard { extent, .. } => {
                Request::new(Op::Discard { extent: extent.unwrap_or(Extent::new(0, 0)) })
            }
            Self::Flush(After::Nothing) | Self::Flushed(_) => Request::new(Op::Flush),
            // Drains what is in flight and holds what is younger: nothing is written from the cache that is switched.
            Self::Flush(_) => Request::new(Op::Flush).ordered(Order::Barrier),
        })
    }

    /// Sectors of the operation that [`Self::next`] gave last, if it has segments.
    #[inline]
    pub(super) const fn planned(&self) -> u64 {
        match self {
            Self::Transfer(transfer) => transfer.chunk_sectors,
            _ => 0,
        }
    }

    /// The operation has succeeded.
    #[inline(always)]
    pub(super) fn completed<M, S, T>(
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
        match self {
            Self::Transfer(transfer) => transfer.completed(slot, tag, io)?,
            Self::Zeroes { done, .. } => *done = true,
            Self::Discard { extent, left } => {
                *extent = match left.checked_sub(1) {
                    Some(index) => Some(unmapped(io.storage, slot, index)?),
                    None => None,
                };
                *left = left.saturating_sub(1);
            }
            Self::Flush(after) => *self = Self::Flushed(*after),
            Self::Flushed(_) => {}
        }
        Ok(())
    }

    /// What to do now that the job is done.
    pub(super) const fn finished(&self) -> After {
        match self {
            Self::Flushed(after) => *after,
            _ => After::Nothing,
        }
    }

    /// Bytes that the guest's buffer gave or took so far.
    pub(super) fn moved_bytes(&self) -> u64 {
        let Self::Transfer(transfer) = self else { return 0 };
        let done = sector_bytes(transfer.done_sectors);
        if transfer.plain().is_some() {
            return done;
        }
        match transfer.verb {
            Verb::Read | Verb::Write | Verb::WriteAndVerify | Verb::OrWrite | Verb::Verify(Against::Data) => {
                done
            }
            Verb::CompareAndWrite => done.saturating_mul(2),
            Verb::Verify(Against::Nothing | Against::OneBlock) | Verb::Fill => 0,
        }
    }

    /// Whether the operation in flight reads.
    pub(super) fn reads(&self) -> bool {
        matches!(self, Self::Transfer(transfer) if matches!(transfer.movement(), Move::ReadGuest | Move::ReadStaging))
    }
}

impl Transfer {
    const fn movement(&self) -> Move {
        match (self.verb, self.second) {
            (Verb::Read, _) => Move::ReadGuest,
            (Verb::Write, _) | (Verb::WriteAndVerify, false) | (Verb::CompareAndWrite, true) => {
                Move::WriteGuest
            }
            (Verb::Verify(_), _)
            | (Verb::WriteAndVerify, true)
            | (Verb::CompareAndWrite | Verb::OrWrite, false) => Move::ReadStaging,
            (Verb::Fill, _) | (Verb::OrWrite, true) => Move::WriteStaging,
        }
    }

    #[inline]
    fn next<M, S, T>(&mut self, slot: u16, tag: u64, io: &mut Io<'_, M, S, T>) -> Result<Request, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if let Some(direction) = self.plain() {
            return self.next_plain(direction, tag, io);
        }
        self.next_staged(slot, tag, io)
    }

    /// As [`Self::next`], of a verb that has its data in the staging buffer at some time.
    #[inline(never)]
    fn next_staged<M, S, T>(
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
        if self.compares_first() && self.chunk_sectors == 0 {
            // A device before this one has compared, and may have written what would be compared now.
            self.second = io.guest.transport.has_begun(tag);
        }
        let movement = self.movement();
        self.chunk_sectors = self.segments(movement, slot, tag, io)?;
        let start = self.extent.start.0.saturating_add(self.done_sectors);
        let extent = Extent::new(start, self.chunk_sectors);
        Ok(match movement {
            Move::ReadGuest => Request::new(Op::Read { extent }).with_fua(self.fua),
            // VERIFY looks at the medium: cached blocks are written first (SBC-3, VERIFY(10)). What is read back was written
            // with FUA.
            Move::ReadStaging => {
                let verifies = matches!(self.verb, Verb::Verify(_)) && self.done_sectors == 0;
                Request::new(Op::Read { extent }).with_fua(verifies)
            }
            Move::WriteGuest | Move::WriteStaging => {
                Request::new(Op::Write { extent, fua: false }).with_fua(self.fua)
            }
        })
    }

    /// The direction of READ and WRITE, whose operations are all alike.
    #[inline]
    const fn plain(&self) -> Option<Direction> {
        match self.verb {
            Verb::Read => Some(Direction::In),
            Verb::Write => Some(Direction::Out),
            _ => None,
        }
    }

    /// As [`Self::next`], of READ and WRITE.
    #[inline]
    fn next_plain<M, S, T>(
        &mut self,
        direction: Direction,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Request, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = io.storage.info();
        let most = u64::from(info.transfer_max_bytes.max(info.logical_block_bytes));
        let left = sector_bytes(self.extent.sectors.saturating_sub(self.done_sectors)).min(most);
        let from = sector_bytes(self.done_sectors);
        let Guest { transport, list, .. } = &mut io.guest;
        let found = transport.segments(tag, direction, from..from.saturating_add(left), list);
        found.map_err(|_| Sense::DATA_PHASE)?;
        let bytes = fit(list, left, info.logical_block_bytes, info.segments_max);
        if bytes == 0 {
            // One block in more pieces than the storage takes.
            return Err(Sense::DATA_PHASE);
        }
        self.chunk_sectors = bytes >> SECTOR_BYTES.trailing_zeros();
        let start = self.extent.start.0.saturating_add(self.done_sectors);
        let extent = Extent::new(start, self.chunk_sectors);
        let op = match direction {
            Direction::In => Op::Read { extent },
            Direction::Out => Op::Write { extent, fua: false },
        };
        Ok(Request::new(op).with_fua(self.fua))
    }

    /// The segments of the next operation, and how many sectors they hold: a whole number of blocks.
    fn segments<M, S, T>(
        &self,
        movement: Move,
        slot: u16,
        tag: u64,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<u64, Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = io.storage.info();
        let (block_bytes, segments_max) = (info.logical_block_bytes, info.segments_max);
        let mut most = u64::from(info.transfer_max_bytes.max(block_bytes));
        if !matches!(self.verb, Verb::Read | Verb::Write) {
            most = most.min(info.staging_bytes.into());
        }
        if matches!(self.verb, Verb::WriteAndVerify | Verb::OrWrite) && self.second {
            // Just what was written, or read.
            most = sector_bytes(self.chunk_sectors);
        }
        let left = sector_bytes(self.extent.sectors.saturating_sub(self.done_sectors)).min(most);
        let bytes = match movement {
            Move::ReadGuest | Move::WriteGuest => {
                let direction = if movement == Move::ReadGuest { Direction::In } else { Direction::Out };
                // COMPARE AND WRITE: the data to compare with, and then the data to write (SBC-3 5.2).
                let skip = if self.compares_first() { sector_bytes(self.extent.sectors) } else { 0 };
                let from = skip.saturating_add(sector_bytes(self.done_sectors));
                let to = from.saturating_add(left);
                let Guest { transport, list, .. } = &mut io.guest;
                transport.segments(tag, direction, from..to, list).map_err(|_| Sense::DATA_PHASE)?;
                fit(list, left, block_bytes, segments_max)
            }
            Move::ReadStaging | Move::WriteStaging => {
                let bytes = whole_blocks(left, block_bytes);
                if self.verb == Verb::Fill {
                    repeat_pattern(slot, tag, bytes, block_bytes, io)?;
                }
                let len = u32::try_from(bytes).unwrap_or(0);
                io.guest.list.clear();
                io.guest.list.push(Segment::Staging { offset: 0, len }).map_err(|_| Sense::DATA_PHASE)?;
                bytes
            }
        };
        if bytes == 0 {
            // One block in more pieces than the storage takes.
            return Err(Sense::DATA_PHASE);
        }
        Ok(bytes >> SECTOR_BYTES.trailing_zeros())
    }

    #[inline]
    fn completed<M, S, T>(&mut self, slot: u16, tag: u64, io: &mut Io<'_, M, S, T>) -> Result<(), Sense>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        if self.plain().is_some() {
            self.done_sectors = self.done_sectors.saturating_add(self.chunk_sectors);
            return Ok(());
        }
        self.completed_staged(slot, tag, io)
    }

    /// As [`Self::completed`], of a verb that has its data in the staging buffer at some time.
    #[inline(never)]
    fn completed_staged<M, S, T>(
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
        match (self.verb, self.second) {
            // What was written is read back.
            (Verb::WriteAndVerify, false) => {
                self.second = true;
                return Ok(());
            }
            // What was compared is written, whatever becomes of this device.
            (Verb::CompareAndWrite, false) => {
                self.compare(slot, tag, io)?;
                io.guest.transport.note_begun(tag);
                self.second = true;
                return Ok(());
            }
            // Done once more it comes to the same, so that nobody has to know how far it came.
            (Verb::OrWrite, false) => {
                self.merge(slot, tag, io)?;
                self.second = true;
                return Ok(());
            }
            (Verb::WriteAndVerify, true) => {
                self.compare(slot, tag, io)?;
                self.second = false;
            }
            (Verb::OrWrite, true) => self.second = false,
            (Verb::Verify(_), _) => self.compare(slot, tag, io)?,
            (Verb::Read | Verb::Write | Verb::Fill, _) | (Verb::CompareAndWrite, true) => {}
        }
        self.done_sectors = self.done_sectors.saturating_add(self.chunk_sectors);
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
            let Some(place) = place else {
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

fn sector_bytes(sectors: u64) -> u64 {
    sectors.saturating_mul(SECTOR_BYTES.into())
}
