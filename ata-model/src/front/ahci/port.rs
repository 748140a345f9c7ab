//! A port: its registers, and the drive behind it.

use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;

use super::prdt::Prdt;
use super::registers::{
    Cmd, DET_COMRESET, DET_OFF, IE_MASK, Interrupts, SCTL_MASK, SIGNATURE_NONE, SLOTS, STATUS_NONE, Serr,
    port,
};
use crate::command::Interface;
use crate::drive::{Drive, DriveConfig, Reset};
use crate::wire::{Status, TaskFile};

/// A port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Port {
    pub(super) clb: u64,
    pub(super) fb: u64,
    /// PxIS without the bits that are PxSERR's.
    pub(super) is: Interrupts,
    ie: u32,
    /// The enabled interrupts that its own message was last sent for, and that are pending still.
    pub(super) announced: u32,
    /// What software has written to PxCMD.
    pub(super) cmd: Cmd,
    pub(super) status: u8,
    pub(super) error: u8,
    pub(super) sig: u32,
    pub(super) sctl: u32,
    pub(super) serr: Serr,
    pub(super) sact: u32,
    pub(super) ci: u32,
    /// PxCMD.CCS: the slot whose command was sent last, if one was since ST was set.
    pub(super) ccs: Option<u8>,
    /// PxSSTS.SPD while the link is up.
    pub(super) speed: u32,
    pub(super) engine: Engine,
    /// Whether memory may be accessed. While not, nothing goes on but what the storage has, and resets.
    pub(super) bus_master: bool,
    pub(super) bay: Bay,
}

/// The engine that processes the command list (AHCI 1.3.1, 5.3, HBA Port State Machine).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Engine {
    /// CR is clear.
    Stopped,
    /// Commands are taken.
    Running,
    /// A fatal error: nothing goes on until ST is cleared.
    Halted,
    /// ST was cleared; what the storage has is awaited.
    Stopping,
}

/// Where a drive is, if there is one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[allow(
    clippy::large_enum_variant,
    reason = "a device is plain data of a fixed size, and a bay is rarely empty"
)]
pub(super) enum Bay {
    /// There is none.
    Empty,
    /// It is in place.
    Holds(Unit),
    /// It was pulled out; what the storage has of it is awaited.
    Releases(Unit),
}

/// A drive with its registers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Unit {
    pub(super) drive: Drive<SLOTS>,
    pub(super) task: TaskFile,
    pub(super) phase: Phase,
    /// How far each queued command is in its table.
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    pub(super) tables: [Prdt; SLOTS],
}

/// Phase of the drive's commands that are not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Phase {
    /// Nothing: BSY is clear, or the command that set it ends the queue.
    Ready,
    /// A command that is not queued.
    Executing(Executing),
    /// A reset: what the storage has is awaited, and the end of SRST or of COMRESET. `slot` brought the end of SRST.
    Resetting { reset: Reset, srst: bool, slot: Option<u8> },
    /// A reset is over, and the signature waits for the port to receive FISes.
    Signing { slot: Option<u8> },
}

/// A command that is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Executing {
    pub(super) slot: u8,
    /// Its command header.
    pub(super) header: u64,
    pub(super) table: Prdt,
    /// Bytes that have moved.
    pub(super) moved_bytes: u32,
    /// Bytes that come through the staging buffer.
    pub(super) staged_bytes: u32,
}

impl Unit {
    const fn new(config: DriveConfig) -> Self {
        Self {
            drive: Drive::new(config, Interface::Serial),
            task: TaskFile::signature(),
            phase: Phase::Signing { slot: None },
            tables: [Prdt::new(0, 0); SLOTS],
        }
    }

    /// Whether commands are outstanding that a stop would take away.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.phase, Phase::Executing(_))
            || self.drive.is_queue_busy()
            || self.drive.is_queue_ending()
    }

    /// Begins a reset, or makes the one under way as thorough.
    pub(super) fn begin_reset(&mut self, reset: Reset, srst: bool) {
        let (reset, srst) = match self.phase {
            // The host has stopped, and the drive still waits for the end of SRST.
            Phase::Resetting { reset: before, srst: held, .. } if reset == Reset::Stop => (before, held),
            Phase::Resetting { reset: before, .. } => (before.max(reset), srst),
            _ => (reset, srst),
        };
        self.drive.begin_reset();
        self.phase = Phase::Resetting { reset, srst, slot: None };
    }
}

impl Port {
    /// A port after power-on.
    pub(super) const fn new(drive: Option<DriveConfig>) -> Self {
        let mut port = Self {
            clb: 0,
            fb: 0,
            is: Interrupts::empty(),
            ie: 0,
            announced: 0,
            cmd: Cmd::empty(),
            status: STATUS_NONE,
            error: 0,
            sig: SIGNATURE_NONE,
            sctl: 0,
            serr: Serr::empty(),
            sact: 0,
            ci: 0,
            ccs: None,
            speed: 0,
            engine: Engine::Stopped,
            bus_master: true,
            bay: match drive {
                Some(config) => Bay::Holds(Unit::new(config)),
                None => Bay::Empty,
            },
        };
        port.link_up();
        port
    }

