//! A register-level AHCI driver as a guest of the crash explorer, with queued commands or without, served by interrupts; it
//! begins in configuration space.
//!
//! It does as Linux's libahci and libata do: a flush or another command that is not queued waits until the queue is empty;
//! after an error the port is stopped and started, and log 10h is read; a reset is waited for in CR, HR and BSY.

use blk_core::bus::{Device, Width};
use blk_core::memory::GuestMemory;
use blk_core::pci::{Command, MsixOwner, PciFunction};
use blk_core::sim::{Action, Outcome, SectorRun, layout, read_back};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use serde::Serialize;

use super::config::{AhciConfig, AhciReset, Belief};
use super::guest::{AtaGuest, Bus, Driver, Steps, drive, function, range};
use super::hba::{ABAR, CR, FRE, ST, command_fis, control_fis, prepare, queued_fis};
use super::ide::DMA;
use crate::front::PciAhci;
use crate::wire::Status;
use crate::wire::ahci::{PORTS_AT, host, port};

/// Where the command list, the received FISes, the tables and other data are.
const LIST: u64 = 0;
const RECEIVED: u64 = 0x400;
const TABLES: u64 = 0x800;
const TABLE_BYTES: u64 = 0x100;
const PAGE: u64 = 0x1000;

/// Commands at once: enough for one to pass another.
const DEPTH: usize = 2;

/// A command that has been issued.
#[derive(Clone, Copy, Debug, Serialize)]
struct Issued {
    id: u8,
    action: Action,
}

/// How far a reset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Resetting {
    /// CR or HR is set.
    Stops,
    /// BSY is.
    Signs,
}

/// A driver of an HBA with one port, and the HBA.
#[derive(Clone, Debug, Serialize)]
pub struct Ahci {
    #[serde(serialize_with = "function")]
    hba: PciFunction<PciAhci<1>, 1>,
    #[serde(skip)]
    config: AhciConfig,
    slots: [Option<Issued>; DEPTH],
    resetting: Option<(u8, Resetting)>,
}

/// An HBA with one drive, and its driver.
pub type AhciGuest = AtaGuest<Ahci>;

impl AhciGuest {
    /// Brings a port up, and its drive: IDENTIFY DEVICE.
    pub fn boot<M: GuestMemory + ?Sized, H: Storage<M>>(
        config: AhciConfig,
        memory: &M,
        storage: &mut [H],
    ) -> Self {
        let hba = PciFunction::new(PciAhci::new([Some(drive(config.belief))]), MsixOwner::Function);
        let driver = Ahci { hba, config, slots: [None; DEPTH], resetting: None };
        let mut guest = Self::new(driver, config.belief);
        let mut bus = Bus { guest: &mut guest, memory, storage };
        bus.bring_up();
        bus.start();
        bus.identify();
        guest
    }
}

impl Ahci {
    /// Whether an action goes as a queued command.
    const fn queues(&self, action: Action) -> bool {
        self.config.queued && matches!(action, Action::Write(_) | Action::WriteFua(_) | Action::Read(_))
    }
}

