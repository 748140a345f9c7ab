//! The controller as a device with a status of its own, for transports with registers.

use blk_core::bus::{Quiet, Width, WriteStatus};
use blk_core::memory::GuestMemory;
use blk_core::storage::Storage;
use blk_core::virtio::{DeviceStatus, Polled, VirtioDevice, VirtioType, read_bytes};
use blk_core::virtq::{Queue, QueueError, RingFeatures};
use zerocopy::IntoBytes;

use super::controller::{Config, Controller};
use super::policy::Policy;
use super::rings::REQUEST;
use super::wire::{DEVICE_SCSI, Features};

/// Rings at most: [`Controller`] sees to it.
const RINGS_MAX: usize = 64;

/// A virtio-scsi device behind a virtio-mmio register block.
pub type Mmio<const Q: usize, const L: usize, const N: usize> = blk_core::virtio::mmio::Mmio<Scsi<Q, L, N>>;

/// A virtio-scsi device for a [`PciFunction`](blk_core::pci::PciFunction) with
/// a vector for each queue and one for the configuration, up to
/// [`VECTORS_MAX`](blk_core::virtio::pci::VECTORS_MAX).
pub type Pci<const Q: usize, const L: usize, const N: usize> =
    blk_core::virtio::pci::VirtioPci<Scsi<Q, L, N>>;

/// A [`Controller`] with negotiation and device status: VIRTIO 1.3, 2.1 and 2.2. Storage is a slice with a handle for each
/// unit. Units are put into the [controller](Self::controller_mut) when the embedder likes.
///
/// ```
/// use blk_core::bus::{Device, Region, Width};
/// use blk_core::memory::CellMemory;
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::storage::Storage;
/// use blk_core::units::GuestAddr;
/// use blk_core::virtio::mmio::register;
/// use scsi_model::front::virtio_scsi::{Address, Config, Mmio, Scsi};
///
/// let (mut ram, mut image, mut staging) = ([0; 512], [0; 1 << 16], [0; 16 * 512]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disks = [RamDisk::<16>::new(Ram::new(&mut image), &mut staging)];
/// // One request queue, one unit with 16 tasks, at LUN 0 of target 0.
/// let mut scsi = Scsi::<1, 1, 16>::new(Config::default());
/// let identity = scsi_model::Config::new("BLK", "RAM DISK", "1", "0001");
/// let info = Storage::<CellMemory>::info(&disks[0]);
/// scsi.controller_mut().insert(Address { target: 0, lun: 0 }, identity, info)?;
///
/// let mut device = Mmio::new(scsi);
/// let mut read = |offset| device.read(Region::Bar(0), offset, Width::Dword, &memory, &mut disks[..]).value;
/// assert_eq!(read(register::DEVICE_ID), 8);
/// assert_eq!(read(register::CONFIG), 1, "num_queues: request queues");
/// # Ok::<(), scsi_model::front::virtio_scsi::NotInserted>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Scsi<const Q: usize, const L: usize, const N: usize> {
    controller: Controller<Q, L, N>,
    status: DeviceStatus,
    /// As the driver wrote them.
    driver_features: u64,
    /// As they were agreed.
    features: Features,
}

impl<const Q: usize, const L: usize, const N: usize> Quiet for Scsi<Q, L, N> {
    fn is_quiet(&self) -> bool {
        self.controller.is_quiet()
    }
}

#[cfg(feature = "snapshot")]
impl<const Q: usize, const L: usize, const N: usize> blk_core::snapshot::Snapshot for Scsi<Q, L, N> {
    const KIND: blk_core::snapshot::Kind =
        blk_core::snapshot::Kind::new(*b"VSCS", 1).sized(Q).sized(L).sized(N);
}

impl<const Q: usize, const L: usize, const N: usize> Scsi<Q, L, N> {
    /// A device after power-on, without units.
    #[must_use]
    pub const fn new(config: Config) -> Self {
        Self {
            controller: Controller::new(config),
            status: DeviceStatus::empty(),
            driver_features: 0,
            features: Features::empty(),
        }
    }

    /// The controller.
    #[must_use]
    pub const fn controller(&self) -> &Controller<Q, L, N> {
        &self.controller
    }

    /// The controller, to put units in and take them out.
    pub const fn controller_mut(&mut self) -> &mut Controller<Q, L, N> {
        &mut self.controller
    }

    /// The agreed features.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    fn add_status(&mut self, status: DeviceStatus) {
        if self.controller.is_resetting() {
            return;
        }
        let mut new = status.difference(DeviceStatus::NEEDS_RESET) | self.status;
        if new.contains(DeviceStatus::FEATURES_OK) && !self.status.contains(DeviceStatus::FEATURES_OK) {
            // 2.2.2, 6.2: refused by leaving the bit clear, for bits that were not offered and for a driver that does not
            // know VERSION_1.
            let offered = Controller::<Q, L, N>::offered();
            let features = Features::from_bits_retain(self.driver_features);
            if offered.contains(features) && features.contains(Features::VERSION_1) {
                self.features = features;
            } else {
                new.remove(DeviceStatus::FEATURES_OK);
            }
        }
        if !new.contains(DeviceStatus::FEATURES_OK) {
            new.remove(DeviceStatus::DRIVER_OK);
        }
        self.status = new;
    }

    /// Sets NEEDS_RESET if a ring is broken, and returns whether the driver is to be told (2.1.2).
    fn notice_errors(&mut self) -> bool {
        if self.status.contains(DeviceStatus::NEEDS_RESET) || self.queue_error().is_none() {
            return false;
        }
        self.status |= DeviceStatus::NEEDS_RESET;
        self.status.contains(DeviceStatus::DRIVER_OK)
    }

    fn end_reset(&mut self) {
        self.status = DeviceStatus::empty();
        self.driver_features = 0;
        self.features = Features::empty();
    }
}

