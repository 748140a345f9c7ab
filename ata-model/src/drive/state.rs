//! A drive: its state, which all that executes commands works on.

use blk_core::op::Segment;
use blk_core::order::{Deferred, GuestCache, Request, Sequencer, Started};
use blk_core::storage::{Info, Storage};

use super::config::DriveConfig;
use super::identify::Identity;
use super::job::{Job, Owner};
use super::log::Page;
use super::noted::Noted;
use super::queue::Queue;
use super::settings::Settings;
use super::smart::Smart;
use crate::command::{Interface, Power, Protocol, Row};

/// A drive whose commands use up to `N` slots of the storage's handle: one by one, or, behind [`Interface::Serial`] and with more
/// than one slot, up to `N` queued ones (32 at most).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Drive<const N: usize> {
    pub(super) config: DriveConfig,
    pub(super) interface: Interface,
    pub(super) settings: Settings,
    pub(super) power: Power,
    pub(super) smart: Smart,
    pub(super) job: Job,
    pub(super) queue: Queue<N>,
    pub(super) sequencer: Sequencer<Owner, N>,
    pub(super) noted: Noted,
}

impl<const N: usize> Drive<N> {
    /// Whether there is a queue. A drive of one slot is made without the code of one.
    pub(super) const QUEUES: bool = N > 1;

    /// A drive after power-on.
    #[must_use]
    pub const fn new(config: DriveConfig, interface: Interface) -> Self {
        Self {
            config,
            interface,
            settings: Settings::power_on(config.write_cache),
            power: Power::Active,
            smart: Smart::NEW,
            job: Job::Idle,
            queue: Queue::new(),
            sequencer: Sequencer::new(),
            noted: Noted::NOTHING,
        }
    }

    /// Whether a row is there: on this storage, behind this interface, in a drive of so many slots.
    #[inline]
    pub(super) fn offers(&self, row: &Row, info: &Info) -> bool {
        row.available(info, self.interface) && (Self::QUEUES || row.protocol != Protocol::Queued)
    }

    /// The settings in force.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Completions that named no operation in flight: a defect of the storage.
    #[must_use]
    pub const fn strays(&self) -> u32 {
        self.sequencer.strays()
    }

    /// Whether nothing is to be done: no command is in execution or queued, and the storage has nothing.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.job, Job::Idle)
            && self.sequencer.is_idle()
            && !self.is_queue_busy()
            && !self.is_queue_ending()
    }

    /// Whether the storage has no operation of it.
    #[must_use]
    pub const fn has_nothing_in_flight(&self) -> bool {
        self.sequencer.is_idle()
    }

    /// The slot whose staging buffer the command in execution uses.
    #[must_use]
    pub fn slot(&self) -> u16 {
        self.sequencer.next_slot().unwrap_or(0)
    }

    /// The write cache as the guest is told, on which it may rely.
    #[must_use]
    pub const fn guest_cache(&self, info: &Info) -> GuestCache {
        if self.settings.write_cache && info.has_volatile_cache() {
            GuestCache::WriteBack
        } else {
            GuestCache::WriteThrough
        }
    }

    /// IDENTIFY DEVICE data as the guest would read it now, into a page of zeroes.
    pub(super) fn identify(&self, info: &Info, page: &mut Page) {
        let (config, settings, interface) = (&self.config, &self.settings, self.interface);
        Identity { config, settings, smart_enabled: self.smart.enabled, interface, depth: N, info }
            .fill(page);
    }

    /// Frees a slot whose operation has ended.
    #[inline(never)]
    pub(super) fn release(&mut self, slot: u16) {
        let _ = self.sequencer.release(slot);
    }

    /// Gives the storage an operation of the command in execution; [`Self::settle`] takes what comes of it.
    pub(super) fn submit<M: ?Sized, S: Storage<M> + ?Sized>(
        &mut self,
        memory: &M,
        storage: &mut S,
        request: &Request,
        segments: &[Segment],
    ) -> Result<Started, Deferred> {
        let cache = self.guest_cache(storage.info());
        self.sequencer.submit(memory, storage, request, cache, segments, Owner::NonQueued)
    }
}

#[cfg(test)]
mod tests {
    use blk_core::ram::plain_info;
    use blk_core::storage::Cache;

    use super::*;
    use crate::command::{Direction, Queued};
    use crate::drive::{Failure, Step, Taken};
    use crate::wire::{Pair, TaskFile};

    /// What a drive of `N` slots behind Serial ATA makes of READ FPDMA QUEUED, and words 75 and 76 (bit 8) of its data.
    fn queuing<const N: usize>() -> (Taken, u16, u16) {
        let info = Info { staging_bytes: 4096, ..plain_info(1 << 20, Cache::WriteBack) };
        let mut drive = Drive::<N>::new(DriveConfig::new("MODEL", "0001"), Interface::Serial);
        let mut page = [0; 512];
        drive.identify(&info, &mut page);
        let word = |n: usize| u16::from_le_bytes([page[2 * n], page[2 * n + 1]]);
        let task = TaskFile { features: Pair::new(1), command: 0x60, ..TaskFile::default() };
        let queued = Queued::decode(Direction::Read, &task);
        let taken = drive.enqueue(Row::of(0x60).unwrap(), queued, &info);
        let aborted = drive.step() == Step::Ended(Err(Failure::Aborted));
        assert_eq!(taken == Taken::NonQueued, aborted);
        (taken, word(75), word(76) >> 8 & 1)
    }

    #[test]
    fn a_drive_of_one_slot_has_no_queue_and_says_so() {
        assert_eq!(queuing::<1>(), (Taken::NonQueued, 0, 0));
        assert_eq!(queuing::<2>(), (Taken::Queued, 1, 1));
    }
}