impl<M: GuestMemory + ?Sized, H: Storage<M>> Steps for Bus<'_, Ahci, M, H> {
    fn issue(&mut self, id: u8, action: Action) {
        let free =
            (0_u8..).zip(&self.guest.driver.slots).find(|(_, issued)| issued.is_none()).map(|(slot, _)| slot);
        let Some(slot) = free else { return self.guest.end(id, Outcome::Failed) };
        let source = layout::source(id.wrapping_add(1));
        let (fis, data) = match (action, self.guest.driver.config.queued) {
            (Action::Write(run), true) => (queued(0x61, slot, run, false), region(source, run)),
            (Action::WriteFua(run), true) => (queued(0x61, slot, run, true), region(source, run)),
            (Action::Read(run), true) => (queued(0x60, slot, run, false), region(layout::sink(id), run)),
            (Action::Write(run), false) => (command(0x35, 0, run.first, run.count), region(source, run)),
            (Action::WriteFua(run), false) => (command(0x3d, 0, run.first, run.count), region(source, run)),
            (Action::Read(run), false) => {
                (command(0x25, 0, run.first, run.count), region(layout::sink(id), run))
            }
            (Action::Discard(run), _) => {
                self.put(PAGE, &range(run));
                (command(0x06, 1, 0, 1), Some((GuestAddr(PAGE), 512)))
            }
            (Action::Flush, _) if self.guest.belief == Belief::NoCache => {
                return self.guest.end(id, Outcome::DONE);
            }
            (Action::Flush, _) => (command(0xea, 0, 0, 0), None),
            (Action::CacheOff, _) => (command(0xef, 0x82, 0, 0), None),
            (Action::CacheOn, _) => (command(0xef, 0x02, 0, 0), None),
            // Not in the alphabet.
            (Action::WriteOrdered(_) | Action::WriteZeroes(_) | Action::Reset, _) => {
                return self.guest.end(id, Outcome::Failed);
            }
        };
        if let Some(place) = self.guest.driver.slots.get_mut(usize::from(slot)) {
            *place = Some(Issued { id, action });
        }
        self.prepare(slot, &fis, data);
        let bit = 1_u32.checked_shl(slot.into()).unwrap_or(0);
        if self.guest.driver.queues(action) {
            self.set(port::SACT, bit);
        }
        self.set(port::CI, bit);
    }

    fn reset(&mut self, id: u8) {
        if let Some((before, _)) = self.guest.driver.resetting.take() {
            self.guest.end(before, Outcome::Aborted);
        }
        self.end_all(Outcome::Aborted);
        self.guest.driver.resetting = Some((id, Resetting::Stops));
        match self.guest.driver.config.reset {
            AhciReset::Stop | AhciReset::Software => self.set(port::CMD, FRE),
            AhciReset::BusMasterOff => {
                self.permit(Command::MEMORY);
                self.set(port::CMD, FRE);
            }
            AhciReset::Comreset => {
                self.set(port::CMD, FRE);
                self.set(port::SCTL, 0x301);
                self.set(port::SCTL, 0x300);
            }
            AhciReset::Host => self.set_host(host::GHC, 1),
            AhciReset::Machine => {
                self.reset_machine();
                self.permit(Command::MEMORY);
            }
        }
    }

    /// Serves an interrupt: what is neither in PxSACT nor in PxCI has ended.
    fn serve(&mut self) {
        if let Some((id, stage)) = self.guest.driver.resetting {
            return self.serve_reset(id, stage);
        }
        if !self.guest.irq {
            return;
        }
        let failed = self.acknowledge() & (1 << 30) != 0;
        let outstanding = self.get(port::SACT) | self.get(port::CI);
        for slot in 0..2_u8 {
            let ended = outstanding.checked_shr(slot.into()).unwrap_or(0) & 1 == 0;
            let place = self.guest.driver.slots.get_mut(usize::from(slot));
            if ended && let Some(issued) = place.and_then(Option::take) {
                self.succeed(slot, issued);
            }
        }
        if failed {
            self.recover();
        }
    }
}

