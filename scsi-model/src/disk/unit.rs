//! What a unit remembers beside its tasks, and the checks that come before every command.

use bitflags::bitflags;
use blk_core::memory::GuestMemory;
use blk_core::order::GuestCache;
use blk_core::storage::{Info, Storage};
use blk_core::units::Extent;
use serde::{Deserialize, Serialize};

use super::job::{After, Job, Verb};
use super::mode::Settings;
use super::{Begun, Io, Outcome, Refusal};
use crate::command::{Against, Blocks, Command, Row, Traits, decode, find};
use crate::config::Config;
use crate::sense::{Code, Key, Sense};
use crate::task_set::Task;
use crate::transport::{Transport, put};

/// Blocks of 2 GiB at most: MAXIMUM WRITE SAME LENGTH. An operation of its own each, so that an abort is soon served.
const WRITE_SAME_MAX_BYTES: u64 = 1 << 31;

/// Something that the guest must hear of before its next command runs, most urgent first: SAM-5, unit attention conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum UnitAttention {
    /// 29h/00h: power on or reset.
    PowerOn,
    /// 29h/02h: the transport was reset.
    TransportReset,
    /// 29h/03h: the unit was reset.
    DeviceReset,
    /// 29h/07h: the I_T nexus was lost.
    NexusLoss,
    /// 2Ah/01h: mode parameters were changed by another than the guest.
    ModeParametersChanged,
    /// 2Ah/09h: the disk was resized.
    CapacityChanged,
    /// 3Fh/0Eh: units came or went.
    ReportedLunsChanged,
}

impl UnitAttention {
    const ALL: [Self; 7] = [
        Self::PowerOn,
        Self::TransportReset,
        Self::DeviceReset,
        Self::NexusLoss,
        Self::ModeParametersChanged,
        Self::CapacityChanged,
        Self::ReportedLunsChanged,
    ];

    const fn bit(self) -> Attentions {
        match self {
            Self::PowerOn => Attentions::POWER_ON,
            Self::TransportReset => Attentions::TRANSPORT_RESET,
            Self::DeviceReset => Attentions::DEVICE_RESET,
            Self::NexusLoss => Attentions::NEXUS_LOSS,
            Self::ModeParametersChanged => Attentions::MODE,
            Self::CapacityChanged => Attentions::CAPACITY,
            Self::ReportedLunsChanged => Attentions::LUNS,
        }
    }

    const fn sense(self) -> Sense {
        let code = match self {
            Self::PowerOn => Code::POWER_ON_OR_RESET,
            Self::TransportReset => Code::BUS_RESET,
            Self::DeviceReset => Code::DEVICE_RESET,
            Self::NexusLoss => Code::NEXUS_LOSS,
            Self::ModeParametersChanged => Code::MODE_PARAMETERS_CHANGED,
            Self::CapacityChanged => Code::CAPACITY_DATA_HAS_CHANGED,
            Self::ReportedLunsChanged => Code::REPORTED_LUNS_CHANGED,
        };
        Sense::new(Key::UnitAttention, code)
    }
}

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Attentions: u8 {
        const POWER_ON = 1;
        const TRANSPORT_RESET = 2;
        const DEVICE_RESET = 4;
        const MODE = 8;
        const CAPACITY = 16;
        const LUNS = 32;
        const NEXUS_LOSS = 64;
    }
}

