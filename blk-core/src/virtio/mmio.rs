//! The virtio-mmio transport: register block version 2 (VIRTIO 1.3, 4.2.2), or the legacy version 1 (4.2.4).
//!
//! A register block is one or the other: there is no transitional device over MMIO.

use super::VirtioDevice;
use super::selectors::{Selectors, set_high, set_low};
use crate::bus::{Access, Device, IrqChange, Progress, Quiet, Region, Width, WriteStatus};
use crate::units::GuestAddr;
use crate::virtq::RingSetup;

/// Register offsets: VIRTIO 1.3, 4.2.2 (modern) and 4.2.4 (legacy).
pub mod register {
    /// "virt".
    pub const MAGIC_VALUE: u64 = 0x000;
    /// 2, or 1 in the legacy interface.
    pub const VERSION: u64 = 0x004;
    /// The device type.
    pub const DEVICE_ID: u64 = 0x008;
    /// Who made the device.
    pub const VENDOR_ID: u64 = 0x00c;
    /// 32 bits of the offered features.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which 32.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// 32 bits of the driver's features.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which 32.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Legacy: bytes of the unit of `QUEUE_PFN`.
    pub const GUEST_PAGE_SIZE: u64 = 0x028;
    /// Which queue the queue registers are of.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Most entries; 0 where there is no queue.
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    /// Entries.
    pub const QUEUE_SIZE: u64 = 0x038;
    /// Legacy: alignment of the used ring.
    pub const QUEUE_ALIGN: u64 = 0x03c;
    /// Legacy: the page of the descriptor table; 0 stops the queue.
    pub const QUEUE_PFN: u64 = 0x040;
    /// 1 enables the queue, 0 stops it.
    pub const QUEUE_READY: u64 = 0x044;
    /// There are new chains in the queue of this index.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Bit 0: used buffers. Bit 1: configuration change.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// Clears bits of `INTERRUPT_STATUS`.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// The device status; 0 resets.
    pub const STATUS: u64 = 0x070;
    /// Descriptor table, low half.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Descriptor table, high half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// Driver area, low half.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Driver area, high half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// Device area, low half.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Device area, high half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Length of a shared memory region, of which there are none.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// The last register of the shared memory regions.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// 1 resets the queue (RING_RESET).
    pub const QUEUE_RESET: u64 = 0x0c0;
    /// Changes with the configuration space.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// The configuration space.
    pub const CONFIG: u64 = 0x100;
}

/// `INTERRUPT_STATUS`: used buffers.
pub const INTERRUPT_USED: u32 = 1;
/// `INTERRUPT_STATUS`: configuration change.
pub const INTERRUPT_CONFIG: u32 = 2;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"blkm");

/// A virtio device behind a virtio-mmio register block in [`Region::Bar`]`(0)`. Its one interrupt is line 0, by level.
///
/// Registers are 32 bits wide and taken by [`Width::Dword`] only (4.2.2.2); configuration space takes any width.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Mmio<D> {
    device: D,
    selectors: Selectors,
    interrupt_status: u32,
    legacy: LegacyRegisters,
}

/// Registers of the legacy interface only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
struct LegacyRegisters {
    page_bytes: u32,
    /// Alignment of the used ring. One for all queues: drivers write it before each `QUEUE_PFN`.
    align: u32,
}

impl LegacyRegisters {
    const RESET: Self = Self { page_bytes: 0, align: 0 };
}

impl<D: Quiet> Quiet for Mmio<D> {
    fn is_quiet(&self) -> bool {
        self.device.is_quiet()
    }
}

#[cfg(feature = "snapshot")]
impl<D: crate::snapshot::Snapshot> crate::snapshot::Snapshot for Mmio<D> {
    const KIND: crate::snapshot::Kind = D::KIND.behind(*b"MMIO");
}

impl<D> Mmio<D> {
    /// Puts a device after power-on behind registers.
    #[must_use]
    pub const fn new(device: D) -> Self {
        Self { device, selectors: Selectors::RESET, interrupt_status: 0, legacy: LegacyRegisters::RESET }
    }

    /// The device behind the registers.
    #[must_use]
    pub const fn device(&self) -> &D {
        &self.device
    }

    /// The device behind the registers, for a host that polls its queues on threads of their own.
    pub const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Notes that a queue which the embedder polled wants an interrupt.
    pub const fn raise_used(&mut self) -> IrqChange {
        self.raise(INTERRUPT_USED)
    }

