//! The device: its queues, and what crosses them, which is the cache switch and the reset.

use blk_core::bus::{Quiet, Width, WriteStatus};
use blk_core::log;
use blk_core::memory::GuestMemory;
use blk_core::mutant::{Mutant, active};
use blk_core::storage::{Info, Storage};
use blk_core::virtio::{VirtioDevice, VirtioType};
use blk_core::virtq;
use blk_core::virtq::QueueError;

use crate::control::Change;
use crate::queue::Queue;
use crate::wire::{ConfigSpace, DeviceStatus};

pub use crate::control::{Config, Control, Interface};
pub use blk_core::virtio::Polled;

/// A virtio-blk device of at most `Q` queues with `N` requests in flight each, behind whatever transport.
///
/// Queue `n` works on storage handle `n`; handles without a queue and queues without a handle are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Blk<const Q: usize, const N: usize> {
    control: Control,
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    queues: [Queue<N>; Q],
}

impl<const Q: usize, const N: usize> Blk<Q, N> {
    /// A device after power-on.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        let mut queues = [const { Queue::new(virtq::SIZE_MAX, [0; 20]) }; Q];
        let mut rest = queues.as_mut_slice();
        while let Some((queue, others)) = rest.split_first_mut() {
            queue.configure(config.queue_size_max, config.serial);
            rest = others;
        }
        Self { control: Control::new(config, Q), queues }
    }

    /// The part that crosses queues.
    #[must_use]
    pub const fn control(&self) -> &Control {
        &self.control
    }

    /// The part that crosses queues, and the queues that the device has: for a host that gives each its thread.
    pub fn split_mut(&mut self) -> (&mut Control, &mut [Queue<N>]) {
        let count = usize::from(self.control.config.queues);
        (&mut self.control, self.queues.get_mut(..count).unwrap_or_default())
    }

    /// The queue at `index`, if the device has it.
    #[must_use]
    pub fn queue(&self, index: u32) -> Option<&Queue<N>> {
        if index >= u32::from(self.control.config.queues) {
            return None;
        }
        self.queues.get(index as usize)
    }

    /// The queue at `index`, if the device has it.
    pub fn queue_mut(&mut self, index: u32) -> Option<&mut Queue<N>> {
        if index >= u32::from(self.control.config.queues) {
            return None;
        }
        self.queues.get_mut(index as usize)
    }

    /// Enables the queue at `index` with the ring that was set up. A ring that cannot be breaks it.
    pub fn enable_queue(&mut self, index: u32) {
        let features = self.control.ring_features();
        if let Some(queue) = self.queue_mut(index)
            && !queue.is_resetting()
            && !queue.ring().is_enabled()
        {
            // The ring keeps the error, and the next poll reports it.
            let _ = queue.ring_mut().enable(features);
        }
    }

    /// Stops one queue, its requests in flight awaited (RING_RESET, 2.6.1; `QueueReady` = 0, 4.2.2.2).
    pub fn stop_queue<M: ?Sized, H: Storage<M>>(
        &mut self,
        index: u32,
        memory: &M,
        storage: &mut [H],
    ) -> WriteStatus {
        let handle = usize::try_from(index).ok().and_then(|index| storage.get_mut(index));
        match (self.queue_mut(index), handle) {
            (Some(queue), Some(handle)) => {
                queue.reset();
                if queue.finish_reset(memory, handle) { WriteStatus::Done } else { WriteStatus::Pending }
            }
            _ => WriteStatus::Done,
        }
    }

    /// The driver writes the device status; 0 resets the device, and is [`WriteStatus::Pending`] until everything in
    /// flight has ended (2.4.1: a device that reads 0 touches no queue any more).
    pub fn write_status<M: ?Sized, H: Storage<M>>(
        &mut self,
        value: u8,
        memory: &M,
        storage: &mut [H],
    ) -> WriteStatus {
        if value != 0 {
            self.control.add_status(DeviceStatus::from_bits_truncate(value), info(storage));
            return WriteStatus::Done;
        }
        self.reset(memory, storage)
    }

    /// Requests in flight, in all queues.
    fn in_flight(&self) -> u32 {
        self.queues.iter().fold(0, |sum, queue| sum.saturating_add(queue.in_flight()))
    }

    /// Resets the device: held-back requests are dropped, those in flight awaited by [`Self::poll`].
    pub fn reset<M: ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut [H]) -> WriteStatus {
        log!(info, "virtio-blk: reset, {} requests in flight", self.in_flight());
        self.control.change = Change::Resetting;
        let (_, queues) = self.split_mut();
        for (index, queue) in queues.iter_mut().enumerate() {
            queue.reset();
            if index != 0 && active(Mutant::ResetOneQueueOnly) {
                queue.forget_in_flight();
            }
        }
        self.finish_reset(memory, storage);
        self.pending()
    }

    /// Whether a change or a reset waits for requests in flight.
    pub fn pending(&self) -> WriteStatus {
        let stopping = self.queues.iter().any(Queue::is_resetting);
        if stopping || self.control.change != Change::None { WriteStatus::Pending } else { WriteStatus::Done }
    }

    /// The driver writes into configuration space, of which `writeback` is writable where CONFIG_WCE was negotiated.
    ///
    /// 1 to 0 is [`WriteStatus::Pending`] until every queue is drained and a flush is done: a driver that reads 0 back
    /// stops flushing. If that flush fails, the field stays 1, since nothing else says so.
    pub fn write_config<M: ?Sized, H: Storage<M>>(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        storage: &[H],
    ) -> WriteStatus {
        let Some(shift) = ConfigSpace::WRITEBACK.checked_sub(offset) else { return WriteStatus::Done };
        if shift < u64::from(width.bytes()) {
            let byte = value.to_le_bytes().get(usize::try_from(shift).unwrap_or(usize::MAX)).copied();
            self.control.write_writeback(byte.unwrap_or(0) & 1 != 0, info(storage));
        }
        self.pending()
    }

    /// Makes bounded progress on every queue and on a change.
    #[inline]
    pub fn poll<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut [H]) -> Polled {
        let mut polled = Polled::default();
        let (control, queues) = self.split_mut();
        for (index, (queue, handle)) in queues.iter_mut().zip(storage.iter_mut()).enumerate() {
            let progress = queue.poll(memory, handle, || control.view());
            if progress.interrupt {
                polled.mark_used(index);
            }
            polled.again |= progress.again;
            if let Some(error) = queue.ring().error()
                && control.needs_reset()
            {
                log!(warn, "virtio-blk: queue {} is broken until a reset: {}", index, error);
                polled.changed = true;
            }
        }
        if let Some(info) = info(storage) {
            polled.changed |= self.control.is_resized(info);
        }
        if self.control.change != Change::None {
            polled.again |= self.change(memory, storage);
        }
        polled
    }

    /// Goes on with a change. Returns whether it moved, so that another poll may move it further.
    #[cold]
    fn change<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut [H]) -> bool {
        match self.control.change {
            Change::None => false,
            Change::Resetting => {
                self.finish_reset(memory, storage);
                self.control.change == Change::None
            }
            Change::Draining => self.start_flush(memory, storage),
            Change::Flushing => {
                let Some(queue) = self.queues.first_mut() else { return false };
                match queue.take_flushed() {
                    Some(flushed) => self.control.end_cache_off(flushed),
                    // The driver stopped the queue, and the flush with it.
                    None if queue.is_idle() => self.control.change = Change::Draining,
                    None => return false,
                }
                true
            }
        }
    }

    /// Once every queue is quiet, submits the flush that turns the cache off.
    fn start_flush<M: GuestMemory + ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut [H]) -> bool {
        let (control, queues) = self.split_mut();
        // A queue without a handle never takes anything.
        let quiet = queues.iter().take(storage.len()).all(|queue| queue.is_quiet(control.generation()));
        if !quiet && !active(Mutant::CacheSwitchInFlight) {
            return false;
        }
        let (Some(queue), Some(handle)) = (queues.first_mut(), storage.first_mut()) else { return false };
        let submitted = queue.flush(memory, handle).is_ok();
        if submitted {
            control.change = Change::Flushing;
        }
        submitted
    }

    fn finish_reset<M: ?Sized, H: Storage<M>>(&mut self, memory: &M, storage: &mut [H]) {
        let (control, queues) = self.split_mut();
        let mut over = true;
        for (index, queue) in queues.iter_mut().enumerate() {
            over &= match storage.get_mut(index) {
                Some(handle) => queue.finish_reset(memory, handle),
                // Without a handle it never had anything in flight.
                None => true,
            };
        }
        if over {
            log!(info, "virtio-blk: reset is over");
            control.end_reset();
        }
    }
}

