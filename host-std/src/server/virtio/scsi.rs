//! virtio-scsi: one thread for all rings, since request queues share their units' task sets.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blk_core::op::{Op, Segment};
use blk_core::order::Deferred;
use blk_core::storage::{Busy, Completion, Info, Storage, Submission};
use blk_core::units::Tag;
use blk_core::virtq::{QueueError, RingFeatures, RingPosition, RingSetup};
use scsi_model::disk::Setting;
use scsi_model::front::virtio_scsi::wire::Features;
use scsi_model::front::virtio_scsi::{Address, Config, Controller, Policy, REQUEST};
use zerocopy::IntoBytes as _;

use super::backend::{DriverCacheView, Negotiated, QueueGroup, VirtioBackend};
use super::unit::{self, Unit};
use crate::backend::Handle;
use crate::memory::MappedMemory;
use crate::server::images::Images;
use crate::server::mutant::{self, Mutant};
use crate::server::options::{Lun, ScsiOptions, ServerError, check_ring_size};
use crate::server::stats::QueueCounters;
use crate::server::vring::{PersistentState, VringIo};

const QUEUES_MAX: usize = 62;
/// Most logical units, those that leave included.
const UNITS_MAX: usize = 16;
/// Requests in flight in each unit.
const IN_FLIGHT: usize = 128;

type Host = Controller<QUEUES_MAX, UNITS_MAX, IN_FLIGHT>;

/// The stack on which a controller is made: it is large, and moves once.
const STACK_BYTES: usize = 64 << 20;

/// A virtio-scsi host.
pub(in crate::server) struct Scsi {
    config: Config,
    images: Arc<Images>,
}

impl Scsi {
    /// The device, and its rings with what works on them.
    pub(in crate::server) fn new(
        options: &ScsiOptions,
        luns: Vec<Lun>,
    ) -> Result<(Self, usize, Box<dyn QueueGroup>), ServerError> {
        if options.queues == 0 || usize::from(options.queues) > QUEUES_MAX {
            let value = options.queues.to_string();
            return Err(ServerError::Option { option: "queues", value, remedy: "give 1 to 62" });
        }
        check_ring_size(options.queue_size_max)?;
        let config = Config { queues: options.queues, queue_size_max: options.queue_size_max };
        let make = move || Box::new(Host::new(config));
        let made = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(make)?.join();
        let host = made.map_err(|_| std::io::Error::other("no memory for the controller"))?;
        let device = Self { config, images: Images::new(vec![None; UNITS_MAX]) };
        let mut rings = ScsiQueues {
            host,
            handles: std::array::from_fn(|_| Slot::default()),
            kept: [None; UNITS_MAX],
            served: false,
            work: Work::Serving,
            counters: Vec::new(),
            persistent: None,
        };
        for lun in luns {
            let (image, unit) = unit::open(lun)?;
            let place = rings.plug(unit).map_err(|why| unit::refused(format!("{:#x}", image.key), why))?;
            device.images.set(place, Some(image));
        }
        let count = rings.host.ring_count();
        Ok((device, count, Box::new(rings)))
    }
}

impl VirtioBackend for Scsi {
    fn features(&self) -> u64 {
        // A frontend that resets one queue may not tell its backend.
        Host::offered().difference(Features::RING_RESET).bits()
    }

    fn rings(&self) -> u16 {
        self.config.queues + REQUEST as u16
    }

    fn ring_size_max(&self) -> u16 {
        self.config.queue_size_max
    }

    fn config_space(&self, _writeback: bool) -> Vec<u8> {
        // What there is beside the units: with one unit at most, a controller is small.
        let controller = Controller::<QUEUES_MAX, 1, 1>::new(self.config);
        let mut space = controller.config_space::<MappedMemory, Slot>(&[]);
        let images = self.images.lock();
        let transfer = images.iter().flatten().map(|image| image.backend.info().transfer_max_bytes).min();
        space.cmd_per_lun = (IN_FLIGHT as u32).into();
        if let Some(bytes) = transfer {
            space.max_sectors = (bytes >> 9).max(8).into();
        }
        space.as_bytes().to_vec()
    }

    fn writeback_offset(&self) -> Option<usize> {
        None
    }

    /// The caching page says it, unit by unit.
    fn driver_cache_view(&self, _features: u64) -> DriverCacheView {
        DriverCacheView::WriteBack
    }

    fn images(&self) -> &Arc<Images> {
        &self.images
    }
}

/// A unit's handle, or none.
#[derive(Default)]
struct Slot {
    handle: Option<Box<dyn Handle>>,
    counters: Option<Arc<QueueCounters>>,
    /// Where to keep a latch.
    persistent: Option<Arc<PersistentState>>,
}

