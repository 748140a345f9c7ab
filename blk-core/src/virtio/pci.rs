//! The virtio-pci transport, modern (VIRTIO 1.3, 4.1): registers in one memory BAR, which vendor-specific capabilities
//! describe, and MSI-X. Behind a [`PciFunction`](crate::pci::PciFunction).

use crate::virtq::QueueError;

use super::selectors::{Selectors, set_high, set_low};
use super::{DeviceStatus, Polled, VirtioDevice, VirtioType};
use crate::bus::{Access, Device, IrqChange, Progress, Quiet, Region, Width, WriteStatus};
use crate::pci::{Bar, Capability, Endpoint, Function, Identity, Permissions};

/// The BAR that holds everything.
pub const BAR: u8 = 0;

/// Where in the BAR each structure is. Each has a page of its own, so that a machine may map or trap it by itself.
pub mod structure {
    /// Common configuration: see [`common`](super::common).
    pub const COMMON: u64 = 0x0000;
    /// ISR status, a byte.
    pub const ISR: u64 = 0x1000;
    /// The device's configuration space.
    pub const DEVICE: u64 = 0x2000;
    /// Notifications.
    pub const NOTIFY: u64 = 0x3000;
    /// The MSI-X table.
    pub const MSIX_TABLE: u64 = 0x4000;
    /// The MSI-X pending bits.
    pub const MSIX_PENDING: u64 = 0x5000;
    /// Bytes of the BAR.
    pub const END: u64 = 0x8000;
}

/// Offsets in the common configuration structure: VIRTIO 1.3, 4.1.4.3.
pub mod common {
    /// 32 bits: which 32 of the offered features.
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// 32 bits of the offered features.
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// 32 bits: which 32 of the driver's features.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// 32 bits of the driver's features.
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// 16 bits: the vector of configuration changes.
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    /// 16 bits: queues.
    pub const NUM_QUEUES: u64 = 0x12;
    /// 8 bits: the device status; 0 resets.
    pub const DEVICE_STATUS: u64 = 0x14;
    /// 8 bits: changes with the configuration space.
    pub const CONFIG_GENERATION: u64 = 0x15;
    /// 16 bits: which queue the following are of.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// 16 bits: entries; at first the most that there may be. 0 where there is no queue.
    pub const QUEUE_SIZE: u64 = 0x18;
    /// 16 bits: the vector of the queue's used buffers.
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    /// 16 bits: 1 enables the queue.
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// 16 bits: where to notify the queue, in units of [`NOTIFY_OFF_MULTIPLIER`](super::NOTIFY_OFF_MULTIPLIER).
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    /// 64 bits, in two halves: the descriptor table.
    pub const QUEUE_DESC: u64 = 0x20;
    /// 64 bits, in two halves: the driver area.
    pub const QUEUE_DRIVER: u64 = 0x28;
    /// 64 bits, in two halves: the device area.
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// 16 bits, with NOTIF_CONFIG_DATA, which is not offered.
    pub const QUEUE_NOTIFY_DATA: u64 = 0x38;
    /// 16 bits, with RING_RESET: 1 resets the queue, and reads so until that is over.
    pub const QUEUE_RESET: u64 = 0x3a;
    /// Bytes, with the two registers of the administration queues, of which there are none.
    pub const BYTES: u64 = 0x40;
}

/// Bytes between the addresses at which queues are notified.
pub const NOTIFY_OFF_MULTIPLIER: u32 = 4;
/// Queues that have an address and a vector of their own.
pub const QUEUES_MAX: usize = 64;
/// Most MSI-X vectors, as many as a [`PciFunction`](crate::pci::PciFunction) can have. A device takes one for each queue and one for changes
/// of its configuration, as far as they reach; the driver lets queues share the rest.
pub const VECTORS_MAX: u16 = 31;
/// What a vector register holds while the event has none (4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// ISR status: used buffers (4.1.4.5).
pub const ISR_QUEUE: u8 = 1;
/// ISR status: configuration change.
pub const ISR_CONFIG: u8 = 2;

/// Red Hat, whose number VIRTIO devices have (4.1.2).
const VENDOR: u16 = 0x1af4;
/// What the device type is added to (4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// VIRTIO_F_RING_RESET.
const RING_RESET: u64 = 1 << 40;

