//! Takes commands from a port's list, and lets them and resets go on (AHCI 1.3.1, 5.3, HBA Port State Machine).

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use zerocopy::{FromZeros, IntoBytes};

use super::port::{Bay, Engine, Executing, Phase, Port, Unit};
use super::prdt::Prdt;
use super::receive::READY;
use super::registers::Interrupts;
use crate::command::{Operation, Queued, Reject, Row, decode};
use crate::drive::{Failure, Reset, Taken};
use crate::wire::ahci::{CommandHeader, PRD_TABLE};
use crate::wire::fis::RegisterH2d;
use crate::wire::{Control, ErrorBits, Status};

/// Steps that one access or poll makes at most in a port.
const STEPS_MAX: u32 = 128;

/// A command as the list has it: copied once.
struct Fetched {
    slot: u8,
    header_at: u64,
    header: CommandHeader,
    fis: RegisterH2d,
}

impl Fetched {
    /// Where the command table is.
    const fn table(&self) -> u64 {
        self.header.table.get() & CommandHeader::TABLE
    }

    /// Whether the command is for a device behind a port multiplier. There is none, and nothing that it could mean (CAP.SPM is 0).
    const fn is_elsewhere(&self) -> bool {
        self.fis.flags & 0x0f != 0 || self.header.options.get() & CommandHeader::PORT != 0
    }
}