    /// The drive, if it is in place.
    pub(super) const fn unit(&self) -> Option<&Unit> {
        match &self.bay {
            Bay::Holds(unit) => Some(unit),
            Bay::Empty | Bay::Releases(_) => None,
        }
    }

    pub(super) const fn unit_mut(&mut self) -> Option<&mut Unit> {
        match &mut self.bay {
            Bay::Holds(unit) => Some(unit),
            Bay::Empty | Bay::Releases(_) => None,
        }
    }

    /// The interrupts that are pending and enabled.
    pub(super) const fn enabled_interrupts(&self) -> u32 {
        self.pending() & self.ie
    }

    /// The enabled interrupts are now `pending`: whether its own message is to be sent for them.
    pub(super) const fn announce(&mut self, pending: u32) -> bool {
        let new = pending != self.announced && pending != 0;
        self.announced = pending;
        new
    }

    /// PxIS.
    const fn pending(&self) -> u32 {
        let mut pending = self.is;
        if self.serr.contains(Serr::X) {
            pending = pending.union(Interrupts::PCS);
        }
        if self.serr.contains(Serr::N) {
            pending = pending.union(Interrupts::PRCS);
        }
        pending.bits()
    }

    /// Whether PxSCTL holds the link down.
    pub(super) const fn link_is_held(&self) -> bool {
        matches!(self.sctl & 0xf, DET_COMRESET | DET_OFF)
    }

    /// Whether BSY or DRQ keeps commands back.
    pub(super) const fn is_busy(&self) -> bool {
        self.status & (Status::BSY.bits() | Status::DRQ.bits()) != 0
    }

    /// Reads the register at `offset`, a multiple of 4.
    pub(super) fn read(&self, offset: u64) -> u32 {
        let [clb, clbu] = halves(self.clb);
        let [fb, fbu] = halves(self.fb);
        match offset {
            port::CLB => clb,
            port::CLBU => clbu,
            port::FB => fb,
            port::FBU => fbu,
            port::IS => self.pending(),
            port::IE => self.ie,
            port::CMD => self.command_and_status(),
            port::TFD => u32::from(self.status) | u32::from(self.error) << 8,
            port::SIG => self.sig,
            port::SSTS => self.link_status(),
            port::SCTL => self.sctl,
            port::SERR => self.serr.bits(),
            port::SACT => self.sact,
            port::CI => self.ci,
            // PxSNTF, PxFBS and PxDEVSLP: without port multipliers and device sleep they are zero.
            _ => 0,
        }
    }

    fn command_and_status(&self) -> u32 {
        let mut cmd = self.cmd | Cmd::FIXED;
        let running = self.engine != Engine::Stopped;
        cmd.set(Cmd::CR, running);
        cmd.set(Cmd::FR, running || self.cmd.contains(Cmd::FRE));
        cmd.bits() | u32::from(self.ccs.unwrap_or(0)) << 8
    }

    /// PxSSTS: DET and, with a drive, IPM 1 (active) and the speed.
    fn link_status(&self) -> u32 {
        match self.sctl & 0xf {
            DET_COMRESET => 0,
            DET_OFF => 4,
            _ if self.unit().is_some() => 0x103 | self.speed << 4,
            _ => 0,
        }
    }

    /// Writes the bits of `mask` of the register at `offset`, a multiple of 4.
    pub(super) fn write<M: GuestMemory + ?Sized, H: Storage<M>>(
        &mut self,
        offset: u64,
        value: u32,
        mask: u32,
        memory: &M,
        storage: Option<&mut H>,
    ) {
        let merged = |before: u32| before & !mask | value & mask;
        let written = value & mask;
        match offset {
            port::CLB => self.clb = with_low(self.clb, merged(self.read(offset)) & !0x3ff),
            port::CLBU => self.clb = with_high(self.clb, merged(self.read(offset))),
            port::FB => self.fb = with_low(self.fb, merged(self.read(offset)) & !0xff),
            port::FBU => self.fb = with_high(self.fb, merged(self.read(offset))),
            port::IS => self.is.remove(Interrupts::from_bits_truncate(written)),
            port::IE => self.ie = merged(self.ie) & IE_MASK,
            port::CMD => {
                self.write_command(Cmd::from_bits_truncate(merged(self.cmd.bits())));
                self.advance(memory, storage);
            }
            port::SCTL => {
                self.write_link(merged(self.sctl) & SCTL_MASK);
                self.advance(memory, storage);
            }
            port::SERR => self.serr.remove(Serr::from_bits_truncate(written)),
            // Both take ones only, and only while ST is set (3.3.13, 3.3.14).
            port::SACT if self.cmd.contains(Cmd::ST) => self.sact |= written,
            port::CI if self.cmd.contains(Cmd::ST) => {
                self.ci |= written;
                self.advance(memory, storage);
            }
            _ => {}
        }
    }

