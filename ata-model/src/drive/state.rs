//! A drive: its state, which all that executes commands works on.

use blk_core::op::Segment;
use blk_core::order::{Deferred, GuestCache, Request, Sequencer, Started};
use blk_core::storage::{Info, Storage};
#[cfg(feature = "mutants")]
use blk_core::units::Extent;

use super::config::DriveConfig;
use super::identify::Identity;
use super::job::{Job, Owner};
use super::queue::Queue;
use super::settings::Settings;
use super::smart::Smart;
use crate::command::{Interface, Power};

/// A drive whose commands use up to `N` slots of the storage's handle: one by one, or, behind [`Interface::Serial`], up to
/// `N` queued ones (32 at most).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
pub struct Drive<const N: usize> {
    pub(super) config: DriveConfig,
    pub(super) interface: Interface,
    pub(super) settings: Settings,
    pub(super) power: Power,
    pub(super) smart: Smart,
    pub(super) job: Job,
    pub(super) queue: Queue<N>,
    pub(super) sequencer: Sequencer<Owner, N>,
    #[cfg(feature = "mutants")]
    pub(super) retry: Option<(Extent, Segment)>,
}

impl<const N: usize> Drive<N> {
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
            #[cfg(feature = "mutants")]
            retry: None,
        }
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

    /// IDENTIFY DEVICE data as the guest would read it now.
    #[must_use]
    pub fn identify(&self, info: &Info) -> [u8; 512] {
        let (config, settings, interface) = (&self.config, &self.settings, self.interface);
        Identity { config, settings, smart_enabled: self.smart.enabled, interface, depth: N, info }.page()
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