impl Slot {
    /// An operation has failed. The guest cannot have heard of it: the controller has not.
    fn failed(&self) {
        if let Some(persistent) = &self.persistent {
            persistent.store_latches();
        }
        if let Some(counters) = &self.counters {
            counters.errors.add(1);
        }
    }
}

impl Storage<MappedMemory> for Slot {
    fn info(&self) -> &Info {
        self.handle.info()
    }

    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let submission = self.handle.submit(memory, tag, op, segments)?;
        if let Some(counters) = &self.counters {
            let bytes = op.extent().and_then(|extent| extent.bytes()).unwrap_or(0);
            match op {
                Op::Read { .. } => {
                    counters.reads.add(1);
                    counters.read_bytes.add(bytes);
                }
                Op::Write { .. } => {
                    counters.writes.add(1);
                    counters.written_bytes.add(bytes);
                }
                Op::Flush => counters.flushes.add(1),
                Op::WriteZeroes { .. } | Op::Discard { .. } => counters.ranges.add(1),
                Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {}
            }
        }
        if let Submission::Done(Err(_)) = submission {
            self.failed();
        }
        Ok(submission)
    }

    fn poll(&mut self, memory: &MappedMemory) -> Option<Completion> {
        let completion = self.handle.poll(memory)?;
        if completion.result.is_err() {
            self.failed();
        }
        Some(completion)
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        self.handle.staging(slot)
    }

    fn release_hold(&mut self, slot: u16) {
        self.handle.release_hold(slot);
    }
}

/// What the thread is at.
enum Work {
    Serving,
    /// The images are being flushed, and so many have yet to end it.
    Flushing {
        left: usize,
        ok: bool,
    },
}

/// Which settings are kept: those with a write cache promise less.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Promises {
    More,
    Less,
}

struct ScsiQueues {
    host: Box<Host>,
    handles: [Slot; UNITS_MAX],
    /// What the guest has set in each unit, as persistent state has it.
    kept: [Option<u8>; UNITS_MAX],
    /// A guest has been served, or its settings are known.
    served: bool,
    work: Work,
    counters: Vec<Arc<QueueCounters>>,
    persistent: Option<Arc<PersistentState>>,
}

impl ScsiQueues {
    /// Keeps what the guest has set since the last time. A server that comes after this one must promise no less than what the
    /// guest was told: that its cache is off is kept before the guest sees the answer, that it is on after that.
    fn keep_settings(&mut self, promises: Promises) {
        for unit in 0..UNITS_MAX {
            let setting = self.host.setting(unit);
            let bits = setting.map(|setting| setting.bits());
            let cached = setting.is_some_and(|setting| setting.contains(Setting::WRITE_CACHE));
            if bits == self.kept[unit] || (promises == Promises::More && cached) {
                continue;
            }
            self.kept[unit] = bits;
            if let Some(persistent) = &self.persistent {
                persistent.store_setting(unit, bits);
            }
        }
    }

    /// Lets handles go whose units have left.
    fn let_go(&mut self) {
        for (unit, slot) in self.handles.iter_mut().enumerate() {
            if slot.handle.is_some() && !self.host.has_unit(unit) {
                slot.handle = None;
            }
        }
    }

    fn poll_flush(&mut self, memory: &MappedMemory) {
        let Work::Flushing { left, ok } = &mut self.work else { return };
        for slot in &mut self.handles {
            while let Some(completion) = slot.poll(memory) {
                *left = left.saturating_sub(1);
                *ok &= completion.result.is_ok();
            }
        }
    }
}

impl QueueGroup for ScsiQueues {
    fn start(
        &mut self,
        ring: usize,
        setup: &RingSetup,
        features: RingFeatures,
        position: RingPosition,
    ) -> Result<(), QueueError> {
        if !self.served && position.next_used != 0 {
            // The guest has used this ring with a server before this one, and what it has set in the units is not known.
            for unit in 0..UNITS_MAX {
                if let Some(setting) = self.host.setting(unit) {
                    self.host.resume(unit, setting.difference(Setting::WRITE_CACHE));
                }
            }
        }
        self.served = true;
        self.kept = [None; UNITS_MAX];
        let Some(queue) = self.host.ring_mut(ring) else { return Err(QueueError::Size) };
        queue.reset();
        if let Some(registers) = queue.setup_mut() {
            *registers = *setup;
        }
        queue.enable_at(features, position)
    }