    const fn line(&self) -> u32 {
        (self.interrupt_status != 0) as u32
    }

    const fn raise(&mut self, bits: u32) -> IrqChange {
        let before = self.line();
        self.interrupt_status |= bits;
        IrqChange::between(before, self.line())
    }

    /// A register's value.
    fn register<M: ?Sized, S: ?Sized>(&self, offset: u64, storage: &S) -> u32
    where
        D: VirtioDevice<M, S>,
    {
        let (device, selectors) = (&self.device, &self.selectors);
        let legacy = device.is_legacy();
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION if legacy => 1,
            register::VERSION => 2,
            register::DEVICE_ID => D::TYPE,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => selectors.offered(device, storage),
            register::QUEUE_SIZE_MAX => selectors.ring(device).map_or(0, |ring| u32::from(ring.size_max())),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => u32::from(device.status().bits()),
            // 2.10: a length of all ones says that there is no such region.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH if !legacy => u32::MAX,
            // 1 until a queue that was stopped has nothing in flight.
            register::QUEUE_READY if !legacy => u32::from(selectors.is_ready(device)),
            register::QUEUE_RESET if !legacy => u32::from(device.is_stopping(selectors.queue)),
            register::CONFIG_GENERATION if !legacy => device.config_generation(),
            register::QUEUE_PFN if legacy => self.queue_pfn(),
            _ => 0,
        }
    }

    /// Writes a register.
    fn write_register<M: ?Sized, S: ?Sized>(
        &mut self,
        offset: u64,
        value: u32,
        memory: &M,
        storage: &mut S,
    ) -> WriteStatus
    where
        D: VirtioDevice<M, S>,
    {
        match offset {
            register::DEVICE_FEATURES_SEL => self.selectors.device_features = value,
            register::DRIVER_FEATURES_SEL => self.selectors.driver_features = value,
            register::DRIVER_FEATURES => self.selectors.accept(&mut self.device, value, storage),
            register::QUEUE_SEL => self.selectors.queue = value,
            // A size that does not fit 16 bits is no size: `enable` refuses 0.
            register::QUEUE_SIZE => self.set_up(|setup| setup.size = u16::try_from(value).unwrap_or(0)),
            // Work is done by the poll that follows every access.
            register::QUEUE_NOTIFY => {}
            register::INTERRUPT_ACK => self.interrupt_status &= !value,
            // Bits beyond the status's eight are not there.
            register::STATUS => return self.write_status((value & 0xff) as u8, memory, storage),
            _ if self.device.is_legacy() => return self.write_legacy(offset, value, memory, storage),
            _ => return self.write_modern(offset, value, memory, storage),
        }
        WriteStatus::Done
    }

    fn write_modern<M: ?Sized, S: ?Sized>(
        &mut self,
        offset: u64,
        value: u32,
        memory: &M,
        storage: &mut S,
    ) -> WriteStatus
    where
        D: VirtioDevice<M, S>,
    {
        match offset {
            register::QUEUE_READY if value & 1 != 0 => self.device.enable_queue(self.selectors.queue),
            register::QUEUE_READY => return self.device.stop_queue(self.selectors.queue, memory, storage),
            register::QUEUE_RESET if value & 1 != 0 => {
                return self.device.stop_queue(self.selectors.queue, memory, storage);
            }
            _ => self.set_up(|setup| match offset {
                register::QUEUE_DESC_LOW => set_low(&mut setup.descriptors, value),
                register::QUEUE_DESC_HIGH => set_high(&mut setup.descriptors, value),
                register::QUEUE_DRIVER_LOW => set_low(&mut setup.driver, value),
                register::QUEUE_DRIVER_HIGH => set_high(&mut setup.driver, value),
                register::QUEUE_DEVICE_LOW => set_low(&mut setup.device, value),
                register::QUEUE_DEVICE_HIGH => set_high(&mut setup.device, value),
                _ => {}
            }),
        }
        WriteStatus::Done
    }

    fn write_legacy<M: ?Sized, S: ?Sized>(
        &mut self,
        offset: u64,
        value: u32,
        memory: &M,
        storage: &mut S,
    ) -> WriteStatus
    where
        D: VirtioDevice<M, S>,
    {
        match offset {
            register::GUEST_PAGE_SIZE => self.legacy.page_bytes = value,
            register::QUEUE_ALIGN => self.legacy.align = value,
            register::QUEUE_PFN if value == 0 => {
                return self.device.stop_queue(self.selectors.queue, memory, storage);
            }
            register::QUEUE_PFN => {
                let LegacyRegisters { page_bytes, align } = self.legacy;
                self.set_up(|setup| legacy_layout(setup, value, page_bytes, align));
                self.device.enable_queue(self.selectors.queue);
            }
            _ => {}
        }
        WriteStatus::Done
    }

    fn write_status<M: ?Sized, S: ?Sized>(&mut self, value: u8, memory: &M, storage: &mut S) -> WriteStatus
    where
        D: VirtioDevice<M, S>,
    {
        if value == 0 {
            self.reset_registers();
        }
        self.device.write_status(value, memory, storage)
    }

    fn reset_registers(&mut self) {
        self.selectors = Selectors::RESET;
        self.interrupt_status = 0;
        self.legacy = LegacyRegisters::RESET;
    }

    /// Changes the setup of the selected queue, if it is there and not enabled.
    fn set_up<M: ?Sized, S: ?Sized>(&mut self, change: impl FnOnce(&mut RingSetup))
    where
        D: VirtioDevice<M, S>,
    {
        self.selectors.set_up(&mut self.device, change);
    }

    fn queue_pfn<M: ?Sized, S: ?Sized>(&self) -> u32
    where
        D: VirtioDevice<M, S>,
    {
        let enabled = self.selectors.ring(&self.device).filter(|ring| ring.is_enabled());
        let page = enabled
            .and_then(|ring| ring.setup().descriptors.0.checked_div(u64::from(self.legacy.page_bytes)));
        page.and_then(|page| u32::try_from(page).ok()).unwrap_or(0)
    }
}

