//! Start of each command: the checks that come before every command, and those of its own.

use blk_core::memory::GuestMemory;
use blk_core::storage::{Info, Storage};
use zerocopy::{FromBytes, IntoBytes};

use super::io::{Io, Refusal};
use super::job::{After, Begun, Job};
use super::limits::{
    UNMAP_DESCRIPTORS_MAX, compare_max_blocks, extent, transfer_max_blocks, unmap_descriptors_max,
    write_same_max_blocks,
};
use super::reply::Reply;
use super::transfer::Verb;
use super::unit::Unit;
use crate::command::{Against, Blocks, Command, Row, Traits, decode_as, group_bytes};
use crate::sense::{Code, Key, Sense};
use crate::task_set::Task;
use crate::transport::{CHUNK_BYTES, Transport};
use crate::wire::data::{UnmapDescriptor, UnmapHead};

impl Unit {
    /// Checks a command and begins it. `row` is the command's in the table, and `slot` the one that its job will have. Called
    /// again for the same task if the storage was busy: it changes nothing before the command is sure to end or to be taken.
    #[inline(always)]
    pub(super) fn start_command<M, S, T>(
        &mut self,
        (task, row): (&Task, Option<&Row>),
        slot: u16,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Begun, Refusal>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = io.storage.info();
        let supported = row.filter(|row| row.supported(info));
        let traits = supported.map_or(Traits::empty(), |row| row.traits);
        if !traits.contains(Traits::QUIET)
            && let Some(sense) = self.take_pending()
        {
            return Err(sense.into());
        }
        let command = decode_as(&task.cdb, row)?;
        if supported.is_none() {
            return Err(Sense::INVALID_OPCODE.into());
        }
        if traits.contains(Traits::MEDIUM) && self.stopped {
            return Err(Sense::STOPPED.into());
        }
        if traits.contains(Traits::WRITES) && info.read_only {
            return Err(Sense::WRITE_PROTECTED.into());
        }
        match command {
            Command::Read { blocks, fua } => plain(Verb::Read, blocks, fua, task, info),
            Command::Write { blocks, fua } => plain(Verb::Write, blocks, fua, task, info),
            Command::SynchronizeCache { blocks } => {
                // 0 blocks: up to the last one. All of the disk is flushed in any case, a legal superset (SBC-3, SYNCHRONIZE CACHE(10)).
                extent(blocks, info)?;
                Ok(job(Job::Flush(After::Nothing)))
            }
            command => self.execute(command, task, slot, io),
        }
    }

    /// The commands that are not the daily bread. Apart, for they need more stack.
    #[inline(never)]
    fn execute<M, S, T>(
        &mut self,
        command: Command,
        task: &Task,
        slot: u16,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Begun, Refusal>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = io.storage.info();
        match command {
            Command::WriteAndVerify { blocks } => transfer(Verb::WriteAndVerify, blocks, true, task, info),
            Command::Verify { blocks, against } => transfer(Verb::Verify(against), blocks, true, task, info),
            Command::CompareAndWrite { blocks, fua } => {
                transfer(Verb::CompareAndWrite, blocks, fua, task, info)
            }
            Command::OrWrite { blocks, fua } => transfer(Verb::OrWrite, blocks, fua, task, info),
            Command::WriteSame { blocks, unmap, no_data } => write_same(blocks, unmap, no_data, task, io),
            Command::Unmap { list } => unmap(list, task, slot, io),
            Command::ModeSelect { form, list } => self.mode_select(form, list, task, io),
            // Also of a unit that is stopped: it may have been without a flush.
            Command::StartStopUnit { start: false, flush: true } => Ok(job(Job::Flush(After::Stop))),
            Command::StartStopUnit { start, .. } => {
                self.stopped = !start;
                Ok(Begun::GOOD)
            }
            // There is nothing to eject, so nothing to remember.
            Command::TestUnitReady | Command::PreventAllow { .. } => Ok(Begun::GOOD),
            Command::Unknown { .. } => Err(Sense::INVALID_OPCODE.into()),
            command => self.reply(command, task, io),
        }
    }

    /// The commands that are answered from what the unit knows.
    #[inline(never)]
    fn reply<M, S, T>(
        &mut self,
        command: Command,
        task: &Task,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Begun, Refusal>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let mut reply = Reply::new();
        let allocation = self.answer(command, io, &mut reply)?;
        let wanted = u64::from(allocation).min(reply.bytes().len() as u64);
        if task.data_in_bytes < wanted {
            return Err(Refusal::Overrun);
        }
        let moved_bytes = io.guest.put(task.tag, reply.bytes(), wanted)?;
        Ok(Begun { moved_bytes, job: None })
    }
}

