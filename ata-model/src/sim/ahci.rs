//! A register-level AHCI driver as a guest of the crash explorer, with queued commands or without, served by interrupts; it
//! begins in configuration space.
//!
//! It does as Linux's libahci and libata do: a flush or another command that is not queued waits until the queue is empty;
//! after an error the port is stopped and started, and log 10h is read; a reset is waited for in CR, HR and BSY.

use blk_core::bus::{Device, IrqChange, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::pci::{Command, MsixOwner, PciFunction};
use blk_core::sim::{Action, Ended, Guest, Outcome, SectorRun, layout};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use heapless::Vec;
use serde::Serialize;
use zerocopy::{FromZeros, IntoBytes};

use super::{AhciConfig, AhciReset, Belief, PCI_COMMAND, function};
use crate::drive::DriveConfig;
use crate::front::PciAhci;
use crate::wire::Status;
use crate::wire::ahci::{CommandHeader, PRD_TABLE, PrdEntry};
use crate::wire::fis::RegisterH2d;

const ABAR: Region = Region::Bar(5);
const GHC: u64 = 0x04;
const HOST_IS: u64 = 0x08;
const PORT: u64 = 0x100;
const CLB: u64 = PORT;
const FB: u64 = PORT + 0x08;
const IS: u64 = PORT + 0x10;
const IE: u64 = PORT + 0x14;
const CMD: u64 = PORT + 0x18;
const TFD: u64 = PORT + 0x20;
const SCTL: u64 = PORT + 0x2c;
const SERR: u64 = PORT + 0x30;
const SACT: u64 = PORT + 0x34;
const CI: u64 = PORT + 0x38;

const ST: u32 = 1;
const FRE: u32 = 1 << 4;
const CR: u32 = 1 << 15;

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

/// An HBA with one drive, and its driver.
#[derive(Clone, Debug, Serialize)]
pub struct AhciGuest {
    #[serde(serialize_with = "function")]
    hba: PciFunction<PciAhci<1>, 1>,
    #[serde(skip)]
    config: AhciConfig,
    slots: [Option<Issued>; DEPTH],
    resetting: Option<(u8, Resetting)>,
    belief: Belief,
    irq: bool,
    write_cache: bool,
    /// Ended, not yet told of.
    ended: Vec<Ended, 8>,
}

impl AhciGuest {
    /// Brings a port up, and its drive: IDENTIFY DEVICE.
    pub fn boot<M: GuestMemory + ?Sized, H: Storage<M>>(
        config: AhciConfig,
        memory: &M,
        storage: &mut [H],
    ) -> Self {
        let mut drive = DriveConfig::new("MODEL DISK", "1");
        drive.write_cache = config.belief != Belief::IdentifyThenNoCache;
        let mut guest = Self {
            hba: PciFunction::new(PciAhci::new([Some(drive)]), MsixOwner::Function),
            config,
            slots: [None; DEPTH],
            resetting: None,
            belief: config.belief,
            irq: false,
            write_cache: false,
            ended: Vec::new(),
        };
        let mut bus = Bus { guest: &mut guest, memory, storage };
        bus.bring_up();
        bus.start();
        bus.identify();
        guest
    }

    fn end(&mut self, id: u8, outcome: Outcome) {
        // At most the commands and a reset end between two polls.
        let _ = self.ended.push(Ended { id, outcome });
    }

    /// Whether an action goes as a queued command.
    const fn queues(&self, action: Action) -> bool {
        self.config.queued && matches!(action, Action::Write(_) | Action::WriteFua(_) | Action::Read(_))
    }
}

/// A driver at work: its registers are at hand.
struct Bus<'a, M: ?Sized, H> {
    guest: &'a mut AhciGuest,
    memory: &'a M,
    storage: &'a mut [H],
}

