//! What a server asks of a device: the seam between the protocol and what is served.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blk_core::order::Hold;
use blk_core::virtq::{Position, QueueError, RingFeatures, Setup};

use super::images::Images;
use super::scsi::Unit;
use super::stats::QueueCounters;
use super::vhost_user::{Port, Trailer};
use crate::memory::MappedMemory;

/// What the queues' threads have to know of the device: what was agreed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    /// The virtio features that the driver accepted.
    pub(super) features: u64,
    /// The guest believes that there is a volatile write cache, and flushes.
    pub(super) write_back: bool,
    /// Counts the changes.
    pub(super) epoch: u32,
}

/// A device, apart from its rings: what it offers.
pub(super) trait Device: Send + Sync {
    /// What it is called in logs.
    fn name(&self) -> &'static str;

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
    fn cache_known(&self, features: u64) -> CacheKnown;

    /// The images.
    fn images(&self) -> &Arc<Images>;
}

/// What the agreed features say of the driver's belief about the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheKnown {
    /// It believes that every completed write is stable.
    WriteThrough,
    /// It flushes.
    WriteBack,
    /// It believes what the field `writeback` says.
    Field,
}

/// The rings that one thread works on, with the handles to the images: rings that share nothing have a thread each.
pub(super) trait Rings: Send {
    /// Starts the ring at `ring` (a place among these).
    fn start(
        &mut self,
        ring: usize,
        setup: &Setup,
        features: RingFeatures,
        position: Position,
    ) -> Result<(), QueueError>;

    /// Makes bounded progress on all rings, and returns whether to be called again at once.
    fn poll(&mut self, memory: &MappedMemory, agreed: &Agreed, ports: &mut [Port]) -> bool;

    /// Requests of a ring in flight.
    fn in_flight(&self, ring: usize) -> u32;

    /// Where a ring stands, if it is running.
    fn position(&self, ring: usize) -> Option<Position>;

    /// What broke a ring.
    fn error(&self, ring: usize) -> Option<QueueError>;

    /// Forgets a ring. Nothing of it is in flight.
    fn stop(&mut self, ring: usize);

    /// Submits a flush of every image. Nothing is in flight.
    fn flush(&mut self, memory: &MappedMemory) -> Result<(), Hold>;

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
    fn keep_in(&mut self, _trailer: Option<&Arc<Trailer>>) {}

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