/// A virtio device for a PCI function: what is in [`Region::Bar`]`(`[`BAR`]`)`, but for the MSI-X table.
///
/// Interrupt line 0 is the level of the pin, 1 while ISR status is not 0; lines `1 + v` are messages, as
/// [`Endpoint`] has them. While messages are enabled, events that have no vector are not signalled.
///
/// Registers are taken in their own width only (4.1.3.1), 64-bit ones also as a whole; configuration space takes any width.
///
/// **Without bus mastering** the device rests: it takes no request and touches no ring, and what the storage has done is
/// answered when bus mastering is on again. Only a reset goes on. Writes are then never [`WriteStatus::Pending`], so that
/// no vCPU waits for what another one has to allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct VirtioPci<D> {
    device: D,
    selectors: Selectors,
    permissions: Permissions,
    isr: u8,
    config_vector: u16,
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    queue_vectors: [u16; QUEUES_MAX],
    generation: Generation,
    /// A reset of the whole device waits: its rings are forgotten already.
    resetting: bool,
}

/// The configuration's generation as a driver sees it, 8 bits wide: it moves on when the driver reads what has changed since it
/// read last, and not with every change, so that it cannot come round in between (4.1.4.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
struct Generation {
    shown: u8,
    /// The device's, as it was when the driver read last, if it has.
    seen: Option<u32>,
}

impl<D: Quiet> Quiet for VirtioPci<D> {
    fn is_quiet(&self) -> bool {
        !self.resetting && self.device.is_quiet()
    }
}

#[cfg(feature = "snapshot")]
impl<D: crate::snapshot::Snapshot> crate::snapshot::Snapshot for VirtioPci<D> {
    const KIND: crate::snapshot::Kind = D::KIND.behind(*b"VPCI");
}

impl<D> VirtioPci<D> {
    /// Puts a device after power-on behind registers. It should have the modern interface.
    #[must_use]
    pub const fn new(device: D) -> Self {
        Self {
            device,
            selectors: Selectors::RESET,
            permissions: Permissions::NONE,
            isr: 0,
            config_vector: NO_VECTOR,
            queue_vectors: [NO_VECTOR; QUEUES_MAX],
            generation: Generation { shown: 0, seen: None },
            resetting: false,
        }
    }

    /// The device behind the registers.
    #[must_use]
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The device behind the registers, for what is not of the transport.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    const fn line(&self) -> u32 {
        (self.isr != 0) as u32
    }

    /// Whether nothing may be done but a reset.
    const fn rests(&self) -> bool {
        !self.permissions.bus_master && !self.resetting
    }

    fn reset_registers(&mut self) {
        self.selectors = Selectors::RESET;
        self.isr = 0;
        self.config_vector = NO_VECTOR;
        self.queue_vectors = [NO_VECTOR; QUEUES_MAX];
    }

    fn queue_vector(&self) -> u16 {
        let index = usize::try_from(self.selectors.queue).ok();
        index.and_then(|index| self.queue_vectors.get(index)).copied().unwrap_or(NO_VECTOR)
    }

    /// Gives the selected queue a vector, if it can have one.
    fn set_queue_vector(&mut self, vector: u16) {
        let index = usize::try_from(self.selectors.queue).ok();
        if let Some(place) = index.and_then(|index| self.queue_vectors.get_mut(index)) {
            *place = vector;
        }
    }

    /// The lines that what a poll led to changes: 4.1.5.3, 4.1.5.4.
    fn signal(&mut self, polled: Polled) -> IrqChange {
        let before = self.line();
        let mut vectors = 0_u32;
        if polled.changed {
            // 4.1.4.5.1: with MSI-X too.
            self.isr |= ISR_CONFIG;
            vectors |= message(self.config_vector);
        }
        if polled.used != 0 && self.permissions.messages == 0 {
            self.isr |= ISR_QUEUE;
        }
        let mut used = polled.used;
        while used != 0 {
            let queue = used.trailing_zeros() as usize;
            vectors |= self.queue_vectors.get(queue).map_or(0, |vector| message(*vector));
            used &= used.wrapping_sub(1);
        }
        IrqChange::between(before, self.line()).then(IrqChange { changed: vectors, level: vectors })
    }
}

