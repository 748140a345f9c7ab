//! Start of each command. Whatever can be refused is refused here, before any data moves.

use blk_core::storage::{Info, Storage};

use super::extents::extent;
use super::failure::Failure;
use super::job::{Job, Then};
use super::limits::{LBA28_BLOCKS_MAX, LBA48_BLOCKS_MAX, dsm_blocks_max, multiple_max};
use super::log::{Page, directory};
use super::settings::TransferMode;
use super::smart::Smart;
use super::state::Drive;
use crate::command::{Blocks, Command, Direction, Interface, Power, Row};
use crate::wire::{QueueErrorLog, TaskFile};

/// The command has ended, and well.
const DONE: Result<Job, Failure> = Ok(Job::Ended(Ok(())));
/// A page is in the staging buffer, to be sent.
const SEND: Result<Job, Failure> = Ok(Job::ToHost { bytes: 512 });

impl<const N: usize> Drive<N> {
    #[inline(never)]
    pub(super) fn start_command<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        row: &Row,
        command: Command,
        task: &mut TaskFile,
        storage: &mut S,
    ) -> Result<Job, Failure> {
        let info = *storage.info();
        // A sleeping drive need not answer; an error is kinder than silence.
        if !self.offers(row, &info) || self.power == Power::Sleep {
            return Err(Failure::Aborted);
        }
        if row.multiple && self.settings.multiple == 0 {
            return Err(Failure::Aborted);
        }
        match command {
            Command::Read(blocks) => self.transfer_job(Direction::Read, blocks, false, &info),
            Command::Write { .. } if info.read_only => Err(Failure::Aborted),
            Command::Write { blocks, fua } => self.transfer_job(Direction::Write, blocks, fua, &info),
            // That is for the queue.
            Command::Queued(_) => Err(Failure::Aborted),
            Command::Verify(blocks) => {
                self.power = Power::Active;
                Ok(Job::Verify { left: extent(blocks, &info)?, moving: 0 })
            }
            Command::Flush => Ok(Job::Flush(Then::Nothing)),
            Command::Identify => {
                self.identify(&info, self.page(storage)?);
                SEND
            }
            Command::SetFeatures { subcommand, count } => self.set_features(subcommand, count, &info),
            Command::SetMultiple { blocks } => {
                if blocks > multiple_max(&info) || !(blocks == 0 || blocks.is_power_of_two()) {
                    return Err(Failure::Aborted);
                }
                self.settings.multiple = blocks;
                DONE
            }
            Command::DataSetManagement { trim, blocks } => {
                if !trim || blocks > u32::from(dsm_blocks_max(&info)) || info.read_only {
                    return Err(Failure::Aborted);
                }
                self.power = Power::Active;
                Ok(Job::FromHost { bytes: blocks.saturating_mul(512) })
            }
            Command::Smart { subcommand, selector, count, key } if key => {
                self.smart(subcommand, selector, count, storage)
            }
            Command::Smart { .. } => Err(Failure::Aborted),
            Command::ReadLog { address: QueueErrorLog::ADDRESS, page: 0, count: 1 } if self.queues() => {
                self.queue_error_log(&info, self.page(storage)?);
                self.queue.reopen();
                SEND
            }
            // The directory of the general purpose logs, and with it, of a drive that queues, the queued error log: there is no other.
            Command::ReadLog { address: 0, page: 0, count: 1 } => {
                let queued = [QueueErrorLog::ADDRESS];
                let others = queued.get(..usize::from(self.queues())).unwrap_or_default();
                directory(self.page(storage)?, others);
                SEND
            }
            Command::ReadLog { .. } => Err(Failure::Aborted),
            Command::CheckPower => {
                // ACS-3, CHECK POWER MODE: FFh active or idle, 00h standby.
                task.count.current = if self.power == Power::Standby { 0 } else { 0xff };
                DONE
            }
            Command::SetPower(power @ (Power::Standby | Power::Sleep)) => Ok(Job::Flush(Then::Power(power))),
            Command::SetPower(power) => {
                self.power = power;
                DONE
            }
            Command::Initialize(geometry) => {
                self.settings.geometry = geometry.ok_or(Failure::Aborted)?;
                DONE
            }
            Command::Seek(blocks) => extent(blocks, &info).map(|_| Job::Ended(Ok(()))),
            Command::NativeMax { ext } => {
                native_max(task, ext, &info);
                DONE
            }
            // A channel runs the diagnostics of both its drives itself.
            Command::Nop | Command::Diagnostic => Err(Failure::Aborted),
        }
    }

    fn transfer_job(
        &mut self,
        direction: Direction,
        blocks: Blocks,
        fua: bool,
        info: &Info,
    ) -> Result<Job, Failure> {
        let left = extent(blocks, info)?;
        self.power = Power::Active;
        Ok(Job::Transfer { direction, left, fua, moving: 0 })
    }

    /// SET FEATURES (ACS-3; those that ATA/ATAPI-7 volume 1 has for a disk without SATA, power and acoustic management).
    fn set_features(&mut self, subcommand: u8, count: u8, info: &Info) -> Result<Job, Failure> {
        match subcommand {
            0x02 if info.has_volatile_cache() => self.settings.write_cache = true,
            // Also where there is no cache: then what is asked for is so already, and the flush reports the latch.
            0x82 => return Ok(Job::Flush(Then::CacheOff)),
            0x03 => self.settings.transfer = TransferMode::decode(count).ok_or(Failure::Aborted)?,
            // Serial ATA's own features, of which this is the only one.
            0x10 | 0x90 if count == 0x06 && self.interface == Interface::Serial => {
                self.settings.preserve_settings = subcommand == 0x10;
            }
            0x55 => self.settings.look_ahead = false,
            0xaa => self.settings.look_ahead = true,
            0x66 => self.settings.revert_on_reset = false,
            0xcc => self.settings.revert_on_reset = true,
            _ => return Err(Failure::Aborted),
        }
        DONE
    }

    /// SMART (ATA/ATAPI-7 volume 1). Logs and their lengths are as SMART says: one page each.
    fn smart<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        subcommand: u8,
        selector: u8,
        count: u8,
        storage: &mut S,
    ) -> Result<Job, Failure> {
        if !self.smart.enabled && subcommand != 0xd8 {
            return Err(Failure::Aborted);
        }
        match subcommand {
            0xd0 => {
                Smart::data(self.page(storage)?);
                return SEND;
            }
            0xd1 => {
                Smart::thresholds(self.page(storage)?);
                return SEND;
            }
            0xd5 if count == 1 => {
                self.smart.log(selector, self.page(storage)?).ok_or(Failure::Aborted)?;
                return SEND;
            }
            // Attribute autosave: on, off, both without effect.
            0xd2 if matches!(count, 0x00 | 0xf1) => {}
            // Off-line collection, short and extended tests in both forms, and the end of one.
            0xd4 if matches!(selector, 0x00 | 0x7f) => {}
            0xd4 if matches!(selector, 0x01 | 0x02 | 0x81 | 0x82) => self.smart.self_test(selector),
            0xd8 => self.smart.enabled = true,
            0xd9 => self.smart.enabled = false,
            // Threshold not exceeded: 4Fh and C2h stay where the guest put them.
            0xda => {}
            _ => return Err(Failure::Aborted),
        }
        DONE
    }

    /// The start of the staging buffer, as a page of zeroes.
    #[inline(never)]
    fn page<'a, M: ?Sized, S: Storage<M> + ?Sized>(
        &self,
        storage: &'a mut S,
    ) -> Result<&'a mut Page, Failure> {
        let page = storage.staging(self.slot()).first_chunk_mut().ok_or(Failure::Aborted)?;
        page.fill(0);
        Ok(page)
    }
}

/// READ NATIVE MAX ADDRESS: the last block, as far as the form of the command can say it.
fn native_max(task: &mut TaskFile, ext: bool, info: &Info) {
    let blocks = info.sectors.checked_div(info.sectors_per_block()).unwrap_or(0);
    if ext {
        task.set_lba48(blocks.min(LBA48_BLOCKS_MAX).saturating_sub(1));
    } else {
        task.set_lba28(blocks.min(LBA28_BLOCKS_MAX).saturating_sub(1));
    }
}