const fn job(job: Job) -> Begun {
    Begun { moved_bytes: 0, job: Some(job) }
}

/// READ or WRITE.
#[inline(always)]
fn plain(verb: Verb, blocks: Blocks, fua: bool, task: &Task, info: &Info) -> Result<Begun, Refusal> {
    let extent = extent(blocks, info)?;
    let bytes = extent.bytes().ok_or(Sense::OUT_OF_RANGE)?;
    if blocks.count > u64::from(transfer_max_blocks(info)) {
        // SBC-3, Block Limits VPD page: MAXIMUM TRANSFER LENGTH.
        return Err(Sense::cdb_field(count_at(task), None).into());
    }
    let has = if matches!(verb, Verb::Read) { task.data_in_bytes } else { task.data_out_bytes };
    if has < bytes {
        return Err(Refusal::Overrun);
    }
    let job = if bytes == 0 { None } else { Some(Job::transfer(verb, extent, fua)) };
    Ok(Begun { moved_bytes: 0, job })
}

/// A job that moves blocks in another way, or none for no blocks.
#[inline(never)]
fn transfer(verb: Verb, blocks: Blocks, fua: bool, task: &Task, info: &Info) -> Result<Begun, Refusal> {
    let extent = extent(blocks, info)?;
    let limited = !matches!(verb, Verb::Verify(Against::Nothing));
    let max = match verb {
        Verb::CompareAndWrite => compare_max_blocks(info).into(),
        _ => transfer_max_blocks(info),
    };
    if limited && blocks.count > u64::from(max) {
        // SBC-3, Block Limits VPD page: MAXIMUM TRANSFER LENGTH and MAXIMUM COMPARE AND WRITE LENGTH.
        return Err(Sense::cdb_field(count_at(task), None).into());
    }
    let bytes = extent.bytes().ok_or(Sense::OUT_OF_RANGE)?;
    let one_block = u64::from(info.logical_block_bytes).min(bytes);
    let (needs, has) = match verb {
        Verb::Read => (bytes, task.data_in_bytes),
        Verb::Write | Verb::WriteAndVerify | Verb::OrWrite | Verb::Verify(Against::Data) => {
            (bytes, task.data_out_bytes)
        }
        Verb::CompareAndWrite => (bytes.saturating_mul(2), task.data_out_bytes),
        Verb::Verify(Against::OneBlock) | Verb::Fill => (one_block, task.data_out_bytes),
        Verb::Verify(Against::Nothing) => (0, 0),
    };
    if has < needs {
        return Err(Refusal::Overrun);
    }
    if bytes == 0 {
        return Ok(Begun::GOOD);
    }
    let moved_bytes = if verb == Verb::Verify(Against::OneBlock) { one_block } else { 0 };
    Ok(Begun { moved_bytes, job: Some(Job::transfer(verb, extent, fua)) })
}

/// WRITE SAME: SBC-3, WRITE SAME(10). Zeroes are one operation of the storage, anything else is written from the staging buffer.
fn write_same<M, S, T>(
    blocks: Blocks,
    unmap: bool,
    no_data: bool,
    task: &Task,
    io: &mut Io<'_, M, S, T>,
) -> Result<Begun, Refusal>
where
    M: GuestMemory + ?Sized,
    S: Storage<M> + ?Sized,
    T: Transport + ?Sized,
{
    let info = io.storage.info();
    if unmap && !info.discard {
        return Err(Sense::cdb_field(1, Some(3)).into());
    }
    // WSNZ=1: 0 blocks do not stand for the rest of the disk (SBC-3, Block Limits VPD page).
    if blocks.count == 0 || blocks.count > write_same_max_blocks(info) {
        return Err(Sense::cdb_field(count_at(task), None).into());
    }
    let extent = extent(blocks, info)?;
    let zeroes = Job::Zeroes { extent, may_unmap: unmap };
    if no_data {
        return Ok(job(zeroes));
    }
    let block_bytes = u64::from(info.logical_block_bytes);
    let can_repeat = info.staging_bytes >= info.logical_block_bytes;
    if task.data_out_bytes < block_bytes {
        return Err(Refusal::Overrun);
    }
    if is_zeroes(task.tag, block_bytes, io)? {
        return Ok(Begun { moved_bytes: block_bytes, job: Some(zeroes) });
    }
    if !can_repeat {
        // Nowhere to repeat the pattern in.
        return Err(Sense::new(Key::HardwareError, Code::INTERNAL_TARGET_FAILURE).into());
    }
    Ok(Begun { moved_bytes: block_bytes, job: Some(Job::transfer(Verb::Fill, extent, false)) })
}