impl<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>> Device<M, S> for Mmio<D> {
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        _memory: &M,
        storage: &mut S,
    ) -> Access<u64> {
        if region != Region::Bar(0) {
            return Access::quiet(0);
        }
        Access::quiet(match offset.checked_sub(register::CONFIG) {
            Some(offset) => self.device.read_config(offset, width, storage),
            None if width == Width::Dword => u64::from(self.register(offset, storage)),
            None => 0,
        })
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
        if region != Region::Bar(0) {
            return Access::quiet(WriteStatus::Done);
        }
        let before = self.line();
        let status = match offset.checked_sub(register::CONFIG) {
            Some(offset) => self.device.write_config(offset, width, value, storage),
            None if width == Width::Dword => {
                let value = u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
                self.write_register(offset, value, memory, storage)
            }
            None => WriteStatus::Done,
        };
        Access { value: status, irq: IrqChange::between(before, self.line()) }
    }

    #[inline]
    fn poll(&mut self, memory: &M, storage: &mut S) -> Progress {
        let polled = self.device.poll(memory, storage);
        let used = if polled.used == 0 { 0 } else { INTERRUPT_USED };
        let changed = if polled.changed { INTERRUPT_CONFIG } else { 0 };
        Progress {
            irq: self.raise(used | changed),
            again: polled.again,
            pending_write: self.device.pending() == WriteStatus::Pending,
        }
    }

    fn reset(&mut self, memory: &M, storage: &mut S) -> Progress {
        let before = self.line();
        self.reset_registers();
        let pending = self.device.reset(memory, storage);
        Progress {
            irq: IrqChange::between(before, self.line()),
            again: false,
            pending_write: pending == WriteStatus::Pending,
        }
    }
}

/// The legacy ring, one contiguous piece (2.7.2): descriptors, available ring with its event, then, aligned, the used
/// ring. An alignment that is no power of two leaves a setup that `enable` refuses.
fn legacy_layout(setup: &mut RingSetup, page: u32, page_bytes: u32, align: u32) {
    let align = u64::from(align);
    let size = u64::from(setup.size);
    let descriptors = u64::from(page).saturating_mul(u64::from(page_bytes));
    let driver = descriptors.saturating_add(size.saturating_mul(16));
    let end = driver.saturating_add(size.saturating_mul(2)).saturating_add(6);
    let device = match align.checked_sub(1) {
        Some(mask) if align.is_power_of_two() => end.saturating_add(mask) & !mask,
        _ => u64::MAX,
    };
    setup.descriptors = GuestAddr(descriptors);
    setup.driver = GuestAddr(driver);
    setup.device = GuestAddr(device);
}