    fn write_command(&mut self, cmd: Cmd) {
        let before = self.cmd;
        self.cmd = cmd & Cmd::WRITABLE;
        // Interface power states are refused by doing nothing: ICC reads as zero, and CAP and CAP2 say that there are none.
        if cmd.contains(Cmd::CLO) && !before.contains(Cmd::ST) {
            self.status &= !(Status::BSY | Status::DRQ).bits();
        }
        match (before.contains(Cmd::ST), cmd.contains(Cmd::ST)) {
            (false, true) if self.engine == Engine::Stopped => self.engine = Engine::Running,
            (true, false) => self.stop(),
            _ => {}
        }
    }

    /// ST was cleared: the HBA forgets its commands, the drive drops them, and CR stays until nothing of them can land.
    fn stop(&mut self) {
        (self.ci, self.sact, self.ccs) = (0, 0, None);
        self.engine = Engine::Stopping;
        if let Some(unit) = self.unit_mut()
            && unit.is_busy()
        {
            unit.begin_reset(Reset::Stop, false);
        }
    }

    fn write_link(&mut self, sctl: u32) {
        let held = self.link_is_held();
        self.sctl = sctl;
        match (held, self.link_is_held()) {
            (false, true) => self.link_down(),
            (true, false) => self.link_up(),
            _ => {}
        }
    }

    /// The link went down, by COMRESET or since the drive is gone.
    pub(super) fn link_down(&mut self) {
        self.serr |= Serr::N;
        self.status = STATUS_NONE;
        self.error = 0;
        self.sig = SIGNATURE_NONE;
        // Software stops the port first (10.4.2). If it has not, its commands are lost, and PxCI and PxSACT stay.
        if self.engine == Engine::Running {
            self.engine = Engine::Halted;
        }
        if let Some(unit) = self.unit_mut() {
            unit.begin_reset(Reset::Comreset, false);
        }
    }

    /// The link comes up, if there is a drive: BSY is set until it has sent its signature.
    pub(super) const fn link_up(&mut self) {
        if self.unit().is_none() || self.link_is_held() {
            return;
        }
        self.serr = self.serr.union(Serr::N).union(Serr::X);
        self.status = Status::BSY.bits();
        self.speed = match self.sctl >> 4 & 0xf {
            limit @ 1..=2 => limit,
            _ => 3,
        };
    }

    /// Puts every register to its reset value, but for the two addresses (10.4.3), and begins the drive's reset.
    pub(super) fn begin_host_reset(&mut self, reset: Reset) {
        if reset == Reset::PowerOn {
            (self.clb, self.fb) = (0, 0);
        }
        self.reset_registers();
        if let Some(unit) = self.unit_mut() {
            unit.begin_reset(reset, false);
        }
        self.link_up();
    }

    /// In place: a port with its drive is too large to be made anew.
    fn reset_registers(&mut self) {
        self.is = Interrupts::empty();
        self.ie = 0;
        self.announced = 0;
        self.cmd = Cmd::empty();
        self.status = STATUS_NONE;
        self.error = 0;
        self.sig = SIGNATURE_NONE;
        self.sctl = 0;
        self.serr = Serr::empty();
        (self.sact, self.ci, self.ccs) = (0, 0, None);
        self.speed = 0;
        self.engine = Engine::Stopped;
    }

    /// Whether a reset of the HBA has to wait for this port no more.
    pub(super) const fn is_reset(&self) -> bool {
        match &self.bay {
            Bay::Holds(unit) => !matches!(unit.phase, Phase::Resetting { .. }),
            Bay::Releases(_) => false,
            Bay::Empty => true,
        }
    }

    /// Whether neither a command nor a reset is in execution.
    pub(super) fn is_quiet(&self) -> bool {
        let bay = match &self.bay {
            Bay::Holds(unit) => !unit.is_busy() && !matches!(unit.phase, Phase::Resetting { .. }),
            Bay::Releases(_) => false,
            Bay::Empty => true,
        };
        bay && self.engine != Engine::Stopping
    }

    /// Puts a drive into an empty bay; returns whether it was empty.
    pub(super) fn plug(&mut self, config: DriveConfig) -> bool {
        let empty = matches!(self.bay, Bay::Empty);
        if empty {
            self.bay = Bay::Holds(Unit::new(config));
            self.link_up();
        }
        empty
    }

    /// Pulls the drive out.
    pub(super) fn unplug(&mut self) {
        if self.unit().is_none() {
            return;
        }
        self.link_down();
        if let Bay::Holds(unit) = core::mem::replace(&mut self.bay, Bay::Empty) {
            self.bay = Bay::Releases(unit);
        }
    }
}

const fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn with_low(value: u64, low: u32) -> u64 {
    value & !u64::from(u32::MAX) | u64::from(low)
}

fn with_high(value: u64, high: u32) -> u64 {
    value & u64::from(u32::MAX) | u64::from(high) << 32
}
