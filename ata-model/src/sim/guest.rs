//! What the drivers of all ATA fronts share: what they know of their drive, and how they reach their device.

use blk_core::bus::{Device, IrqChange, Region, Width};
use blk_core::memory::GuestMemory;
use blk_core::pci::{Command, Endpoint, PciFunction};
use blk_core::sim::{Action, Ended, Guest, Outcome, SectorRun};
use blk_core::storage::Storage;
use blk_core::units::GuestAddr;
use heapless::Vec;
use serde::{Serialize, Serializer};

use super::config::Belief;
use crate::drive::DriveConfig;

/// The PCI command register.
const PCI_COMMAND: u8 = 0x04;

/// A driver of one front, with its device.
pub trait Driver: Clone + Serialize + Sized {
    /// The device.
    fn device<'a, M: GuestMemory + ?Sized + 'a, H: Storage<M> + 'a>(
        &'a mut self,
    ) -> &'a mut (dyn Device<M, [H]> + 'a);

    /// The steps that it can express, with this belief.
    fn alphabet(&self, belief: Belief) -> &'static [Action];

    /// As for [`Guest`].
    fn depth(&self) -> usize;

    /// As for [`Guest`].
    fn accepts(&self, action: Action) -> bool;
}

/// What a driver does once its registers are at hand.
pub trait Steps {
    /// Issues anything but a reset.
    fn issue(&mut self, id: u8, action: Action);

    /// Begins a reset.
    fn reset(&mut self, id: u8);

    /// Serves what a poll brought.
    fn serve(&mut self);
}

/// One drive, its front, and their driver.
#[derive(Clone, Debug, Serialize)]
pub struct AtaGuest<D> {
    pub(super) driver: D,
    pub(super) belief: Belief,
    pub(super) irq: bool,
    write_cache: bool,
    /// Ended, not yet told of: at most the commands and a reset end between two polls.
    ended: Vec<Ended, 8>,
}

impl<D> AtaGuest<D> {
    pub(super) const fn new(driver: D, belief: Belief) -> Self {
        Self { driver, belief, irq: false, write_cache: false, ended: Vec::new() }
    }

    pub(super) fn end(&mut self, id: u8, outcome: Outcome) {
        let _ = self.ended.push(Ended { id, outcome });
    }

    /// Takes words of IDENTIFY as libata does (`ata_id_wcache_enabled`): word 85 bit 5 counts where word 87 is valid.
    pub(super) fn identified(&mut self, word: impl Fn(usize) -> u16) {
        let is_valid = word(87) & 0xc000 == 0x4000;
        self.write_cache = is_valid && word(85) & (1 << 5) != 0 && self.belief != Belief::NoCache;
    }

    fn wire(&mut self, irq: IrqChange) {
        self.irq = irq.line(0).unwrap_or(self.irq);
    }
}

/// Times that a driver is interrupted in one look at its device: more than a program's longest command has blocks.
const DONE_AT_ONCE_MAX: u32 = 8;

/// A driver at work: its registers are at hand.
#[derive(Debug)]
pub struct Bus<'a, D, M: ?Sized, H> {
    pub(super) guest: &'a mut AtaGuest<D>,
    pub(super) memory: &'a M,
    pub(super) storage: &'a mut [H],
}

impl<D: Driver, M: GuestMemory + ?Sized, H: Storage<M>> Bus<'_, D, M, H> {
    pub(super) fn write(&mut self, region: Region, offset: u64, width: Width, value: u64) {
        let device = self.guest.driver.device();
        let access = device.write(region, offset, width, value, self.memory, self.storage);
        self.guest.wire(access.irq);
    }

    pub(super) fn read(&mut self, region: Region, offset: u64, width: Width) -> u64 {
        let device = self.guest.driver.device();
        let access = device.read(region, offset, width, self.memory, self.storage);
        self.guest.wire(access.irq);
        access.value
    }

    /// Writes the PCI command register, which only a function has.
    pub(super) fn permit(&mut self, command: Command) {
        self.write(Region::Config, PCI_COMMAND.into(), Width::Word, command.bits().into());
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(GuestAddr(at), bytes);
    }

    /// The machine's reset line.
    pub(super) fn reset_machine(&mut self) {
        let progress = self.guest.driver.device().reset(self.memory, self.storage);
        self.guest.wire(progress.irq);
    }

    fn poll(&mut self) {
        loop {
            let progress = self.guest.driver.device().poll(self.memory, self.storage);
            self.guest.wire(progress.irq);
            if !progress.again {
                break;
            }
        }
    }
}

impl<D: Driver, M: GuestMemory + ?Sized, H: Storage<M>> Guest<M, [H]> for AtaGuest<D>
where
    for<'a> Bus<'a, D, M, H>: Steps,
{
    fn alphabet(&self) -> &'static [Action] {
        self.driver.alphabet(self.belief)
    }

    fn depth(&self) -> usize {
        self.driver.depth()
    }

    fn accepts(&self, action: Action) -> bool {
        self.driver.accepts(action)
    }

    fn issue(&mut self, id: u8, action: Action, memory: &M, storage: &mut [H]) {
        let mut bus = Bus { guest: self, memory, storage };
        if action != Action::Reset {
            return bus.issue(id, action);
        }
        bus.reset(id);
        if self.belief == Belief::IdentifyThenNoCache {
            self.belief = Belief::NoCache;
        }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Vec<Ended, 16> {
        let mut bus = Bus { guest: self, memory, storage };
        // What the driver does when it is interrupted may be done at once, and interrupt again.
        for _ in 0..DONE_AT_ONCE_MAX {
            bus.poll();
            bus.serve();
            if !bus.guest.irq {
                break;
            }
        }
        core::mem::take(&mut self.ended).into_iter().collect()
    }

    fn write_cache(&self) -> bool {
        self.write_cache
    }
}

/// The drive for a driver with this belief.
pub(super) fn drive(belief: Belief) -> DriveConfig {
    let mut drive = DriveConfig::new("MODEL DISK", "1");
    drive.write_cache = belief != Belief::IdentifyThenNoCache;
    drive
}

/// The entry of a TRIM for a run.
pub(super) fn range(run: SectorRun) -> [u8; 8] {
    (u64::from(run.first) | u64::from(run.count) << 48).to_le_bytes()
}

/// Serializes a function, of whose configuration space nothing changes but the command register and STATUS.
pub(super) fn function<D: Endpoint + Serialize, S: Serializer>(
    function: &PciFunction<D, 1>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    (function.config().dword(PCI_COMMAND), function.device()).serialize(serializer)
}
