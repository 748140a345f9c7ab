//! Moves the data of commands between the disk and memory, and ends them.

use blk_core::memory::GuestMemory;
use blk_core::storage::{Info, Storage};
use blk_core::units::GuestAddr;

use super::port::{Engine, Executing, Phase, Port, Unit};
use super::prdt::Prdt;
use super::receive::READY;
use super::registers::Interrupts;
use crate::command::Direction;
use crate::command::{Addressing, Protocol, Row};
use crate::drive::{Due, Failure, QueueError, Reply, Staged, Step, Tags, report_address};
use crate::front::scatter::{Piece, Segments, Stop, Table, next_piece, to_usize};

/// What became of a piece of a command's data.
enum Moved {
    /// It is with the storage, or done.
    Yes,
    /// The storage does not take it now.
    NotNow,
    /// The PRD table ends before the data does.
    Short,
    /// The PRD table, or what it names, is no memory.
    NoMemory,
    /// The command cannot go on.
    Failed(Failure),
}

impl From<Stop> for Moved {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Short => Self::Short,
            Stop::Memory => Self::NoMemory,
            Stop::NoStaging => Self::Failed(Failure::Aborted),
        }
    }
}

impl Port {
    /// Lets the commands that the drive has go on; returns whether one did.
    pub(super) fn move_data<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: &mut H,
    ) -> bool {
        let running = self.engine == Engine::Running;
        let Some(unit) = self.unit_mut() else { return false };
        if matches!(unit.phase, Phase::Resetting { .. } | Phase::Signing { .. }) || unit.drive.is_idle() {
            return false;
        }
        let step = unit.drive.poll(memory, storage);
        match step {
            Step::Submitted => true,
            // What the storage completes is not reported any more; a stop drops it.
            _ if !running => false,
            _ if matches!(unit.phase, Phase::Executing(_)) => self.execute(step, memory, storage),
            _ => {
                let served = self.serve_due(memory, storage);
                self.serve_queue(memory, storage) || served
            }
        }
    }

    /// Goes on with the command in execution.
    #[inline(never)]
    fn execute<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        step: Step,
        memory: &M,
        storage: &mut H,
    ) -> bool {
        let Some(Unit { phase: Phase::Executing(executing), .. }) = self.unit() else { return false };
        let mut executing = *executing;
        let staged = core::mem::take(&mut executing.staged_bytes);
        let moved = match step {
            Step::Wait | Step::Submitted | Step::Idle => return false,
            Step::Ended(Err(failure)) => Moved::Failed(failure),
            _ if staged > 0 => self.exchange(&mut executing, (Direction::Read, staged), memory, storage),
            Step::Ended(Ok(())) => {
                self.finish(&executing, memory, storage.info());
                return true;
            }
            Step::Medium { direction, left } => {
                self.move_medium(&mut executing, (direction, left.sectors), memory, storage)
            }
            Step::ToHost { bytes } => {
                self.exchange(&mut executing, (Direction::Read, bytes), memory, storage)
            }
            Step::FromHost { bytes } => {
                self.exchange(&mut executing, (Direction::Write, bytes), memory, storage)
            }
        };
        if let Some(unit) = self.unit_mut() {
            unit.phase = Phase::Executing(executing);
        }
        match moved {
            Moved::Yes => return true,
            Moved::NotNow => return false,
            Moved::NoMemory => self.fatal(Interrupts::HBFS),
            Moved::Short => {
                self.is |= Interrupts::OFS;
                self.fail(Failure::Aborted, memory, storage.info());
            }
            Moved::Failed(failure) => self.fail(failure, memory, storage.info()),
        }
        true
    }

    // The list of segments is on the stack of this function alone.
    #[inline(never)]
    fn move_medium<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        executing: &mut Executing,
        what: (Direction, u64),
        memory: &M,
        storage: &mut H,
    ) -> Moved {
        let Some(unit) = self.unit_mut() else { return Moved::NotNow };
        let (segments, slot) = (&mut Segments::new(), unit.drive.slot());
        let mut table = executing.table;
        let Piece { bytes, staged } = match next_piece(&mut table, what, segments, slot, memory, storage) {
            Ok(piece) => piece,
            Err(stop) => return stop.into(),
        };
        if unit.drive.transfer(memory, storage, u64::from(bytes >> 9), segments).is_err() {
            return Moved::NotNow;
        }
        executing.table = table;
        if staged {
            executing.staged_bytes = bytes;
        } else {
            executing.moved_bytes = executing.moved_bytes.saturating_add(bytes);
        }
        Moved::Yes
    }

    /// Copies the start of the staging buffer to where the table says, or fills it from there.
    fn exchange<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        executing: &mut Executing,
        (direction, bytes): (Direction, u32),
        memory: &M,
        storage: &mut H,
    ) -> Moved {
        let Some(unit) = self.unit_mut() else { return Moved::NotNow };
        let Some(buffer) = storage.staging(unit.drive.slot()).get_mut(..to_usize(bytes)) else {
            return Moved::Failed(Failure::Aborted);
        };
        if let Err(stop) = executing.table.copy(memory, direction, buffer) {
            return stop.into();
        }
        match direction {
            Direction::Read => unit.drive.parameters_sent(),
            Direction::Write => unit.drive.parameters_received(storage),
        }
        executing.moved_bytes = executing.moved_bytes.saturating_add(bytes);
        Moved::Yes
    }

    /// The command in execution has ended well.
    fn finish<M: GuestMemory + ?Sized>(&mut self, executing: &Executing, memory: &M, info: &Info) {
        let Some(unit) = self.unit_mut() else { return };
        unit.drive.finish();
        unit.phase = Phase::Ready;
        let task = unit.task;
        let multiple = unit.drive.settings().multiple;
        self.report_bytes(executing, memory);
        let pio = Row::of(task.command).and_then(|row| match row.protocol {
            Protocol::PioIn if executing.moved_bytes > 0 => Some((row, true)),
            Protocol::PioOut => Some((row, false)),
            _ => None,
        });
        if let Some((row, to_host)) = pio {
            let bytes = last_block(row, executing.moved_bytes, multiple, info);
            self.post_pio_setup(memory, &task, to_host, bytes);
        }
        // Of data to the host the status is in the PIO Setup FIS, and there is no other (Serial ATA revision 3.0, 11.7, PIO data-in).
        if !matches!(pio, Some((_, true))) {
            self.post_register(memory, &task, (READY, 0), true);
        }
        if self.engine == Engine::Running {
            self.take_from_list(executing.slot);
        }
    }

    /// The command in execution has failed. PxCI keeps its bit, and PxCMD.CCS names it (6.2.2.1).
    fn fail<M: GuestMemory + ?Sized>(&mut self, failure: Failure, memory: &M, info: &Info) {
        let Some(unit) = self.unit_mut() else { return };
        let Phase::Executing(executing) = unit.phase else { return };
        unit.drive.finish();
        unit.phase = Phase::Ready;
        failure.log();
        let report = failure.report();
        if let Some(sector) = report.sector {
            let addressing = Row::of(unit.task.command).map_or(Addressing::None, |row| row.addressing);
            report_address(&mut unit.task, addressing, sector, info);
        }
        let task = unit.task;
        self.report_bytes(&executing, memory);
        if failure.is_memory() {
            return self.fatal(Interrupts::HBFS);
        }
        self.post_register(memory, &task, (READY | report.status(), report.error.bits()), true);
    }

    /// Writes PRDBC, if anything has moved, and interrupts for regions that asked for it.
    fn report_bytes<M: GuestMemory + ?Sized>(&mut self, executing: &Executing, memory: &M) {
        if executing.table.notified() {
            self.is |= Interrupts::DPS;
        }
        if executing.moved_bytes > 0 {
            let at = executing.header.wrapping_add(crate::wire::ahci::CommandHeader::TRANSFERRED_BYTES);
            if memory.write(GuestAddr(at), &executing.moved_bytes.to_le_bytes()).is_err() {
                self.fatal(Interrupts::HBFS);
            }
        }
    }

    /// Gives the storage what queued commands it takes; returns whether it took any.
    // The list of segments is on the stack of this function alone.
    #[inline(never)]
    fn serve_due<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut H) -> bool {
        let Some(unit) = self.unit() else { return false };
        let (mut served, mut begun) = (false, None);
        for tag in unit.drive.queue_due() {
            match self.serve_one(tag, &mut begun, memory, storage) {
                Moved::Yes => {
                    served = true;
                    continue;
                }
                Moved::NotNow => break,
                Moved::NoMemory => self.fatal(Interrupts::HBFS),
                Moved::Short => {
                    self.is |= Interrupts::OFS;
                    self.fail_queued(tag, Failure::Aborted);
                }
                Moved::Failed(failure) => self.fail_queued(tag, failure),
            }
            served = true;
            break;
        }
        // The DMA Setup FISes of those before it would have been overwritten by it.
        if let Some(Due { tag, direction, left }) = begun {
            let bytes = left.bytes().and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(u32::MAX);
            self.post_dma_setup(memory, tag, direction == Direction::Read, bytes);
        }
        served
    }

    /// Gives the storage the next piece of a queued command. `begun` is then that command, if the piece is its first.
    #[inline(always)]
    fn serve_one<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        tag: u8,
        begun: &mut Option<Due>,
        memory: &M,
        storage: &mut H,
    ) -> Moved {
        let Some(unit) = self.unit_mut() else { return Moved::NotNow };
        // An earlier one that failed at once has ended the queue.
        let Some(due) = unit.drive.due(tag) else { return Moved::NotNow };
        let Some(place) = unit.tables.get_mut(usize::from(tag)) else { return Moved::NotNow };
        let (segments, slot) = (&mut Segments::new(), unit.drive.slot());
        let mut table = *place;
        let what = (due.direction, due.left.sectors);
        let Piece { bytes, staged } = match next_piece(&mut table, what, segments, slot, memory, storage) {
            Ok(piece) => piece,
            Err(stop) => return stop.into(),
        };
        let moves = (u64::from(bytes >> 9), staged);
        if unit.drive.transfer_queued(memory, storage, tag, segments, moves).is_err() {
            return Moved::NotNow;
        }
        if place.is_at_start() {
            *begun = Some(due);
        }
        *place = table;
        Moved::Yes
    }

    fn fail_queued(&mut self, tag: u8, failure: Failure) {
        if let Some(unit) = self.unit_mut() {
            unit.drive.fail_queued(tag, failure);
        }
    }

    /// Reports queued commands that have ended, and the end of the queue; returns whether there was anything.
    #[inline(never)]
    fn serve_queue<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut H) -> bool {
        let Some(unit) = self.unit_mut() else { return false };
        if let Some(staged) = unit.drive.queue_staged() {
            self.unstage_queued(staged, memory, storage);
            return true;
        }
        let ended = unit.drive.take_ended();
        if ended != 0 {
            let mut notified = false;
            for tag in Tags::new(ended) {
                if let Some(table) = unit.tables.get_mut(usize::from(tag)) {
                    notified |= core::mem::take(table).notified();
                }
            }
            if notified {
                self.is |= Interrupts::DPS;
            }
            self.post_device_bits(memory, ended, (READY, 0), true);
            return true;
        }
        let Some(error) = unit.drive.queue_error() else { return false };
        unit.tables.fill(Prdt::default());
        self.report_queue_error(error, memory);
        true
    }

    fn unstage_queued<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        staged: Staged,
        memory: &M,
        storage: &mut H,
    ) {
        let Some(unit) = self.unit_mut() else { return };
        let Some(table) = unit.tables.get_mut(usize::from(staged.tag)) else { return };
        let buffer = storage.staging(staged.slot).get_mut(..to_usize(staged.bytes)).ok_or(Stop::NoStaging);
        match buffer.and_then(|buffer| table.copy(memory, Direction::Read, buffer)) {
            Ok(()) => unit.drive.unstage_queued(staged.tag),
            Err(Stop::Memory) => self.fatal(Interrupts::HBFS),
            Err(Stop::Short | Stop::NoStaging) => {
                unit.drive.fail_queued(staged.tag, Failure::Aborted);
                self.is |= Interrupts::OFS;
            }
        }
    }

    /// The queue has ended. PxSACT keeps the bits of all that were outstanding until the host has read the log.
    fn report_queue_error<M: GuestMemory + ?Sized>(&mut self, error: QueueError, memory: &M) {
        if error.failure.is_memory() {
            return self.fatal(Interrupts::HBFS);
        }
        let Some(unit) = self.unit() else { return };
        let task = unit.task;
        error.failure.log();
        let report = error.failure.report();
        let outcome = (READY | report.status(), report.error.bits());
        match error.reply {
            Reply::Register => self.post_register(memory, &task, outcome, true),
            Reply::SetDeviceBits => self.post_device_bits(memory, 0, outcome, true),
        }
    }
}

/// Bytes of the last data block of a PIO command: a logical block, or as many as SET MULTIPLE MODE says.
fn last_block(row: &Row, moved_bytes: u32, multiple: u8, info: &Info) -> u16 {
    let blocks = if row.multiple { u32::from(multiple) } else { 1 };
    let block = if row.addressing == Addressing::None {
        512
    } else {
        info.logical_block_bytes.saturating_mul(blocks)
    };
    let last = match moved_bytes.checked_rem(block) {
        Some(0) | None => block,
        Some(rest) => rest,
    };
    u16::try_from(last.min(moved_bytes)).unwrap_or(u16::MAX)
}
