//! Reception of FISes from the drive: a port stores them in memory, updates its registers, and interrupts.

use blk_core::memory::GuestMemory;
use blk_core::units::GuestAddr;
use zerocopy::{Immutable, IntoBytes};

use super::port::{Engine, Phase, Port};
use super::registers::{Cmd, Interrupts};
use crate::wire::ahci::received;
use crate::wire::fis::{DmaSetup, INTERRUPT, PioSetup, RegisterD2h, RegisterH2d, SetDeviceBits};
use crate::wire::{Status, TaskFile};

/// A drive that is ready: what Status holds after a command that ended well.
pub(super) const READY: Status = Status::DRDY.union(Status::DSC);

/// The error register's value in a signature: diagnostic code 01h, "passed".
const PASSED: u8 = 1;

/// Flags of a FIS.
const fn interrupt(on: bool) -> u8 {
    if on { INTERRUPT } else { 0 }
}

impl Port {
    /// A fatal error of which the host is told by `cause`: nothing goes on until it clears ST (6.2.2).
    pub(super) fn fatal(&mut self, cause: Interrupts) {
        self.is |= cause;
        if self.engine == Engine::Running {
            self.engine = Engine::Halted;
        }
    }

    /// Puts a FIS into the received FIS area, unless FISes are not to be received.
    fn post<M: GuestMemory + ?Sized>(&mut self, memory: &M, offset: u64, fis: &(impl IntoBytes + Immutable)) {
        if !self.cmd.contains(Cmd::FRE) {
            return;
        }
        let at = GuestAddr(self.fb.wrapping_add(offset));
        if memory.write(at, fis.as_bytes()).is_err() {
            self.fatal(Interrupts::HBFS);
        }
    }

    /// A Register FIS.
    pub(super) fn post_register<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        task: &TaskFile,
        (status, error): (Status, u8),
        interrupts: bool,
    ) {
        self.post(memory, received::REGISTER, &register_fis(task, (status, error), interrupts));
        self.status = status.bits();
        self.error = error;
        if interrupts {
            self.is |= Interrupts::DHRS;
        }
        if status.contains(Status::ERR) {
            self.fatal(Interrupts::TFES);
        }
    }

    /// The Register FIS by which a drive has accepted a queued command, if one is due. Status and Error are as it has them already.
    pub(super) fn post_accepted<M: GuestMemory + ?Sized>(&mut self, due: Option<RegisterH2d>, memory: &M) {
        if let (Some(command), Some(unit)) = (due, self.unit_mut()) {
            unit.task = command.task_file();
            let fis = register_fis(&unit.task, (READY, 0), false);
            self.post(memory, received::REGISTER, &fis);
        }
    }

    /// The PIO Setup FIS of a command's last data block. Those of the blocks before it would have been overwritten by it.
    pub(super) fn post_pio_setup<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        task: &TaskFile,
        to_host: bool,
        bytes: u16,
    ) {
        let end = if to_host { READY } else { Status::BSY | READY };
        let fis = PioSetup {
            fis_type: PioSetup::TYPE,
            flags: if to_host { INTERRUPT | PioSetup::TO_HOST } else { 0 },
            status: (READY | Status::DRQ).bits(),
            error: 0,
            lba: task.lba_bytes(),
            device: task.device,
            lba_previous: task.lba_previous_bytes(),
            _11: 0,
            count: task.count.current,
            count_previous: task.count.previous,
            _14: 0,
            end_status: end.bits(),
            transfer_bytes: bytes.into(),
            _18: 0.into(),
        };
        self.post(memory, received::PIO_SETUP, &fis);
        self.status = end.bits();
        self.error = 0;
        if to_host {
            self.is |= Interrupts::PSS;
        }
    }

    /// The DMA Setup FIS of a queued command.
    pub(super) fn post_dma_setup<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        tag: u8,
        to_host: bool,
        bytes: u32,
    ) {
        let fis = DmaSetup {
            fis_type: DmaSetup::TYPE,
            flags: if to_host { PioSetup::TO_HOST } else { 0 },
            _2: 0.into(),
            tag: u32::from(tag).into(),
            _8: 0.into(),
            _12: 0.into(),
            offset: 0.into(),
            bytes: bytes.into(),
            _24: 0.into(),
        };
        self.post(memory, received::DMA_SETUP, &fis);
    }

    /// A Set Device Bits FIS: the tags in `ended` have ended; with ERR, the queue has, and which command failed is in the log.
    pub(super) fn post_device_bits<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        ended: u32,
        (status, error): (Status, u8),
        interrupts: bool,
    ) {
        let bits = status.bits() & SetDeviceBits::STATUS;
        let fis = SetDeviceBits {
            fis_type: SetDeviceBits::TYPE,
            flags: interrupt(interrupts),
            status: bits,
            error,
            ended: ended.into(),
        };
        self.post(memory, received::SET_DEVICE_BITS, &fis);
        self.status = self.status & !SetDeviceBits::STATUS | bits;
        self.error = error;
        self.sact &= !ended;
        if interrupts {
            self.is |= Interrupts::SDBS;
        }
        if status.contains(Status::ERR) {
            self.fatal(Interrupts::TFES);
        }
    }

    /// Sends the signature of a drive that has come out of a reset, as soon as FISes are received. PxTFD and PxSIG say
    /// nothing before (10.1.1).
    pub(super) fn sign<M: GuestMemory + ?Sized>(&mut self, memory: &M) {
        let receives = self.cmd.contains(Cmd::FRE) && self.bus_master && !self.link_is_held();
        let Some(unit) = self.unit_mut() else { return };
        let Phase::Signing { slot } = unit.phase else { return };
        if !receives {
            return;
        }
        unit.phase = Phase::Ready;
        unit.task = TaskFile::signature();
        let task = unit.task;
        self.post_register(memory, &task, (READY, PASSED), false);
        self.sig = signature(&task);
        if let Some(slot) = slot {
            self.take_from_list(slot);
        }
    }

    /// EXECUTE DEVICE DIAGNOSTIC: the signature, as the answer to a command.
    pub(super) fn diagnose<M: GuestMemory + ?Sized>(&mut self, memory: &M, slot: u8) {
        let task = TaskFile::signature();
        if let Some(unit) = self.unit_mut() {
            unit.task = task;
        }
        self.post_register(memory, &task, (READY, PASSED), true);
        self.take_from_list(slot);
    }

    /// A command is no more in the list.
    pub(super) fn take_from_list(&mut self, slot: u8) {
        self.ci &= !1_u32.wrapping_shl(slot.into());
    }
}

fn register_fis(task: &TaskFile, (status, error): (Status, u8), interrupts: bool) -> RegisterD2h {
    RegisterD2h {
        fis_type: RegisterD2h::TYPE,
        flags: interrupt(interrupts),
        status: status.bits(),
        error,
        lba: task.lba_bytes(),
        device: task.device,
        lba_previous: task.lba_previous_bytes(),
        count: task.count.current,
        count_previous: task.count.previous,
        ..RegisterD2h::default()
    }
}

/// PxSIG: LBA high, mid and low, and the count (3.3.9).
fn signature(task: &TaskFile) -> u32 {
    let [low, mid, high] = task.lba_bytes();
    u32::from_le_bytes([task.count.current, low, mid, high])
}