bitflags! {
    /// What a guest has set in a unit. A byte that another process can keep.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct Setting: u8 {
        /// WCE of the caching page.
        const WRITE_CACHE = 1;
        /// D_SENSE of the control page.
        const DESCRIPTOR_SENSE = 2;
        /// It was stopped by START STOP UNIT.
        const STOPPED = 4;
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Setting {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

/// The state of a unit, without its tasks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Unit {
    pub(super) config: Config,
    /// Mode parameters in force.
    pub(super) settings: Settings,
    /// Whether the storage has a volatile cache: only then can WCE be set.
    pub(super) volatile: bool,
    pub(super) stopped: bool,
    /// An error of an earlier command that had ended with GOOD.
    pub(super) deferred: Option<Sense>,
    attentions: Attentions,
    /// The capacity that the guest may know.
    sectors: u64,
}

impl Unit {
    pub(super) fn new(config: Config, info: &Info) -> Self {
        let volatile = info.has_volatile_cache();
        Self {
            config,
            settings: Settings::defaults(&config, volatile),
            volatile,
            stopped: false,
            deferred: None,
            attentions: Attentions::POWER_ON,
            sectors: info.sectors,
        }
    }

    pub(super) fn defaults(&self) -> Settings {
        Settings::defaults(&self.config, self.volatile)
    }

    pub(super) fn write_cache(&self) -> bool {
        self.settings.write_cache
    }

    pub(super) fn guest_cache(&self) -> GuestCache {
        if self.settings.write_cache { GuestCache::WriteBack } else { GuestCache::WriteThrough }
    }

    pub(super) fn raise(&mut self, attention: UnitAttention) {
        self.attentions.insert(attention.bit());
    }

    pub(super) fn clear_attentions(&mut self) {
        self.attentions = Attentions::empty();
    }

    pub(super) fn setting(&self) -> Setting {
        let mut setting = Setting::empty();
        setting.set(Setting::WRITE_CACHE, self.settings.write_cache);
        setting.set(Setting::DESCRIPTOR_SENSE, self.settings.descriptor_sense);
        setting.set(Setting::STOPPED, self.stopped);
        setting
    }

    pub(super) fn resume(&mut self, setting: Setting) {
        self.settings = Settings {
            write_cache: self.volatile && setting.contains(Setting::WRITE_CACHE),
            descriptor_sense: setting.contains(Setting::DESCRIPTOR_SENSE),
        };
        self.stopped = setting.contains(Setting::STOPPED);
        self.clear_attentions();
    }

    /// A live resize reaches the guest as a unit attention: SPC-4 annex D, CAPACITY DATA HAS CHANGED.
    pub(super) fn notice_capacity(&mut self, info: &Info) -> bool {
        let resized = info.sectors != self.sectors;
        if resized {
            self.sectors = info.sectors;
            self.raise(UnitAttention::CapacityChanged);
        }
        resized
    }

    pub(super) fn check_condition(&self, sense: Sense) -> Outcome {
        Outcome::CheckCondition(sense.encode(self.settings.descriptor_sense))
    }

    /// The most urgent thing that the guest has to hear of; it is then no longer pending.
    pub(super) fn take_pending(&mut self) -> Option<Sense> {
        let attention =
            UnitAttention::ALL.into_iter().find(|attention| self.attentions.contains(attention.bit()));
        if let Some(attention) = attention {
            self.attentions.remove(attention.bit());
            return Some(attention.sense());
        }
        self.deferred.take()
    }

    /// Reported LUNs were read: the unit attention that asks for it is served (SPC-4, REPORT LUNS).
    pub(super) fn luns_reported(&mut self) {
        self.attentions.remove(Attentions::LUNS);
    }

    /// Checks a command and begins it. Called again for the same task if the storage was busy: it changes nothing
    /// before the command is sure to end or to be taken.
    pub(super) fn begin<M, S, T>(&mut self, task: &Task, io: &mut Io<'_, M, S, T>) -> Result<Begun, Refusal>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        let info = *io.storage.info();
        let row = find(&task.cdb).filter(|row| row.supported(&info));
        let traits = row.map_or(Traits::empty(), |row| row.traits);
        if !traits.contains(Traits::QUIET)
            && let Some(sense) = self.take_pending()
        {
            return Err(sense.into());
        }
        let command = decode(&task.cdb)?;
        let Some(Row { .. }) = row else { return Err(Sense::INVALID_OPCODE.into()) };
        if traits.contains(Traits::MEDIUM) && self.stopped {
            return Err(Sense::STOPPED.into());
        }
        if traits.contains(Traits::WRITES) && info.read_only {
            return Err(Sense::WRITE_PROTECTED.into());
        }
        self.execute(command, task, &info, io)
    }

    fn execute<M, S, T>(
        &mut self,
        command: Command,
        task: &Task,
        info: &Info,
        io: &mut Io<'_, M, S, T>,
    ) -> Result<Begun, Refusal>
    where
        M: GuestMemory + ?Sized,
        S: Storage<M> + ?Sized,
        T: Transport + ?Sized,
    {
        match command {
            Command::Read { blocks, fua } => transfer(Verb::Read, blocks, fua, task, info),
            Command::Write { blocks, fua } => transfer(Verb::Write, blocks, fua, task, info),
            Command::WriteAndVerify { blocks } => transfer(Verb::WriteAndVerify, blocks, true, task, info),
            Command::Verify { blocks, against } => transfer(Verb::Verify(against), blocks, true, task, info),
            Command::CompareAndWrite { blocks, fua } => {
                transfer(Verb::CompareAndWrite, blocks, fua, task, info)
            }
            Command::OrWrite { blocks, fua } => transfer(Verb::OrWrite, blocks, fua, task, info),
            Command::SynchronizeCache { blocks } => {
                // 0 blocks: up to the last one. All of the disk is flushed in any case, a legal superset (SBC-3, SYNCHRONIZE CACHE(10)).
                extent(blocks, info)?;
                Ok(job(Job::Flush(After::Nothing)))
            }
            Command::WriteSame { blocks, unmap, no_data } => {
                write_same(blocks, unmap, no_data, task, info, io)
            }
            Command::Unmap { list } => super::job::unmap(list, task, info, io),
            Command::ModeSelect { form, list } => self.mode_select(form, list, task, info, io),
            // Also of a unit that is stopped: it may have been without a flush.
            Command::StartStopUnit { start: false, flush: true } => Ok(job(Job::Flush(After::Stop))),
            Command::StartStopUnit { start, .. } => {
                self.stopped = !start;
                Ok(Begun::GOOD)
            }
            // There is nothing to eject, so nothing to remember.
            Command::TestUnitReady | Command::PreventAllow { .. } => Ok(Begun::GOOD),
            Command::Unknown { .. } => Err(Sense::INVALID_OPCODE.into()),
            command => {
                let (reply, allocation) = self.answer(command, info, io)?;
                let wanted = u64::from(allocation).min(reply.bytes().len() as u64);
                if task.data_in_bytes < wanted {
                    return Err(Refusal::Overrun);
                }
                let moved_bytes = put(io.memory, io.transport, task.tag, reply.bytes(), wanted)?;
                Ok(Begun { moved_bytes, job: None })
            }
        }
    }
}

const fn job(job: Job) -> Begun {
    Begun { moved_bytes: 0, job: Some(job) }
}

/// The sectors of a run of blocks, if they lie within the disk.
pub(super) fn extent(blocks: Blocks, info: &Info) -> Result<Extent, Sense> {
    let sectors_per_block = info.sectors_per_block();
    let start = blocks.lba.checked_mul(sectors_per_block);
    let sectors = blocks.count.checked_mul(sectors_per_block);
    let (Some(start), Some(sectors)) = (start, sectors) else { return Err(Sense::OUT_OF_RANGE) };
    let extent = Extent::new(start, sectors);
    if extent.fits(info.sectors) { Ok(extent) } else { Err(Sense::OUT_OF_RANGE) }
}

/// Most blocks of one transfer: MAXIMUM TRANSFER LENGTH.
pub(super) fn transfer_max_blocks(info: &Info) -> u32 {
    (info.transfer_max_bytes >> info.logical_block_bytes.trailing_zeros()).max(1)
}

/// Most blocks of a COMPARE AND WRITE, all of which are compared in the staging buffer before one is written.
pub(super) fn compare_max_blocks(info: &Info) -> u8 {
    let blocks = info.staging_bytes.min(info.transfer_max_bytes) >> info.logical_block_bytes.trailing_zeros();
    u8::try_from(blocks).unwrap_or(u8::MAX)
}

/// Most blocks of a WRITE SAME.
pub(super) fn write_same_max_blocks(info: &Info) -> u64 {
    WRITE_SAME_MAX_BYTES >> info.logical_block_bytes.trailing_zeros()
}

/// A job that moves blocks, or none for no blocks.
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
    info: &Info,
    io: &mut Io<'_, M, S, T>,
) -> Result<Begun, Refusal>
where
    M: GuestMemory + ?Sized,
    S: Storage<M> + ?Sized,
    T: Transport + ?Sized,
{
    if unmap && !info.discard {
        return Err(Sense::cdb_field(1, Some(3)).into());
    }
    // WSNZ=1: 0 blocks do not stand for the rest of the disk (SBC-3, Block Limits VPD page).
    if blocks.count == 0 || blocks.count > write_same_max_blocks(info) {
        return Err(Sense::cdb_field(count_at(task), None).into());
    }
    let extent = extent(blocks, info)?;
    let zeroes = Job::Zeroes { extent, may_unmap: unmap, done: false };
    if no_data {
        return Ok(job(zeroes));
    }
    let block_bytes = u64::from(info.logical_block_bytes);
    if task.data_out_bytes < block_bytes {
        return Err(Refusal::Overrun);
    }
    if super::job::is_zeroes(task.tag, block_bytes, io)? {
        return Ok(Begun { moved_bytes: block_bytes, job: Some(zeroes) });
    }
    if info.staging_bytes < info.logical_block_bytes {
        // Nowhere to repeat the pattern in.
        return Err(Sense::new(Key::HardwareError, Code::INTERNAL_TARGET_FAILURE).into());
    }
    Ok(Begun { moved_bytes: block_bytes, job: Some(Job::transfer(Verb::Fill, extent, false)) })
}

/// Where the command's number of blocks is.
fn count_at(task: &Task) -> u16 {
    match crate::command::group_bytes(task.cdb.opcode()) {
        Some(6) => 4,
        Some(10) => 7,
        Some(12) => 6,
        _ if task.cdb.opcode() == 0x89 => 13,
        _ => 10,
    }
}