impl<M: GuestMemory + ?Sized, H: Storage<M>> Bus<'_, M, H> {
    fn write(&mut self, offset: u64, value: u32) {
        let hba = &mut self.guest.hba;
        let access = hba.write(ABAR, offset, Width::Dword, value.into(), self.memory, self.storage);
        self.wire(access.irq);
    }

    fn read(&mut self, offset: u64) -> u32 {
        let access = self.guest.hba.read(ABAR, offset, Width::Dword, self.memory, self.storage);
        self.wire(access.irq);
        u32::try_from(access.value).unwrap_or(0)
    }

    fn wire(&mut self, irq: IrqChange) {
        self.guest.irq = irq.line(0).unwrap_or(self.guest.irq);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(GuestAddr(at), bytes);
    }

    /// Writes the PCI command register.
    fn permit(&mut self, command: Command) {
        let (at, value) = (PCI_COMMAND.into(), command.bits().into());
        let access = self.guest.hba.write(Region::Config, at, Width::Word, value, self.memory, self.storage);
        self.wire(access.irq);
    }

    /// Bus mastering, addresses, FIS reception, interrupts.
    fn bring_up(&mut self) {
        self.permit(Command::MEMORY | Command::BUS_MASTER);
        self.write(CLB, u32::try_from(LIST).unwrap_or(0));
        self.write(FB, u32::try_from(RECEIVED).unwrap_or(0));
        self.write(CMD, FRE);
        self.write(SERR, u32::MAX);
        self.write(IS, u32::MAX);
        self.write(IE, u32::MAX);
        self.write(GHC, 2);
    }

    fn start(&mut self) {
        self.acknowledge();
        self.write(CMD, FRE | ST);
    }

    /// Clears what is pending, and what the device left in memory.
    fn acknowledge(&mut self) -> u32 {
        let pending = self.read(IS);
        self.write(SERR, u32::MAX);
        self.write(IS, pending);
        self.write(HOST_IS, 1);
        self.put(RECEIVED, &[0; 0x60]);
        pending
    }

    /// Puts a command into a slot; its data, if there is any, is one region.
    fn prepare(&mut self, slot: u8, fis: &RegisterH2d, data: Option<(GuestAddr, u32)>) {
        let table = TABLES.wrapping_add(u64::from(slot).wrapping_mul(TABLE_BYTES));
        let mut header = CommandHeader::new_zeroed();
        header.options = 5.into();
        header.prd_entries = u16::from(data.is_some()).into();
        header.table = table.into();
        self.put(LIST.wrapping_add(u64::from(slot).wrapping_mul(32)), header.as_bytes());
        self.put(table, fis.as_bytes());
        if let Some((addr, bytes)) = data {
            let mut entry = PrdEntry::new_zeroed();
            entry.base = addr.0.into();
            entry.count = bytes.wrapping_sub(1).into();
            self.put(table.wrapping_add(PRD_TABLE), entry.as_bytes());
        }
    }

    /// Takes what a slot held out of memory.
    fn clear(&mut self, slot: u8) {
        self.prepare(slot, &RegisterH2d::new_zeroed(), Some((GuestAddr(0), 1)));
        self.put(LIST.wrapping_add(u64::from(slot).wrapping_mul(32)), &[0; 32]);
    }

    /// A command that needs no disk, to its end.
    fn run(&mut self, fis: &RegisterH2d) {
        self.prepare(0, fis, Some((GuestAddr(PAGE), 512)));
        self.write(CI, 1);
        self.acknowledge();
        self.clear(0);
    }

    fn identify(&mut self) {
        self.run(&command(0xec, 0, 0, 0));
        let word = |n: u64| {
            let mut bytes = [0; 2];
            let _ = self.memory.read(GuestAddr(PAGE.wrapping_add(n.wrapping_mul(2))), &mut bytes);
            u16::from_le_bytes(bytes)
        };
        let (enabled, valid) = (word(85), word(87));
        self.put(PAGE, &[0; 512]);
        self.guest.write_cache =
            valid & 0xc000 == 0x4000 && enabled & (1 << 5) != 0 && self.guest.belief != Belief::NoCache;
    }

    fn issue(&mut self, id: u8, action: Action) {
        let free = (0_u8..).zip(&self.guest.slots).find(|(_, issued)| issued.is_none()).map(|(slot, _)| slot);
        let Some(slot) = free else { return self.guest.end(id, Outcome::Failed) };
        let source = layout::source(id.wrapping_add(1));
        let (fis, data) = match (action, self.guest.config.queued) {
            (Action::Write(run), true) => (queued(0x61, slot, run, false), region(source, run)),
            (Action::WriteFua(run), true) => (queued(0x61, slot, run, true), region(source, run)),
            (Action::Read(run), true) => (queued(0x60, slot, run, false), region(layout::sink(id), run)),
            (Action::Write(run), false) => (command(0x35, 0, run.first, run.count), region(source, run)),
            (Action::WriteFua(run), false) => (command(0x3d, 0, run.first, run.count), region(source, run)),
            (Action::Read(run), false) => {
                (command(0x25, 0, run.first, run.count), region(layout::sink(id), run))
            }
            (Action::Discard(run), _) => {
                let entry = u64::from(run.first) | u64::from(run.count) << 48;
                self.put(PAGE, &entry.to_le_bytes());
                (command(0x06, 1, 0, 1), Some((GuestAddr(PAGE), 512)))
            }
            (Action::Flush, _) if self.guest.belief == Belief::NoCache => {
                return self.guest.end(id, Outcome::Ok { read: [None; 2] });
            }
            (Action::Flush, _) => (command(0xea, 0, 0, 0), None),
            (Action::CacheOff, _) => (command(0xef, 0x82, 0, 0), None),
            (Action::CacheOn, _) => (command(0xef, 0x02, 0, 0), None),
            // Not in the alphabet.
            (Action::WriteOrdered(_) | Action::WriteZeroes(_) | Action::Reset, _) => {
                return self.guest.end(id, Outcome::Failed);
            }
        };
        if let Some(place) = self.guest.slots.get_mut(usize::from(slot)) {
            *place = Some(Issued { id, action });
        }
        self.prepare(slot, &fis, data);
        let bit = 1_u32.checked_shl(slot.into()).unwrap_or(0);
        if self.guest.queues(action) {
            self.write(SACT, bit);
        }
        self.write(CI, bit);
    }

    /// Ends every command that is outstanding.
    fn end_all(&mut self, outcome: Outcome) {
        for slot in 0..DEPTH {
            if let Some(issued) = self.guest.slots.get_mut(slot).and_then(Option::take) {
                self.guest.end(issued.id, outcome);
            }
        }
    }

    fn reset(&mut self, id: u8) {
        if let Some((before, _)) = self.guest.resetting.take() {
            self.guest.end(before, Outcome::Aborted);
        }
        self.end_all(Outcome::Aborted);
        self.guest.resetting = Some((id, Resetting::Stops));
        match self.guest.config.reset {
            AhciReset::Stop | AhciReset::Software => self.write(CMD, FRE),
            AhciReset::BusMasterOff => {
                self.permit(Command::MEMORY);
                self.write(CMD, FRE);
            }
            AhciReset::Comreset => {
                self.write(CMD, FRE);
                self.write(SCTL, 0x301);
                self.write(SCTL, 0x300);
            }
            AhciReset::Host => self.write(GHC, 1),
            AhciReset::Machine => {
                let progress = self.guest.hba.reset(self.memory, self.storage);
                self.wire(progress.irq);
                self.permit(Command::MEMORY);
            }
        }
        if self.guest.belief == Belief::IdentifyThenNoCache {
            self.guest.belief = Belief::NoCache;
        }
    }

    /// Goes on with a reset as far as the registers let it.
    fn serve_reset(&mut self, id: u8, stage: Resetting) {
        if stage == Resetting::Stops {
            if self.read(GHC) & 1 != 0 || self.read(CMD) & CR != 0 {
                return;
            }
            self.bring_up();
            if self.guest.config.reset == AhciReset::Software {
                self.start();
                self.control(4);
                self.control(0);
            }
            self.guest.resetting = Some((id, Resetting::Signs));
        }
        if self.read(TFD) & u32::from(Status::BSY.bits()) != 0 {
            return;
        }
        (0..2).for_each(|slot| self.clear(slot));
        self.put(PAGE, &[0; 512]);
        self.start();
        if matches!(self.guest.config.reset, AhciReset::Stop | AhciReset::BusMasterOff) {
            // It does not reach the drive, whose queue may have ended before.
            self.run(&command(0x2f, 0, 0x10, 1));
            self.put(PAGE, &[0; 512]);
        }
        self.identify();
        self.guest.resetting = None;
        self.guest.end(id, Outcome::Ok { read: [None; 2] });
    }

    fn control(&mut self, control: u8) {
        let fis = RegisterH2d { flags: 0, control, ..command(0, 0, 0, 0) };
        self.prepare(0, &fis, None);
        self.write(CI, 1);
    }

    /// Serves an interrupt: what is neither in PxSACT nor in PxCI has ended.
    fn serve(&mut self) {
        if let Some((id, stage)) = self.guest.resetting {
            return self.serve_reset(id, stage);
        }
        if !self.guest.irq {
            return;
        }
        let failed = self.acknowledge() & (1 << 30) != 0;
        let outstanding = self.read(SACT) | self.read(CI);
        for slot in 0..2_u8 {
            let ended = outstanding.checked_shr(slot.into()).unwrap_or(0) & 1 == 0;
            let place = self.guest.slots.get_mut(usize::from(slot));
            if ended && let Some(issued) = place.and_then(Option::take) {
                self.succeed(slot, issued);
            }
        }
        if failed {
            self.recover();
        }
    }

    fn succeed(&mut self, slot: u8, issued: Issued) {
        let Issued { id, action } = issued;
        self.clear(slot);
        let mut read = [None; 2];
        match action {
            Action::Read(run) => {
                for (value, sector) in read.iter_mut().zip(0..u64::from(run.count)) {
                    *value = self.sink_sector(id, sector);
                }
            }
            Action::Discard(_) => self.put(PAGE, &[0; 512]),
            Action::CacheOff | Action::CacheOn => self.identify(),
            _ => {}
        }
        self.guest.end(id, Outcome::Ok { read });
    }

    /// An error: the commands that are still outstanding have failed, or were aborted with the one that has.
    fn recover(&mut self) {
        self.write(CMD, FRE);
        debug_assert_eq!(self.read(CMD) & CR, 0, "the queue was drained before the error was reported");
        let queued = self.guest.slots.iter().flatten().any(|issued| self.guest.queues(issued.action));
        self.end_all(Outcome::Failed);
        (0..2).for_each(|slot| self.clear(slot));
        self.start();
        if queued {
            self.run(&command(0x2f, 0, 0x10, 1));
        }
        self.put(PAGE, &[0; 512]);
    }

    fn sink_sector(&self, id: u8, sector: u64) -> Option<u8> {
        let mut bytes = [0; 512];
        let at = layout::sink(id).checked_add(sector.wrapping_mul(512))?;
        self.memory.read(at, &mut bytes).ok()?;
        let (&value, rest) = bytes.split_first()?;
        rest.iter().all(|&byte| byte == value).then_some(value)
    }
}

