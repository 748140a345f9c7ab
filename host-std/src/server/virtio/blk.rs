//! virtio-blk: a thread for each queue.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use blk_core::order::{Deferred, GuestCache};
use blk_core::virtq::{QueueError, RingFeatures, RingPosition, RingSetup};
use virtio_blk_model::device::{Config, Control, Interface};
use virtio_blk_model::queue::{DeviceView, Queue};
use virtio_blk_model::wire::{ConfigSpace, Features};
use zerocopy::IntoBytes as _;

use super::backend::{DriverCacheView, Negotiated, QueueGroup, VirtioBackend};
use crate::backend::{Backend, Handle};
use crate::memory::MappedMemory;
use crate::server::images::{Image, Images};
use crate::server::options::{BlkOptions, ServerError, check_ring_size};
use crate::server::vring::VringIo;

/// Requests in flight in each queue: as many as a handle is deep.
const IN_FLIGHT: usize = 128;

/// Most queues. The protocol names a queue by 8 bits, and each has a thread.
const QUEUES_MAX: u16 = 64;

/// A virtio-blk device on one image.
pub(in crate::server) struct Blk {
    control: Control,
    backend: Arc<dyn Backend>,
    images: Arc<Images>,
}

impl Blk {
    pub(in crate::server) fn new(
        options: &BlkOptions,
        backend: Arc<dyn Backend>,
    ) -> Result<Self, ServerError> {
        let refuse = |option, value: String, remedy| Err(ServerError::Option { option, value, remedy });
        let serial = options.serial_bytes()?;
        if options.queues == 0 || options.queues > QUEUES_MAX {
            return refuse("queues", options.queues.to_string(), "give 1 to 64");
        }
        check_ring_size(options.queue_size_max)?;
        let config = Config {
            serial,
            queues: options.queues,
            queue_size_max: options.queue_size_max,
            read_only: options.read_only,
            interface: Interface::Modern,
            experimental_fua: options.experimental_fua,
        };
        let images = Images::new(vec![Some(Image { key: 0, backend: Arc::clone(&backend) })]);
        Ok(Self { control: Control::new(config, QUEUES_MAX.into()), backend, images })
    }

    /// The rings of each thread.
    pub(in crate::server) fn threads(&self) -> Result<Vec<Box<dyn QueueGroup>>, ServerError> {
        let Config { serial, queues, queue_size_max, read_only, .. } = *self.control.config();
        let rings = (0..queues).map(|_| {
            let queue = Box::new(Queue::new(queue_size_max, serial));
            let handle = self.backend.handle()?;
            Ok(Box::new(BlkQueue { queue, handle, read_only }) as Box<dyn QueueGroup>)
        });
        rings.collect()
    }
}

impl VirtioBackend for Blk {
    fn features(&self) -> u64 {
        let mut features = self.control.offered(&self.backend.info());
        // A frontend that resets one queue may not tell its backend (QEMU's vhost-user-blk does not).
        features.remove(Features::RING_RESET);
        features.bits()
    }

    fn rings(&self) -> u16 {
        self.control.config().queues
    }

    fn ring_size_max(&self) -> u16 {
        self.control.config().queue_size_max
    }

    fn config_space(&self, writeback: bool) -> Vec<u8> {
        let info = self.backend.info();
        let mut space = self.control.config_space(&info);
        space.writeback = u8::from(writeback && info.has_volatile_cache());
        space.as_bytes().to_vec()
    }

    fn writeback_offset(&self) -> Option<usize> {
        Some(ConfigSpace::WRITEBACK as usize)
    }

    fn driver_cache_view(&self, features: u64) -> DriverCacheView {
        // VIRTIO 1.3, 5.2.5.2 and 5.2.6.2.
        let features = Features::from_bits_truncate(features);
        match (features.contains(Features::FLUSH), features.contains(Features::CONFIG_WCE)) {
            (false, _) => DriverCacheView::WriteThrough,
            (true, false) => DriverCacheView::WriteBack,
            (true, true) => DriverCacheView::ConfigField,
        }
    }

    fn images(&self) -> &Arc<Images> {
        &self.images
    }
}

/// One queue and its handle.
struct BlkQueue {
    queue: Box<Queue<IN_FLIGHT>>,
    handle: Box<dyn Handle>,
    read_only: bool,
}

impl QueueGroup for BlkQueue {
    fn start(
        &mut self,
        _ring: usize,
        setup: &RingSetup,
        features: RingFeatures,
        position: RingPosition,
    ) -> Result<(), QueueError> {
        let ring = self.queue.ring_mut();
        ring.reset();
        if let Some(registers) = ring.setup_mut() {
            *registers = *setup;
        }
        ring.enable_at(features, position)
    }

    #[inline]
    fn poll(&mut self, memory: &MappedMemory, negotiated: &Negotiated, vrings: &mut [VringIo]) -> bool {
        let Some(vring) = vrings.first_mut() else { return false };
        let view = DeviceView {
            features: Features::from_bits_truncate(negotiated.features),
            cache: if negotiated.write_back { GuestCache::WriteBack } else { GuestCache::WriteThrough },
            read_only: self.read_only,
            open: vring.is_open(),
            epoch: negotiated.epoch,
        };
        let progress = self.queue.poll_logged(memory, &mut *self.handle, || view, vring.log_mut());
        if progress.interrupt {
            vring.interrupt();
        }
        progress.again
    }

    fn in_flight(&self, _ring: usize) -> u32 {
        self.queue.in_flight()
    }

    fn position(&self, _ring: usize) -> Option<RingPosition> {
        self.queue.ring().position()
    }

    fn error(&self, _ring: usize) -> Option<QueueError> {
        self.queue.ring().error()
    }

    fn stop(&mut self, _ring: usize) {
        self.queue.ring_mut().reset();
    }

    fn flush(&mut self, memory: &MappedMemory) -> Result<(), Deferred> {
        self.queue.flush(memory, &mut *self.handle)
    }

    fn take_flushed(&mut self) -> Option<bool> {
        self.queue.take_flushed()
    }

    fn drain(&mut self, on: bool) {
        self.handle.drain(on);
    }

    fn arm(&mut self) -> bool {
        self.handle.arm()
    }

    fn wake_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.handle.wake_fd()]
    }
}