impl<const Q: usize, const N: usize> Quiet for Blk<Q, N> {
    fn is_quiet(&self) -> bool {
        self.pending() == WriteStatus::Done && self.queues.iter().all(|queue| queue.in_flight() == 0)
    }
}

#[cfg(feature = "snapshot")]
impl<const Q: usize, const N: usize> blk_core::snapshot::Snapshot for Blk<Q, N> {
    const KIND: blk_core::snapshot::Kind = blk_core::snapshot::Kind::new(*b"VBLK", 1).sized(Q).sized(N);
}

impl<const Q: usize, const N: usize> VirtioType for Blk<Q, N> {
    const TYPE: u32 = 2;
    /// SCSI storage controller, as other machines have it: there is no code for a disk of this kind (PCI 3.0, appendix D).
    const PCI_CLASS: u32 = 0x01_0000;
    const QUEUES: usize = Q;

    fn queue_count(&self) -> u16 {
        self.control.config.queues
    }

    fn queue_error(&self) -> Option<QueueError> {
        self.queues.iter().find_map(|queue| queue.ring().error())
    }
}

impl<M, H, const Q: usize, const N: usize> VirtioDevice<M, [H]> for Blk<Q, N>
where
    M: GuestMemory + ?Sized,
    H: Storage<M>,
{
    fn is_legacy(&self) -> bool {
        self.control.config.interface != Interface::Modern
    }

    fn offered_features(&self, storage: &[H]) -> u64 {
        info(storage).map_or(0, |info| self.control.offered(info).bits())
    }

    fn driver_features(&self) -> u64 {
        self.control.driver_features()
    }

    fn write_features(&mut self, features: u64, storage: &[H]) {
        if let Some(info) = info(storage) {
            self.control.write_features(features, info);
        }
    }

    fn status(&self) -> DeviceStatus {
        self.control.status()
    }

    fn write_status(&mut self, value: u8, memory: &M, storage: &mut [H]) -> WriteStatus {
        self.write_status(value, memory, storage)
    }

    fn ring(&self, index: u32) -> Option<&virtq::Queue> {
        self.queue(index).map(Queue::ring)
    }

    fn ring_mut(&mut self, index: u32) -> Option<&mut virtq::Queue> {
        self.queue_mut(index).map(Queue::ring_mut)
    }

    fn enable_queue(&mut self, index: u32) {
        self.enable_queue(index);
    }

    fn stop_queue(&mut self, index: u32, memory: &M, storage: &mut [H]) -> WriteStatus {
        self.stop_queue(index, memory, storage)
    }

    fn is_stopping(&self, index: u32) -> bool {
        self.queue(index).is_some_and(Queue::is_resetting)
    }

    fn config_generation(&self) -> u32 {
        self.control.generation()
    }

    fn read_config(&self, offset: u64, width: Width, storage: &[H]) -> u64 {
        info(storage).map_or(0, |info| self.control.read_config(offset, width, info))
    }

    fn write_config(&mut self, offset: u64, width: Width, value: u64, storage: &mut [H]) -> WriteStatus {
        self.write_config(offset, width, value, storage)
    }

    fn pending(&self) -> WriteStatus {
        self.pending()
    }

    #[inline]
    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Polled {
        self.poll(memory, storage)
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> WriteStatus {
        self.reset(memory, storage)
    }
}

/// The storage's properties, by its first handle. All are handles to the same storage.
fn info<M: ?Sized, H: Storage<M>>(storage: &[H]) -> Option<&Info> {
    storage.first().map(Storage::info)
}
