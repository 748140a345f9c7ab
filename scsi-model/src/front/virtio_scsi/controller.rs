//! The controller: its rings, its logical units, and the poll that drives both.

use core::fmt;

use blk_core::bus::Quiet;
use blk_core::storage::{Info, Storage};
use blk_core::virtq::Queue;
use zerocopy::IntoBytes;

use super::address::{Address, LUN_MAX};
use super::bay::{Attached, Bay};
use super::events::{Events, Happened};
use super::pending::Pending;
use super::rings::{CONTROL, EVENT, REQUEST, Rings};
use super::sizes::Sizes;
use super::wire::{ConfigSpace, EventData, Features, Response};
use crate::config::Config as Identity;
use crate::disk::{LogicalUnit, ResetCause, Setting, UnitAttention, Unsupported};
use crate::task_set::Nexus;

/// Configuration that an embedder chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// Request queues, at most as many as the controller's type has; one at least.
    pub queues: u16,
    /// Most entries of a queue: a power of two, 1024 at most.
    pub queue_size_max: u16,
}

impl Config {
    /// One request queue.
    pub const DEFAULT: Self = Self { queues: 1, queue_size_max: 256 };
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// There is no room for another logical unit, or it cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum NotInserted {
    /// As many units as the controller's type has are there.
    Full,
    /// There is a unit at this address, or no such address.
    Address,
    /// The storage's geometry cannot be a SCSI disk's.
    Geometry(Unsupported),
}

impl fmt::Display for NotInserted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the controller has as many logical units as its type allows"),
            Self::Address => f.write_str("the address is in use, or its LUN is above 16383"),
            Self::Geometry(unsupported) => unsupported.fmt(f),
        }
    }
}

impl core::error::Error for NotInserted {}

/// The I_T nexus of a controller: one driver, and its targets are one port each.
pub(super) const NEXUS: Nexus = Nexus(0);

/// A task management function that waits for what it aborts. One at a time: the next one stays in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Function {
    pub(super) head: u16,
}

/// A virtio-scsi controller with `Q` request queues and `L` logical units of `N` tasks each, behind whatever transport.
///
/// Rings are numbered as VIRTIO 1.3, 5.6.2 has it: [`CONTROL`], [`EVENT`], and the request queues from [`REQUEST`] on. Unit
/// `n` works on storage handle `n`; a unit without a handle is as good as absent. All of it is polled by one thread.
///
/// ```text
/// ring_mut, enable -> poll(memory, handles, policy, logs), poll, ... -> reset, finish_reset
///                     insert, remove, setting, resume: between polls
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Controller<const Q: usize, const L: usize, const N: usize> {
    pub(super) config: Config,
    pub(super) rings: Rings<Q>,
    /// Where the units are. A unit without an address is leaving: it finishes what it has.
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    pub(super) addresses: [Option<Address>; L],
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    pub(super) units: [Bay<N>; L],
    /// The task management function that is under way.
    pub(super) function: Option<Function>,
    pub(super) events: Events,
    pub(super) sizes: Sizes,
    pub(super) resetting: bool,
    /// Counts what changes the configuration space.
    generation: u32,
}

/// Every chain that was taken is answered, and no reset waits.
impl<const Q: usize, const L: usize, const N: usize> Quiet for Controller<Q, L, N> {
    fn is_quiet(&self) -> bool {
        !self.resetting && self.function.is_none() && self.attached().all(|attached| attached.unit.is_quiet())
    }
}

impl<const Q: usize, const L: usize, const N: usize> Controller<Q, L, N> {
    const FITS: () = assert!(
        Q >= 1 && Q <= 62 && L >= 1 && L <= crate::disk::LUNS_MAX && N >= 1 && N <= 128,
        "1 to 62 request queues, 1 to 64 logical units, 1 to 128 tasks in each"
    );