impl Port {
    /// Lets commands and resets go on until they wait for the host or the storage; returns whether they could go on.
    pub(super) fn advance<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        memory: &M,
        storage: Option<&mut H>,
    ) -> bool {
        let Some(storage) = storage else {
            // Without storage there is nothing to wait for.
            if self.engine == Engine::Stopping {
                self.end_stop();
            }
            return false;
        };
        (0..STEPS_MAX).all(|_| self.advance_once(memory, storage))
    }

    fn advance_once<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut H) -> bool {
        if let Bay::Releases(unit) = &mut self.bay
            && unit.drive.drain(memory, storage)
        {
            self.bay = Bay::Empty;
        }
        if let Some(Unit { phase: Phase::Resetting { .. } | Phase::Signing { .. }, .. }) = self.unit() {
            self.advance_reset(memory, storage);
            self.sign(memory);
        }
        if self.engine == Engine::Stopping {
            let drained = match &mut self.bay {
                Bay::Empty => true,
                Bay::Holds(unit) | Bay::Releases(unit) => unit.drive.drain(memory, storage),
            };
            if !drained {
                return false;
            }
            self.end_stop();
        }
        if !self.bus_master {
            return false;
        }
        let taken = self.may_send();
        if taken {
            self.take_commands(memory, storage);
        }
        let moved = self.move_data(memory, storage);
        (taken || moved) && self.has_work()
    }

    /// Whether a command is in the list, or the drive has something to do.
    fn has_work(&self) -> bool {
        let drive =
            self.unit().is_some_and(|unit| !matches!(unit.phase, Phase::Ready) || !unit.drive.is_idle());
        drive || self.ci != 0
    }

    fn end_stop(&mut self) {
        let started = self.cmd.contains(super::registers::Cmd::ST);
        self.engine = if started { Engine::Running } else { Engine::Stopped };
    }

    /// Ends a reset of the drive when nothing is with the storage any more, and what holds it has let go. BSY is set until
    /// then, by no timer.
    fn advance_reset<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut H) {
        let held = self.link_is_held();
        let Some(unit) = self.unit_mut() else { return };
        let Phase::Resetting { reset, srst, slot } = unit.phase else { return };
        if !unit.drive.drain(memory, storage) || srst || held && reset >= Reset::Comreset {
            return;
        }
        if !unit.drive.finish_reset(reset, memory, storage) {
            return;
        }
        unit.tables.fill(Prdt::default());
        if reset == Reset::Stop {
            // Its commands are gone, and none of them may look as if it had succeeded.
            unit.phase = Phase::Ready;
            self.status = (READY | Status::ERR).bits();
            self.error = ErrorBits::ABRT.bits();
        } else {
            unit.phase = Phase::Signing { slot };
        }
    }

    /// Takes the next command from the list, and those after it for as long as the drive queues them.
    // What is fetched is on the stack of this function alone.
    #[inline(never)]
    fn take_commands<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut H) {
        // The last command that the drive has queued. The Register FIS that says so is posted when no other follows: that of the
        // next one would overwrite it, in the one place for such FISes (4.2.1), and neither interrupts.
        let mut accepted = None;
        let (header, fis) = (CommandHeader::new_zeroed(), RegisterH2d::new_zeroed());
        let mut fetched = Fetched { slot: 0, header_at: 0, header, fis };
        loop {
            if self.fetch(&mut fetched, memory).is_err() {
                self.fatal(Interrupts::HBFS);
                break;
            }
            if !self.send(&fetched, &mut accepted, memory, storage) || !self.may_send() {
                break;
            }
        }
        self.post_accepted(accepted, memory);
    }

    /// Whether a command is to be sent, and may be.
    fn may_send(&self) -> bool {
        if self.engine != Engine::Running || self.ci == 0 || self.is_busy() {
            return false;
        }
        let Some(unit) = self.unit() else { return false };
        match unit.phase {
            Phase::Ready => !unit.drive.is_queue_ending(),
            Phase::Resetting { srst, .. } => srst,
            Phase::Executing(_) | Phase::Signing { .. } => false,
        }
    }

    /// Reads the next command in turn: the slots go round, from slot 0 on when ST was set (3.3.7, CCS).
    #[inline(always)]
    fn fetch<M: GuestMemory + ?Sized>(
        &mut self,
        fetched: &mut Fetched,
        memory: &M,
    ) -> Result<(), MemoryError> {
        let first = self.ccs.map_or(0, |ccs| u32::from(ccs).wrapping_add(1));
        let distance = self.ci.rotate_right(first).trailing_zeros();
        let slot = u8::try_from(first.wrapping_add(distance) & 31).unwrap_or(0);
        self.ccs = Some(slot);
        fetched.slot = slot;
        fetched.header_at = self.clb.checked_add(u64::from(slot).wrapping_mul(32)).ok_or(MemoryError)?;
        memory.read(GuestAddr(fetched.header_at), used(fetched.header.as_mut_bytes()))?;
        memory.read(GuestAddr(fetched.table()), used(fetched.fis.as_mut_bytes()))
    }

    /// Sends a command's FIS to the drive; returns whether that has queued it. What is no Register FIS the drive does not take.
    #[inline(always)]
    fn send<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        fetched: &Fetched,
        accepted: &mut Option<RegisterH2d>,
        memory: &M,
        storage: &mut H,
    ) -> bool {
        let dwords = fetched.header.options.get() & CommandHeader::FIS_DWORDS;
        if fetched.fis.fis_type != RegisterH2d::TYPE || usize::from(dwords) < size_of::<RegisterH2d>() >> 2 {
            self.serr |= super::registers::Serr::P;
            self.fatal(Interrupts::IFS);
            return false;
        }
        self.status |= Status::BSY.bits();
        if fetched.fis.flags & RegisterH2d::COMMAND != 0 {
            self.command(fetched, accepted, memory, storage)
        } else {
            self.control(fetched);
            false
        }
    }

    /// Device Control: SRST begins with one FIS and ends with another (10.4.1). Whatever port of a multiplier the FIS is for,
    /// a drive that is attached directly takes it, so that hosts find out that there is none.
    fn control(&mut self, fetched: &Fetched) {
        let control = Control::from_bits_truncate(fetched.fis.control);
        let Some(unit) = self.unit_mut() else { return };
        match (&mut unit.phase, control.contains(Control::SRST)) {
            (Phase::Resetting { srst, slot, .. }, false) if *srst => {
                // The signature ends this command.
                *srst = false;
                *slot = Some(fetched.slot);
                return;
            }
            (_, true) => unit.begin_reset(Reset::Software, true),
            _ => {}
        }
        // As if the header said so, which it has to: with BSY set the end of SRST could not be sent.
        self.status &= !Status::BSY.bits();
        self.take_from_list(fetched.slot);
    }

    /// Hands a command to the drive: returns whether that has queued it.
    #[inline(always)]
    fn command<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        fetched: &Fetched,
        accepted: &mut Option<RegisterH2d>,
        memory: &M,
        storage: &mut H,
    ) -> bool {
        let Some(unit) = self.unit_mut() else { return false };
        if matches!(unit.phase, Phase::Resetting { .. }) {
            // Lost: a drive in reset listens to the end of SRST alone.
            return false;
        }
        let Some(table) = fetched.table().checked_add(PRD_TABLE) else {
            self.fatal(Interrupts::HBFS);
            return false;
        };
        let table = Prdt::new(table, fetched.header.prd_entries.get());
        let (task, slot) = (fetched.fis.task_file(), fetched.slot);
        let queued = match Row::of(task.command) {
            Some(row @ Row { operation: Operation::Queued(direction), .. }) if !fetched.is_elsewhere() => {
                Some((row, Queued::decode(*direction, &task)))
            }
            _ => None,
        };
        let taken = match queued {
            // The HBA finds a queued command's table by its tag.
            Some((_, queued)) if queued.tag != slot && !unit.drive.is_queue_closed() => {
                unit.drive.refuse(Some(queued.tag), Failure::Aborted);
                Some(Taken::Refused)
            }
            Some((row, queued)) => Some(unit.drive.enqueue(row, queued, storage.info())),
            None => None,
        };
        if taken == Some(Taken::Queued) {
            if let Some(place) = unit.tables.get_mut(usize::from(slot)) {
                *place = table;
            }
            (self.status, self.error) = (READY.bits(), 0);
            self.take_from_list(slot);
            *accepted = Some(fetched.fis);
            return true;
        }
        self.post_accepted(accepted.take(), memory);
        self.command_alone(fetched, table, taken, memory, storage);
        false
    }

    /// A command that is not queued, be it that it cannot be: the drive takes no other until it has ended. `taken` is what the
    /// drive has said to it, if that was asked.
    #[inline(never)]
    fn command_alone<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        fetched: &Fetched,
        table: Prdt,
        taken: Option<Taken>,
        memory: &M,
        storage: &mut H,
    ) {
        let Some(unit) = self.unit_mut() else { return };
        unit.task = fetched.fis.task_file();
        let closed = unit.drive.is_queue_closed();
        let taken = match (taken, decode(&unit.task, unit.drive.settings().geometry)) {
            (Some(taken), _) => Ok(taken),
            _ if fetched.is_elsewhere() => Err(Failure::Aborted),
            (_, Ok((row, _))) if is_diagnostic(row) && !unit.drive.is_queue_busy() && !closed => {
                return self.diagnose(memory, fetched.slot);
            }
            (_, Ok((row, command))) => Ok(unit.drive.execute(row, command, &mut unit.task, storage)),
            (_, Err(Reject::Unknown)) => Err(Failure::Aborted),
            (_, Err(Reject::NoSuchAddress)) => Err(Failure::NoSuchAddress),
        };
        let (slot, header) = (fetched.slot, fetched.header_at);
        let executing = Executing { slot, header, table, moved_bytes: 0, staged_bytes: 0 };
        match taken {
            Ok(Taken::NonQueued) => {
                unit.phase = Phase::Executing(executing);
                if closed && !unit.drive.is_queue_closed() {
                    // The host reads the log: all that was outstanding is discarded (Serial ATA revision 3.0, 13.6).
                    self.post_device_bits(memory, u32::MAX, (READY, 0), false);
                }
            }
            Ok(Taken::Refused | Taken::Queued) => {}
            Err(failure) if unit.drive.is_queue_busy() => unit.drive.refuse(None, failure),
            Err(failure) => {
                unit.drive.fail(failure);
                unit.phase = Phase::Executing(executing);
            }
        }
    }
}

/// The bytes of a command header and of a Register FIS that mean something; what follows is reserved.
fn used(bytes: &mut [u8]) -> &mut [u8] {
    bytes.get_mut(..16).unwrap_or_default()
}

fn is_diagnostic(row: &Row) -> bool {
    row.operation == Operation::Diagnostic
}
