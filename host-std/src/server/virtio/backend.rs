//! Interface between the protocols and the virtio device that is served.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blk_core::order::Deferred;
use blk_core::virtq::{QueueError, RingFeatures, RingPosition, RingSetup};

use super::unit::Unit;
use crate::memory::MappedMemory;
use crate::server::images::Images;
use crate::server::stats::QueueCounters;
use crate::server::vring::{PersistentState, VringIo};

/// What the queues' threads have to know of the device: what was negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::server) struct Negotiated {
    /// The virtio features that the driver accepted.
    pub(in crate::server) features: u64,
    /// The driver knows that there is a volatile write cache, and flushes.
    pub(in crate::server) write_back: bool,
    /// Counts the changes.
    pub(in crate::server) epoch: u32,
}

/// A device, apart from its rings: what it offers.
pub(in crate::server) trait VirtioBackend: Send + Sync {
    /// The virtio features offered, without those of the transport.
    fn features(&self) -> u64;

    /// Its rings.
    fn rings(&self) -> u16;

    /// Most entries of a ring.
    fn ring_size_max(&self) -> u16;

    /// The configuration space, `writeback` being what the field is now.
    fn config_space(&self, writeback: bool) -> Vec<u8>;

    /// Where the one byte lies that says whether the write cache is on, if there is such a byte.
    fn writeback_offset(&self) -> Option<usize>;

    /// Whether a driver with these features flushes, or is told about the cache in another way than by `writeback`.
    fn driver_cache_view(&self, features: u64) -> DriverCacheView;

    /// The images.
    fn images(&self) -> &Arc<Images>;
}

/// How the driver learns whether the write cache is on, given the negotiated features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum DriverCacheView {
    /// It takes every completed write for stable.
    WriteThrough,
    /// It flushes.
    WriteBack,
    /// It goes by the field `writeback` of the configuration space.
    ConfigField,
}

/// The rings that one thread works on, with the handles to the images: rings that share nothing have a thread each.
pub(in crate::server) trait QueueGroup: Send {
    /// Starts the ring at `ring` (a place among these).
    fn start(
        &mut self,
        ring: usize,
        setup: &RingSetup,
        features: RingFeatures,
        position: RingPosition,
    ) -> Result<(), QueueError>;

    /// Makes bounded progress on all rings, and returns whether to be called again at once.
    fn poll(&mut self, memory: &MappedMemory, negotiated: &Negotiated, vrings: &mut [VringIo]) -> bool;

    /// Requests of a ring in flight.
    fn in_flight(&self, ring: usize) -> u32;

    /// Where a ring stands, if it is running.
    fn position(&self, ring: usize) -> Option<RingPosition>;

    /// What broke a ring.
    fn error(&self, ring: usize) -> Option<QueueError>;

    /// Forgets a ring. Nothing of it is in flight.
    fn stop(&mut self, ring: usize);

    /// Submits a flush of every image. Nothing is in flight.
    fn flush(&mut self, memory: &MappedMemory) -> Result<(), Deferred>;

    /// How that flush ended, once it has.
    fn take_flushed(&mut self) -> Option<bool>;

    /// Somebody waits for requests in flight, or no longer: see [`Handle::drain`](crate::backend::Handle::drain).
    fn drain(&mut self, on: bool);

    /// Asks the images' descriptors to wake the thread; false if something has ended already.
    fn arm(&mut self) -> bool;

    /// What wakes the thread when an image has ended an operation.
    fn wake_fds(&self) -> Vec<BorrowedFd<'_>>;

    /// Resets what the device is beside its rings, which are stopped.
    fn reset_device(&mut self, _memory: &MappedMemory) {}

    /// The driver writes into the configuration space, elsewhere than at `writeback`.
    fn write_config(&mut self, _offset: usize, _bytes: &[u8]) {}

    /// Where to keep what a server after this one has to know, from now on.
    fn set_persistent_state(&mut self, _state: Option<&Arc<PersistentState>>) {}

    /// Goes on where a server before this one ended, with what the guest had set in each unit.
    fn resume(&mut self, _settings: &[Option<u8>]) {}

    /// Adds a unit, and returns its place.
    fn plug(&mut self, _unit: Unit) -> Result<usize, &'static str> {
        Err("serve virtio-scsi")
    }

    /// Takes a unit away, and returns its place, if there is one.
    fn unplug(&mut self, _target: u8, _lun: u16) -> Option<usize> {
        None
    }

    /// Where to count, ring by ring, what the log cannot know.
    fn count_in(&mut self, _counters: &[Arc<QueueCounters>]) {}
}