impl<D: VirtioType> VirtioPci<D> {
    /// MSI-X vectors.
    fn vectors(&self) -> u16 {
        self.device.queue_count().saturating_add(1).min(VECTORS_MAX)
    }

    /// What a vector register holds after `vector` was written: 4.1.5.1.2.1.
    fn mapped(&self, vector: u16) -> u16 {
        if vector < self.vectors() { vector } else { NO_VECTOR }
    }

    fn common<M: ?Sized, S: ?Sized>(&self, offset: u64, width: Width, storage: &S) -> u64
    where
        D: VirtioDevice<M, S>,
    {
        let (device, selectors) = (&self.device, &self.selectors);
        let ring = selectors.ring(device);
        let setup = ring.map(|ring| *ring.setup()).unwrap_or_default();
        match (offset, width) {
            (common::DEVICE_FEATURE_SELECT, Width::Dword) => selectors.device_features.into(),
            (common::DEVICE_FEATURE, Width::Dword) => selectors.offered(device, storage).into(),
            (common::DRIVER_FEATURE_SELECT, Width::Dword) => selectors.driver_features.into(),
            (common::DRIVER_FEATURE, Width::Dword) => selectors.accepted(device).into(),
            (common::CONFIG_MSIX_VECTOR, Width::Word) => self.config_vector.into(),
            (common::NUM_QUEUES, Width::Word) => device.queue_count().into(),
            (common::DEVICE_STATUS, Width::Byte) => device.status().bits().into(),
            (common::CONFIG_GENERATION, Width::Byte) => self.generation.shown.into(),
            (common::QUEUE_SELECT, Width::Word) => selectors.queue.into(),
            (common::QUEUE_SIZE, Width::Word) => setup.size.into(),
            (common::QUEUE_MSIX_VECTOR, Width::Word) => self.queue_vector().into(),
            // 1 until a queue that was reset has nothing in flight.
            (common::QUEUE_ENABLE, Width::Word) => selectors.is_ready(device).into(),
            (common::QUEUE_NOTIFY_OFF, Width::Word) => {
                // Where a notification arrives makes no difference: those beyond share the last address.
                u64::from(selectors.queue).min(const { QUEUES_MAX as u64 - 1 })
            }
            (common::QUEUE_RESET, Width::Word) => device.is_stopping(selectors.queue).into(),
            (common::QUEUE_DESC..common::QUEUE_NOTIFY_DATA, _) => {
                let addr = match offset & !7 {
                    common::QUEUE_DESC => setup.descriptors,
                    common::QUEUE_DRIVER => setup.driver,
                    _ => setup.device,
                };
                match (offset & 7, width) {
                    (0, Width::Qword) => addr.0,
                    (0, Width::Dword) => addr.0 & 0xffff_ffff,
                    (4, Width::Dword) => addr.0 >> 32,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    fn write_common<M: ?Sized, S: ?Sized>(
        &mut self,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut S,
    ) -> WriteStatus
    where
        D: VirtioDevice<M, S>,
    {
        let [b0, b1, b2, b3, ..] = value.to_le_bytes();
        let (word, dword) = (u16::from_le_bytes([b0, b1]), u32::from_le_bytes([b0, b1, b2, b3]));
        let queue = self.selectors.queue;
        match (offset, width) {
            (common::DEVICE_FEATURE_SELECT, Width::Dword) => self.selectors.device_features = dword,
            (common::DRIVER_FEATURE_SELECT, Width::Dword) => self.selectors.driver_features = dword,
            (common::DRIVER_FEATURE, Width::Dword) => {
                self.selectors.accept(&mut self.device, dword, storage);
            }
            (common::CONFIG_MSIX_VECTOR, Width::Word) => self.config_vector = self.mapped(word),
            (common::DEVICE_STATUS, Width::Byte) => return self.write_status(b0, memory, storage),
            (common::QUEUE_SELECT, Width::Word) => self.selectors.queue = word.into(),
            (common::QUEUE_SIZE, Width::Word) => self.set_size(word),
            (common::QUEUE_MSIX_VECTOR, Width::Word) if self.device.ring(queue).is_some() => {
                self.set_queue_vector(self.mapped(word));
            }
            // 4.1.4.3.2: a driver writes no 0.
            (common::QUEUE_ENABLE, Width::Word) if word == 1 => self.device.enable_queue(queue),
            (common::QUEUE_RESET, Width::Word) if word == 1 && self.has_ring_reset() => {
                self.set_queue_vector(NO_VECTOR);
                return self.device.stop_queue(queue, memory, storage);
            }
            (common::QUEUE_DESC..common::QUEUE_NOTIFY_DATA, _) => self.set_address(offset, width, value),
            _ => {}
        }
        WriteStatus::Done
    }

    /// 4.1.4.3.1: a size is a power of two or 0, which `enable` refuses; what is neither, or too large, is none.
    fn set_size<M: ?Sized, S: ?Sized>(&mut self, size: u16)
    where
        D: VirtioDevice<M, S>,
    {
        let size_max = self.selectors.ring(&self.device).map_or(0, |ring| ring.size_max());
        let size = if size.is_power_of_two() && size <= size_max { size } else { 0 };
        self.selectors.set_up(&mut self.device, |setup| setup.size = size);
    }

    fn set_address<M: ?Sized, S: ?Sized>(&mut self, offset: u64, width: Width, value: u64)
    where
        D: VirtioDevice<M, S>,
    {
        let (low, high) = ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
        self.selectors.set_up(&mut self.device, |setup| {
            let addr = match offset & !7 {
                common::QUEUE_DESC => &mut setup.descriptors,
                common::QUEUE_DRIVER => &mut setup.driver,
                _ => &mut setup.device,
            };
            match (offset & 7, width) {
                (0, Width::Dword) => set_low(addr, low),
                (4, Width::Dword) => set_high(addr, low),
                (0, Width::Qword) => {
                    set_low(addr, low);
                    set_high(addr, high);
                }
                _ => {}
            }
        });
    }

    fn write_status<M: ?Sized, S: ?Sized>(&mut self, value: u8, memory: &M, storage: &mut S) -> WriteStatus
    where
        D: VirtioDevice<M, S>,
    {
        let status = self.device.write_status(value, memory, storage);
        if value == 0 {
            self.reset_registers();
            self.resetting = status == WriteStatus::Pending;
        }
        status
    }

    /// 4.1.4.3: the register exists only if the feature was negotiated.
    fn has_ring_reset<M: ?Sized, S: ?Sized>(&self) -> bool
    where
        D: VirtioDevice<M, S>,
    {
        let agreed = self.device.status().contains(DeviceStatus::FEATURES_OK);
        agreed && self.device.driver_features() & RING_RESET != 0
    }

    /// The device's configuration space: reading it is what makes its generation move.
    fn read_config<M: ?Sized, S: ?Sized>(&mut self, offset: u64, width: Width, storage: &S) -> u64
    where
        D: VirtioDevice<M, S>,
    {
        let now = Some(self.device.config_generation());
        if self.generation.seen != now {
            self.generation = Generation { shown: self.generation.shown.wrapping_add(1), seen: now };
        }
        self.device.read_config(offset, width, storage)
    }
}

impl<D: VirtioType> Endpoint for VirtioPci<D> {
    /// One for each queue and one for the configuration, as far as [`VECTORS_MAX`] reaches.
    const VECTORS: usize = {
        let vectors = D::QUEUES.saturating_add(1);
        if vectors < VECTORS_MAX as usize { vectors } else { VECTORS_MAX as usize }
    };

    fn function(&self) -> Function {
        // VIRTIO 1.3, 4.1.2.1: a device that is not transitional has revision 1 and a subsystem of 40h at least.
        let device = u16::try_from(D::TYPE).map_or(DEVICE_BASE, |device| DEVICE_BASE.wrapping_add(device));
        let identity = Identity {
            vendor: VENDOR,
            device,
            revision: 1,
            class: D::PCI_CLASS,
            subsystem_vendor: VENDOR,
            subsystem: device,
            interrupt_pin: 1,
        };
        // Not prefetchable: reading ISR status has an effect.
        let memory = Bar::Memory64 { bytes: structure::END as u32, prefetchable: false };
        let bars = core::array::from_fn(|n| if n == usize::from(BAR) { memory } else { Bar::Absent });
        let msix = Capability::Msix {
            vectors: self.vectors(),
            table: (BAR, structure::MSIX_TABLE as u32),
            pending: (BAR, structure::MSIX_PENDING as u32),
        };
        let notify_bytes = NOTIFY_OFF_MULTIPLIER.saturating_mul(QUEUES_MAX as u32);
        let capabilities = [
            Some(msix),
            Some(describe(1, structure::COMMON, common::BYTES as u32, None)),
            Some(describe(2, structure::NOTIFY, notify_bytes, Some(NOTIFY_OFF_MULTIPLIER))),
            Some(describe(3, structure::ISR, 1, None)),
            Some(describe(4, structure::DEVICE, 0x1000, None)),
            Some(Capability::VirtioWindow),
            None,
            None,
        ];
        Function { identity, bars, capabilities, specific: [None; 4] }
    }

    fn fault(&self) -> Option<&'static str> {
        self.device.queue_error().map(QueueError::message)
    }

    fn permit(&mut self, permissions: Permissions) {
        self.permissions = permissions;
    }
}

impl<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>> Device<M, S> for VirtioPci<D> {
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        _memory: &M,
        storage: &mut S,
    ) -> Access<u64> {
        if region != Region::Bar(BAR) {
            return Access::quiet(0);
        }
        match offset {
            structure::COMMON..structure::ISR => Access::quiet(self.common(offset, width, storage)),
            // Reading clears it, and takes the interrupt away.
            structure::ISR => {
                let before = self.line();
                let isr = core::mem::take(&mut self.isr);
                Access { value: isr.into(), irq: IrqChange::between(before, self.line()) }
            }
            structure::DEVICE..structure::NOTIFY => {
                let at = offset.wrapping_sub(structure::DEVICE);
                Access::quiet(self.read_config(at, width, storage))
            }
            _ => Access::quiet(0),
        }
    }

    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut S,
    ) -> Access<WriteStatus> {
        if region != Region::Bar(BAR) {
            return Access::quiet(WriteStatus::Done);
        }
        let before = self.line();
        let status = match offset {
            structure::COMMON..structure::ISR => self.write_common(offset, width, value, memory, storage),
            structure::DEVICE..structure::NOTIFY => {
                let at = offset.wrapping_sub(structure::DEVICE);
                self.device.write_config(at, width, value, storage)
            }
            // A notification's work is done by the poll that follows every access.
            _ => WriteStatus::Done,
        };
        let value = if self.rests() { WriteStatus::Done } else { status };
        Access { value, irq: IrqChange::between(before, self.line()) }
    }

    #[inline]
    fn poll(&mut self, memory: &M, storage: &mut S) -> Progress {
        if self.rests() {
            return Progress::default();
        }
        let polled = self.device.poll(memory, storage);
        let pending = self.device.pending() == WriteStatus::Pending;
        self.resetting &= pending;
        Progress { irq: self.signal(polled), again: polled.again, pending_write: pending }
    }

    fn reset(&mut self, memory: &M, storage: &mut S) -> Progress {
        let before = self.line();
        self.reset_registers();
        self.resetting = self.device.reset(memory, storage) == WriteStatus::Pending;
        let irq = IrqChange::between(before, self.line());
        Progress { irq, again: false, pending_write: self.resetting }
    }
}

/// Where a structure is: `struct virtio_pci_cap` behind its length, and the notification structure's multiplier (4.1.4, 4.1.4.4).
fn describe(kind: u8, at: u64, bytes: u32, multiplier: Option<u32>) -> Capability {
    let mut capability = [0; 21];
    let [o0, o1, o2, o3] = (at as u32).to_le_bytes();
    let [l0, l1, l2, l3] = bytes.to_le_bytes();
    let [m0, m1, m2, m3] = multiplier.unwrap_or(0).to_le_bytes();
    let fields = [kind, BAR, 0, 0, 0, o0, o1, o2, o3, l0, l1, l2, l3, m0, m1, m2, m3];
    for (to, from) in capability.iter_mut().zip(fields) {
        *to = from;
    }
    Capability::Vendor { len: if multiplier.is_some() { 17 } else { 13 }, bytes: capability }
}

/// The line of a vector's message, as a bit.
const fn message(vector: u16) -> u32 {
    if vector < VECTORS_MAX { 2_u32.wrapping_shl(vector as u32) } else { 0 }
}