impl<M: GuestMemory + ?Sized, H: Storage<M>> Bus<'_, Ahci, M, H> {
    fn set(&mut self, offset: u64, value: u32) {
        self.set_host(PORTS_AT.wrapping_add(offset), value);
    }

    fn set_host(&mut self, offset: u64, value: u32) {
        self.write(ABAR, offset, Width::Dword, value.into());
    }

    fn get(&mut self, offset: u64) -> u32 {
        u32::try_from(self.read(ABAR, PORTS_AT.wrapping_add(offset), Width::Dword)).unwrap_or(0)
    }

    /// Bus mastering, addresses, FIS reception, interrupts.
    fn bring_up(&mut self) {
        self.permit(Command::MEMORY | Command::BUS_MASTER);
        self.set(port::CLB, u32::try_from(LIST).unwrap_or(0));
        self.set(port::FB, u32::try_from(RECEIVED).unwrap_or(0));
        self.set(port::CMD, FRE);
        self.set(port::SERR, u32::MAX);
        self.set(port::IS, u32::MAX);
        self.set(port::IE, u32::MAX);
        self.set_host(host::GHC, 2);
    }

    fn start(&mut self) {
        self.acknowledge();
        self.set(port::CMD, FRE | ST);
    }

    /// Clears what is pending, and what the device left in memory.
    fn acknowledge(&mut self) -> u32 {
        let pending = self.get(port::IS);
        self.set(port::SERR, u32::MAX);
        self.set(port::IS, pending);
        self.set_host(host::IS, 1);
        self.put(RECEIVED, &[0; 0x60]);
        pending
    }

    /// Puts a command into a slot; its data, if there is any, is one region.
    fn prepare(&mut self, slot: u8, fis: &[u8], data: Option<(GuestAddr, u32)>) {
        let table = TABLES.wrapping_add(u64::from(slot).wrapping_mul(TABLE_BYTES));
        let region = data.map(|(addr, bytes)| (addr.0, bytes));
        for (at, bytes) in prepare(LIST, slot, table, fis, region.as_slice()) {
            self.put(at, &bytes);
        }
    }

    /// Takes what a slot held out of memory.
    fn clear(&mut self, slot: u8) {
        self.prepare(slot, &[0; 20], Some((GuestAddr(0), 1)));
        self.put(LIST.wrapping_add(u64::from(slot).wrapping_mul(32)), &[0; 32]);
    }

    /// A command that needs no disk, to its end.
    fn run(&mut self, fis: &[u8]) {
        self.prepare(0, fis, Some((GuestAddr(PAGE), 512)));
        self.set(port::CI, 1);
        self.acknowledge();
        self.clear(0);
    }

    fn identify(&mut self) {
        self.run(&command(0xec, 0, 0, 0));
        let memory = self.memory;
        let word = |n: usize| {
            let mut bytes = [0; 2];
            let _ = memory.read(GuestAddr(PAGE.wrapping_add((n as u64).wrapping_mul(2))), &mut bytes);
            u16::from_le_bytes(bytes)
        };
        self.guest.identified(word);
        self.put(PAGE, &[0; 512]);
    }

    /// Ends every command that is outstanding.
    fn end_all(&mut self, outcome: Outcome) {
        for slot in 0..DEPTH {
            if let Some(issued) = self.guest.driver.slots.get_mut(slot).and_then(Option::take) {
                self.guest.end(issued.id, outcome);
            }
        }
    }

    /// Goes on with a reset as far as the registers let it.
    fn serve_reset(&mut self, id: u8, stage: Resetting) {
        if stage == Resetting::Stops {
            if self.read(ABAR, host::GHC, Width::Dword) & 1 != 0 || self.get(port::CMD) & CR != 0 {
                return;
            }
            self.bring_up();
            if self.guest.driver.config.reset == AhciReset::Software {
                self.start();
                self.control(4);
                self.control(0);
            }
            self.guest.driver.resetting = Some((id, Resetting::Signs));
        }
        if self.get(port::TFD) & u32::from(Status::BSY.bits()) != 0 {
            return;
        }
        (0..2).for_each(|slot| self.clear(slot));
        self.put(PAGE, &[0; 512]);
        self.start();
        if matches!(self.guest.driver.config.reset, AhciReset::Stop | AhciReset::BusMasterOff) {
            // It does not reach the drive, whose queue may have ended before.
            self.run(&command(0x2f, 0, 0x10, 1));
            self.put(PAGE, &[0; 512]);
        }
        self.identify();
        self.guest.driver.resetting = None;
        self.guest.end(id, Outcome::DONE);
    }

    fn control(&mut self, control: u8) {
        self.prepare(0, &control_fis(0, control), None);
        self.set(port::CI, 1);
    }

    fn succeed(&mut self, slot: u8, issued: Issued) {
        let Issued { id, action } = issued;
        self.clear(slot);
        let mut read = [None; 2];
        match action {
            Action::Read(run) => {
                read = read_back(self.memory, id, run);
            }
            Action::Discard(_) => self.put(PAGE, &[0; 512]),
            Action::CacheOff | Action::CacheOn => self.identify(),
            _ => {}
        }
        self.guest.end(id, Outcome::Ok { read });
    }

    /// An error: the commands that are still outstanding have failed, or were aborted with the one that has.
    fn recover(&mut self) {
        self.set(port::CMD, FRE);
        debug_assert_eq!(self.get(port::CMD) & CR, 0, "the queue was drained before the error was reported");
        let queued =
            self.guest.driver.slots.iter().flatten().any(|issued| self.guest.driver.queues(issued.action));
        self.end_all(Outcome::Failed);
        (0..2).for_each(|slot| self.clear(slot));
        self.start();
        if queued {
            self.run(&command(0x2f, 0, 0x10, 1));
        }
        self.put(PAGE, &[0; 512]);
    }
}

fn command(opcode: u8, features: u8, lba: u8, count: u8) -> [u8; 20] {
    command_fis(opcode, features.into(), lba.into(), count.into(), 0x40)
}

fn queued(opcode: u8, tag: u8, run: SectorRun, fua: bool) -> [u8; 20] {
    queued_fis(opcode, tag, run.first.into(), run.count.into(), fua)
}

fn region(addr: GuestAddr, run: SectorRun) -> Option<(GuestAddr, u32)> {
    Some((addr, u32::from(run.count).wrapping_mul(512)))
}

impl Driver for Ahci {
    fn device<'a, M: GuestMemory + ?Sized + 'a, H: Storage<M> + 'a>(
        &'a mut self,
    ) -> &'a mut (dyn Device<M, [H]> + 'a) {
        &mut self.hba
    }

    fn alphabet(&self, belief: Belief) -> &'static [Action] {
        const OLD: &[Action] = &[
            Action::Write(SectorRun::ZERO),
            Action::Write(SectorRun::BOTH),
            Action::Read(SectorRun::BOTH),
            Action::Reset,
        ];
        if belief == Belief::NoCache { OLD } else { &DMA }
    }

    fn depth(&self) -> usize {
        if self.config.queued { DEPTH } else { 1 }
    }

    fn accepts(&self, action: Action) -> bool {
        let mut issued = self.slots.iter().flatten();
        match (action, self.resetting) {
            (Action::Reset, _) => true,
            (_, Some(_)) => false,
            // What is not queued waits for what is, and the other way round.
            (action, None) if self.queues(action) => issued.all(|issued| self.queues(issued.action)),
            (_, None) => issued.next().is_none(),
        }
    }
}