    fn poll(&mut self, memory: &MappedMemory, negotiated: &Negotiated, vrings: &mut [VringIo]) -> bool {
        if let Work::Flushing { .. } = self.work {
            self.poll_flush(memory);
            return false;
        }
        let open = vrings.iter().enumerate().filter(|(_, vring)| vring.is_open());
        let open = open.fold(0, |bits, (ring, _)| bits | 1 << ring);
        let policy = Policy { features: Features::from_bits_truncate(negotiated.features), open };
        let again = self.host.work(memory, &mut self.handles, &policy, vrings);
        if !mutant::active(Mutant::SettingKeptLate) {
            self.keep_settings(Promises::More);
        }
        let interrupts = self.host.publish(memory, vrings);
        if mutant::active(Mutant::SettingKeptLate) {
            // Late enough for whoever kills the server once there is an answer.
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        self.keep_settings(Promises::Less);
        self.let_go();
        for (ring, vring) in vrings.iter_mut().enumerate() {
            if interrupts & 1 << ring != 0 {
                vring.interrupt();
            }
        }
        again
    }

    fn in_flight(&self, ring: usize) -> u32 {
        let flushing = matches!(self.work, Work::Flushing { left: 1.., .. }) && ring == 0;
        self.host.in_flight(ring) as u32 + u32::from(flushing)
    }

    fn position(&self, ring: usize) -> Option<RingPosition> {
        self.host.ring(ring)?.position()
    }

    fn error(&self, ring: usize) -> Option<QueueError> {
        self.host.ring(ring)?.error()
    }

    fn stop(&mut self, ring: usize) {
        if let Some(ring) = self.host.ring_mut(ring) {
            ring.reset();
        }
    }

    fn reset_device(&mut self, memory: &MappedMemory) {
        self.host.reset();
        // Nothing is in flight: what is left of it, a poll finishes.
        self.host.finish_reset(memory, &mut self.handles);
    }

    fn flush(&mut self, memory: &MappedMemory) -> Result<(), Deferred> {
        let (mut left, mut ok) = (0, true);
        for slot in &mut self.handles {
            if let Some(handle) = &mut slot.handle {
                // Idle, it has room for one.
                match handle.submit(memory, Tag { slot: 0, generation: 0 }, Op::Flush, &[]) {
                    Ok(Submission::Pending) => left += 1,
                    Ok(Submission::Done(result)) => ok &= result.is_ok(),
                    Err(Busy) => ok = false,
                }
            }
        }
        self.work = Work::Flushing { left, ok };
        Ok(())
    }

    fn take_flushed(&mut self) -> Option<bool> {
        match self.work {
            Work::Flushing { left: 0, ok } => {
                self.work = Work::Serving;
                Some(ok)
            }
            _ => None,
        }
    }

    fn drain(&mut self, on: bool) {
        self.handles.iter_mut().filter_map(|slot| slot.handle.as_mut()).for_each(|handle| handle.drain(on));
    }

    fn arm(&mut self) -> bool {
        self.handles.iter_mut().filter_map(|slot| slot.handle.as_mut()).all(|handle| handle.arm())
    }

    fn wake_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.handles.iter().filter_map(|slot| slot.handle.as_ref()).map(|handle| handle.wake_fd()).collect()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        self.host.write_config(offset as u64, bytes);
    }

    fn set_persistent_state(&mut self, persistent: Option<&Arc<PersistentState>>) {
        self.persistent = persistent.cloned();
        for slot in &mut self.handles {
            slot.persistent.clone_from(&self.persistent);
        }
    }

    fn resume(&mut self, settings: &[Option<u8>]) {
        for (unit, setting) in settings.iter().enumerate() {
            if let Some(setting) = *setting {
                self.host.resume(unit, Setting::from_bits_truncate(setting));
                self.served = true;
            }
        }
    }

    fn plug(&mut self, unit: Unit) -> Result<usize, &'static str> {
        use scsi_model::front::virtio_scsi::NotInserted;
        let Unit { address, identity, handle } = unit;
        let place = self.host.insert(address, identity, handle.info()).map_err(|error| match error {
            NotInserted::Full => "take another away first: 16 are possible",
            NotInserted::Address => "give a lun that is not in use",
            NotInserted::Geometry(_) => "give an image with blocks of 512 to 4096 bytes",
        })?;
        let counters = self.counters.get(REQUEST).cloned();
        self.handles[place] = Slot { handle: Some(handle), counters, persistent: self.persistent.clone() };
        Ok(place)
    }

    fn unplug(&mut self, target: u8, lun: u16) -> Option<usize> {
        let address = Address { target, lun };
        let place = (0..UNITS_MAX).find(|place| self.host.address(*place) == Some(address))?;
        self.host.remove(place).then_some(place)
    }

    fn count_in(&mut self, counters: &[Arc<QueueCounters>]) {
        self.counters = counters.to_vec();
        for slot in &mut self.handles {
            slot.counters = self.counters.get(REQUEST).cloned();
        }
    }
}

#[cfg(test)]
mod tests;