/// A Register FIS that writes a command.
fn command(opcode: u8, features: u8, lba: u8, count: u8) -> RegisterH2d {
    RegisterH2d {
        fis_type: RegisterH2d::TYPE,
        flags: RegisterH2d::COMMAND,
        command: opcode,
        features,
        lba: [lba, 0, 0],
        device: 0x40,
        count,
        ..RegisterH2d::new_zeroed()
    }
}

fn queued(opcode: u8, tag: u8, run: SectorRun, fua: bool) -> RegisterH2d {
    let device = if fua { 0xc0 } else { 0x40 };
    RegisterH2d { device, ..command(opcode, run.count, run.first, tag << 3) }
}

fn region(addr: GuestAddr, run: SectorRun) -> Option<(GuestAddr, u32)> {
    Some((addr, u32::from(run.count).wrapping_mul(512)))
}

const ZERO: SectorRun = SectorRun::ZERO;
const BOTH: SectorRun = SectorRun::BOTH;

impl<M: GuestMemory + ?Sized, H: Storage<M>> Guest<M, [H]> for AhciGuest {
    fn alphabet(&self) -> &'static [Action] {
        const OLD: &[Action] = &[Action::Write(ZERO), Action::Write(BOTH), Action::Read(BOTH), Action::Reset];
        const ALL: &[Action] = &[
            Action::Write(ZERO),
            Action::Write(SectorRun::ONE),
            Action::Write(BOTH),
            Action::WriteFua(ZERO),
            Action::WriteFua(BOTH),
            Action::Discard(BOTH),
            Action::Read(BOTH),
            Action::Flush,
            Action::CacheOff,
            Action::CacheOn,
            Action::Reset,
        ];
        if self.belief == Belief::NoCache { OLD } else { ALL }
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

    fn issue(&mut self, id: u8, action: Action, memory: &M, storage: &mut [H]) {
        let mut bus = Bus { guest: self, memory, storage };
        match action {
            Action::Reset => bus.reset(id),
            action => bus.issue(id, action),
        }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Vec<Ended, 16> {
        loop {
            let progress = self.hba.poll(memory, storage);
            self.irq = progress.irq.line(0).unwrap_or(self.irq);
            if !progress.again {
                break;
            }
        }
        Bus { guest: self, memory, storage }.serve();
        core::mem::take(&mut self.ended).into_iter().collect()
    }

    fn write_cache(&self) -> bool {
        self.write_cache
    }
}