/// Where the command's number of blocks is.
fn count_at(task: &Task) -> u16 {
    match group_bytes(task.cdb.opcode()) {
        Some(6) => 4,
        Some(10) => 7,
        Some(12) => 6,
        _ if task.cdb.opcode() == 0x89 => 13,
        _ => 10,
    }
}

/// Copies and checks the parameter list of UNMAP: SBC-3 5.28. Nothing is done before every descriptor has been checked.
#[inline(never)]
fn unmap<M, S, T>(list_bytes: u16, task: &Task, slot: u16, io: &mut Io<'_, M, S, T>) -> Result<Begun, Refusal>
where
    M: GuestMemory + ?Sized,
    S: Storage<M> + ?Sized,
    T: Transport + ?Sized,
{
    const HEAD: usize = size_of::<UnmapHead>();
    const DESCRIPTOR: usize = size_of::<UnmapDescriptor>();
    const MOST: usize = HEAD + DESCRIPTOR * UNMAP_DESCRIPTORS_MAX as usize;
    let moved_bytes = u64::from(list_bytes);
    let list_bytes = usize::from(list_bytes);
    if list_bytes == 0 {
        return Ok(Begun::GOOD);
    }
    if list_bytes < HEAD {
        return Err(Sense::LIST_LENGTH.into());
    }
    if task.data_out_bytes < moved_bytes {
        return Err(Refusal::Overrun);
    }
    let mut buffer = [0; MOST];
    let copied = buffer.get_mut(..list_bytes.min(MOST)).unwrap_or_default();
    io.guest.take(task.tag, 0, copied)?;
    let (head, rest) = UnmapHead::read_from_prefix(copied).map_err(|_| Sense::LIST_LENGTH)?;
    // Descriptors that the list announces but does not hold, and one that is cut off, are not processed.
    let announced = usize::from(head.descriptor_bytes.get()).min(list_bytes.saturating_sub(HEAD));
    if announced / DESCRIPTOR > usize::from(unmap_descriptors_max(io.storage.info())) {
        return Err(Sense::list_field(2, None).into());
    }
    // All but the last wait in the staging buffer.
    let (mut last, mut kept) = (None, 0_u8);
    for bytes in rest.get(..announced.min(rest.len())).unwrap_or_default().chunks_exact(DESCRIPTOR) {
        let descriptor = UnmapDescriptor::read_from_bytes(bytes).map_err(|_| Sense::LIST_LENGTH)?;
        let blocks = Blocks { lba: descriptor.lba.get(), count: descriptor.blocks.get().into() };
        let extent = extent(blocks, io.storage.info())?;
        if extent.sectors == 0 {
            continue;
        }
        if let Some((earlier, _)) = last.replace((descriptor, extent)) {
            keep_descriptor(io.storage.staging(slot), kept, &earlier)?;
            kept = kept.saturating_add(1);
        }
    }
    let job = last.map(|(_, extent)| Job::Discard { extent, left: kept });
    Ok(Begun { moved_bytes, job })
}

fn keep_descriptor(staging: &mut [u8], index: u8, descriptor: &UnmapDescriptor) -> Result<(), Sense> {
    let at = usize::from(index).saturating_mul(size_of::<UnmapDescriptor>());
    let place = staging.get_mut(at..).ok_or(Sense::DATA_PHASE)?;
    descriptor.write_to_prefix(place).map_err(|_| Sense::DATA_PHASE)
}

/// Whether the first `bytes` bytes of the data-out buffer are zeroes.
#[inline(never)]
fn is_zeroes<M, S, T>(tag: u64, bytes: u64, io: &mut Io<'_, M, S, T>) -> Result<bool, Refusal>
where
    M: GuestMemory + ?Sized,
    S: ?Sized,
    T: Transport + ?Sized,
{
    let mut at = 0_u64;
    let mut buffer = [0; CHUNK_BYTES];
    while at < bytes {
        io.guest.take(tag, at, &mut buffer)?;
        if buffer.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at = at.saturating_add(CHUNK_BYTES as u64);
    }
    Ok(true)
}