impl<const Q: usize, const L: usize, const N: usize> VirtioType for Scsi<Q, L, N> {
    const TYPE: u32 = DEVICE_SCSI;
    /// SCSI storage controller (PCI 3.0, appendix D).
    const PCI_CLASS: u32 = 0x01_0000;
    const QUEUES: usize = Q.saturating_add(REQUEST);

    fn queue_count(&self) -> u16 {
        u16::try_from(self.controller.ring_count()).unwrap_or(u16::MAX)
    }

    fn queue_error(&self) -> Option<QueueError> {
        let rings = (0..self.controller.ring_count()).filter_map(|index| self.controller.ring(index));
        rings.filter_map(Queue::error).next()
    }
}

impl<M, H, const Q: usize, const L: usize, const N: usize> VirtioDevice<M, [H]> for Scsi<Q, L, N>
where
    M: GuestMemory + ?Sized,
    H: Storage<M>,
{
    fn offered_features(&self, _storage: &[H]) -> u64 {
        Controller::<Q, L, N>::offered().bits()
    }

    fn driver_features(&self) -> u64 {
        self.driver_features
    }

    fn write_features(&mut self, features: u64, _storage: &[H]) {
        // Once they are agreed they are fixed.
        if !self.status.contains(DeviceStatus::FEATURES_OK) {
            self.driver_features = features;
        }
    }

    fn status(&self) -> DeviceStatus {
        self.status
    }

    fn write_status(&mut self, value: u8, memory: &M, storage: &mut [H]) -> WriteStatus {
        if value == 0 {
            return self.reset(memory, storage);
        }
        self.add_status(DeviceStatus::from_bits_truncate(value));
        WriteStatus::Done
    }

    fn ring(&self, index: u32) -> Option<&Queue> {
        self.controller.ring(usize::try_from(index).ok()?)
    }

    fn ring_mut(&mut self, index: u32) -> Option<&mut Queue> {
        self.controller.ring_mut(usize::try_from(index).ok()?)
    }

    fn enable_queue(&mut self, index: u32) {
        let features = RingFeatures {
            indirect: self.features.contains(Features::INDIRECT_DESC),
            event_idx: self.features.contains(Features::EVENT_IDX),
        };
        let stopping = <Self as VirtioDevice<M, [H]>>::is_stopping(self, index);
        if let Some(ring) = <Self as VirtioDevice<M, [H]>>::ring_mut(self, index)
            && !stopping
            && !ring.is_enabled()
        {
            // The ring keeps the error, and the next poll reports it.
            let _ = ring.enable(features);
        }
    }

    fn stop_queue(&mut self, index: u32, _memory: &M, _storage: &mut [H]) -> WriteStatus {
        if let Ok(index) = usize::try_from(index)
            && self.controller.ring(index).is_some_and(Queue::is_enabled)
        {
            self.controller.stop_ring(index);
        }
        if <Self as VirtioDevice<M, [H]>>::is_stopping(self, index) {
            WriteStatus::Pending
        } else {
            WriteStatus::Done
        }
    }

    fn is_stopping(&self, index: u32) -> bool {
        let Ok(index) = usize::try_from(index) else { return false };
        let off = self.controller.ring(index).is_some_and(|ring| !ring.is_enabled());
        off && self.controller.in_flight(index) != 0
    }

    fn config_generation(&self) -> u32 {
        self.controller.generation()
    }

    fn read_config(&self, offset: u64, width: Width, storage: &[H]) -> u64 {
        read_bytes(self.controller.config_space(storage).as_bytes(), offset, width)
    }

    fn write_config(&mut self, offset: u64, width: Width, value: u64, _storage: &mut [H]) -> WriteStatus {
        let bytes = value.to_le_bytes();
        self.controller.write_config(offset, bytes.get(..usize::from(width.bytes())).unwrap_or(&bytes));
        WriteStatus::Done
    }

    fn pending(&self) -> WriteStatus {
        let rings = 0..u32::try_from(self.controller.ring_count()).unwrap_or(0);
        let stopping = rings.into_iter().any(|ring| <Self as VirtioDevice<M, [H]>>::is_stopping(self, ring));
        if stopping || self.controller.is_resetting() { WriteStatus::Pending } else { WriteStatus::Done }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Polled {
        let resetting = self.controller.is_resetting();
        let live = self.status.contains(DeviceStatus::DRIVER_OK);
        let policy = Policy { features: self.features, open: if live { u64::MAX } else { 0 } };
        let polled = self.controller.poll(memory, storage, &policy, &mut [(); RINGS_MAX]);
        if resetting && !self.controller.is_resetting() {
            self.end_reset();
        }
        Polled { used: polled.interrupts, changed: self.notice_errors(), again: polled.again }
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> WriteStatus {
        self.controller.reset();
        if self.controller.finish_reset(memory, storage) {
            self.end_reset();
            return WriteStatus::Done;
        }
        WriteStatus::Pending
    }
}