    /// A controller without units, after power-on.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        const { Self::FITS }
        let queues = if config.queues as usize > Q { Q as u16 } else { config.queues };
        let queues = if queues == 0 { 1 } else { queues };
        Self {
            config: Config { queues, ..config },
            rings: Rings::new(config.queue_size_max),
            addresses: [None; L],
            units: [const { Bay::VACANT }; L],
            function: None,
            events: Events::new(),
            sizes: Sizes::DEFAULT,
            resetting: false,
            generation: 0,
        }
    }

    /// The configuration, as far as it could be followed.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Rings of the controller.
    #[must_use]
    pub fn ring_count(&self) -> usize {
        usize::from(self.config.queues).saturating_add(REQUEST)
    }

    /// The ring at `index`, if the controller has it.
    #[must_use]
    pub fn ring(&self, index: usize) -> Option<&Queue> {
        self.rings.get(index).filter(|_| index < self.ring_count())
    }

    /// The ring at `index`, if the controller has it, for a transport that sets it up.
    pub fn ring_mut(&mut self, index: usize) -> Option<&mut Queue> {
        let there = index < self.ring_count();
        self.rings.get_mut(index).filter(|_| there)
    }

    /// The features that are offered.
    #[must_use]
    pub const fn offered() -> Features {
        Features::HOTPLUG
            .union(Features::CHANGE)
            .union(Features::ANY_LAYOUT)
            .union(Features::INDIRECT_DESC)
            .union(Features::EVENT_IDX)
            .union(Features::VERSION_1)
            .union(Features::RING_RESET)
    }

    /// The configuration space. `storage` are the units' handles.
    #[must_use]
    pub fn config_space<M: ?Sized, H: Storage<M>>(&self, storage: &[H]) -> ConfigSpace {
        // Two descriptors are for header and response.
        let segments = self.config.queue_size_max.clamp(3, blk_core::virtq::SIZE_MAX).saturating_sub(2);
        let present = storage.iter().zip(&self.addresses).filter(|(_, address)| address.is_some());
        let transfer_bytes = present.map(|(handle, _)| handle.info().transfer_max_bytes).min();
        ConfigSpace {
            num_queues: u32::from(self.config.queues).into(),
            seg_max: u32::from(segments).into(),
            max_sectors: transfer_bytes.map_or(0xffff, |bytes| (bytes >> 9).max(8)).into(),
            cmd_per_lun: u32::try_from(N).unwrap_or(u32::MAX).into(),
            event_info_size: (size_of::<EventData>() as u32).into(),
            sense_size: u32::from(self.sizes.sense_bytes).into(),
            cdb_size: u32::from(self.sizes.cdb_bytes).into(),
            max_channel: 0.into(),
            max_target: 255.into(),
            max_lun: u32::from(LUN_MAX).into(),
        }
    }

    /// Counts changes of the configuration space.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The driver writes `bytes` at `offset` of the configuration space, in which `sense_size` and `cdb_size` are writable,
    /// up to what SCSI knows. They change for requests that are taken later: a driver sets them before it sends any.
    pub fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        let mut space = ConfigSpace {
            sense_size: u32::from(self.sizes.sense_bytes).into(),
            cdb_size: u32::from(self.sizes.cdb_bytes).into(),
            ..ConfigSpace::default()
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, byte) in space.as_mut_bytes().iter_mut().skip(start).zip(bytes) {
            *place = *byte;
        }
        // Requests in flight have been measured with the sizes that there were.
        if (0..self.ring_count()).all(|ring| self.in_flight(ring) == 0) {
            self.sizes = self.sizes.with(&space);
        }
    }

    /// Puts a disk at `address`, on the handle whose index is returned: the lowest that no unit has. The other units of the
    /// target tell that the units have changed, and so does an event, where there is a driver to hear it.
    ///
    /// # Errors
    /// [`NotInserted`].
    pub fn insert(
        &mut self,
        address: Address,
        identity: Identity,
        info: &Info,
    ) -> Result<usize, NotInserted> {
        if address.lun > LUN_MAX || self.addresses.contains(&Some(address)) {
            return Err(NotInserted::Address);
        }
        let mut bays = self.units.iter_mut().enumerate();
        let (index, bay) = bays.find(|(_, bay)| bay.is_vacant()).ok_or(NotInserted::Full)?;
        bay.insert(identity, info).map_err(NotInserted::Geometry)?;
        self.tell_others(address, Happened::Appeared);
        if let Some(at) = self.addresses.get_mut(index) {
            *at = Some(address);
        }
        Ok(index)
    }

    /// Takes a unit away. Its commands are aborted, and what its storage has of them is awaited: the handle is free once
    /// [`Self::has_unit`] is false. Returns whether there was a unit that was not leaving.
    pub fn remove(&mut self, index: usize) -> bool {
        let Some(address) = self.addresses.get_mut(index).and_then(Option::take) else { return false };
        if let Some(attached) = self.units.get_mut(index).and_then(Bay::as_mut) {
            // 5.6.6.1.1: commands that are not aborted by a function end with this.
            attached.requests.cancel(Response::Failure);
            attached.unit.clear_task_set();
        }
        self.tell_others(address, Happened::Removed);
        true
    }

    /// Whether there is a unit on handle `index`, be it one that leaves.
    #[must_use]
    pub fn has_unit(&self, index: usize) -> bool {
        self.units.get(index).is_some_and(|bay| !bay.is_vacant())
    }

    /// Where the unit on handle `index` is, unless it leaves.
    #[must_use]
    pub fn address(&self, index: usize) -> Option<Address> {
        self.addresses.get(index).copied().flatten()
    }

    /// The unit on handle `index`.
    #[must_use]
    pub fn unit(&self, index: usize) -> Option<&LogicalUnit<N>> {
        self.units.get(index).and_then(Bay::as_ref).map(|attached| &attached.unit)
    }

    /// What the guest has set in the unit on handle `index`, for [`Self::resume`].
    #[must_use]
    pub fn setting(&self, index: usize) -> Option<Setting> {
        self.unit(index).map(LogicalUnit::setting)
    }

    /// Lets the unit on handle `index` go on where one in another process ended: see [`LogicalUnit::resume`]. Before anything is
    /// polled, and also after a [reset](Self::reset) that the guest does not know of.
    pub fn resume(&mut self, index: usize, setting: Setting) {
        if let Some(attached) = self.units.get_mut(index).and_then(Bay::as_mut) {
            attached.unit.resume(setting);
        }
    }

    /// Chains that were taken off ring `index` and are not answered.
    #[must_use]
    pub fn in_flight(&self, index: usize) -> usize {
        match index {
            CONTROL => usize::from(self.function.is_some()),
            _ => self.pending().filter(|pending| usize::from(pending.chain.ring) == index).count(),
        }
    }

    /// Begins a reset of the device: the rings are forgotten, and no guest memory of them is touched any more; what the
    /// storages have is awaited by [`Self::poll`] or [`Self::finish_reset`]. Units are then as after power-on, with the
    /// unit attention that says so.
    pub fn reset(&mut self) {
        self.rings.reset();
        self.function = None;
        self.events = Events::new();
        self.sizes = Sizes::DEFAULT;
        self.resetting = true;
        for attached in self.units.iter_mut().filter_map(Bay::as_mut) {
            attached.requests.clear();
            attached.unit.reset(ResetCause::Hard);
        }
    }

    /// Whether a reset still waits for what the storages have.
    #[must_use]
    pub const fn is_resetting(&self) -> bool {
        self.resetting
    }

    /// Stops one ring. Its requests are aborted, and never answered; until what the storages have of them has ended,
    /// which [`Self::in_flight`] says, it must not be enabled again (RING_RESET, VIRTIO 1.3, 2.6.1; `QueueReady` = 0).
    pub fn stop_ring(&mut self, index: usize) {
        let Some(ring) = self.rings.get_mut(index) else { return };
        ring.reset();
        if index == CONTROL {
            self.function = None;
        }
        for attached in self.units.iter_mut().filter_map(Bay::as_mut) {
            for (tag, pending) in attached.requests.iter() {
                if usize::from(pending.chain.ring) == index {
                    attached.unit.abort_task(tag);
                }
            }
        }
    }

    /// The units that are there.
    pub(super) fn attached(&self) -> impl Iterator<Item = &Attached<N>> {
        self.units.iter().filter_map(Bay::as_ref)
    }

    fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.attached().flat_map(|attached| attached.requests.iter().map(|(_, pending)| pending))
    }

    /// The unit at `address`, if it has a handle.
    pub(super) fn find<H>(&self, address: Address, storage: &[H]) -> Option<usize> {
        let index = self.addresses.iter().position(|at| *at == Some(address))?;
        (index < storage.len()).then_some(index)
    }

    /// Whether there is a unit in `target`.
    pub(super) fn has_target(&self, target: u8) -> bool {
        self.addresses.iter().flatten().any(|address| address.target == target)
    }

    /// A unit came or went: the other units of its target tell (SPC-4 annex D, REPORTED LUNS DATA HAS CHANGED), and an event
    /// does. A driver that has not set up its queues has yet to look at the units.
    fn tell_others(&mut self, address: Address, happened: Happened) {
        self.generation = self.generation.wrapping_add(1);
        if !(0..self.ring_count()).any(|ring| self.ring(ring).is_some_and(Queue::is_enabled)) {
            return;
        }
        for (bay, at) in self.units.iter_mut().zip(&self.addresses) {
            if let Some(attached) = bay.as_mut()
                && at.is_some_and(|at| at.target == address.target)
            {
                attached.unit.raise(UnitAttention::ReportedLunsChanged);
            }
        }
        self.events.push(self.rings.get(EVENT), address, happened);
    }
}
