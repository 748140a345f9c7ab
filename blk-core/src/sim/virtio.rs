//! The driver's side of a virtio device: its registers, on whatever transport, and split rings in guest memory.
//!
//! Written from VIRTIO 1.3, 2.7 and 4.2.3.2; nothing of the device's side is used.

use serde::Serialize;

use crate::bus::{Access, Device, Region, Width, WriteStatus};
use crate::memory::GuestMemory;
use crate::pci::PciFunction;
use crate::sim::driver::{World, get, put};
use crate::units::GuestAddr;
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{INTERRUPT_USED, Mmio, register};
use crate::virtio::pci::{VirtioPci, common, structure};

/// Descriptor flag (2.7.5): another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes the buffer.
pub const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A descriptor: address, length in bytes, flags.
pub type Piece = (u64, u32, u16);

/// Where a ring is.
#[derive(Clone, Copy, Debug)]
pub struct RingLayout {
    /// Entries.
    pub entries: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The driver area: the available ring.
    pub driver: u64,
    /// The device area: the used ring.
    pub device: u64,
}

impl RingLayout {
    /// The writes of registers, in order, that set the queue up and enable it (4.2.3.2).
    #[must_use]
    pub const fn set_up(&self, queue: u32) -> [(u64, u32); 9] {
        [
            (register::QUEUE_SEL, queue),
            (register::QUEUE_SIZE, self.entries as u32),
            (register::QUEUE_DESC_LOW, self.descriptors as u32),
            (register::QUEUE_DESC_HIGH, (self.descriptors >> 32) as u32),
            (register::QUEUE_DRIVER_LOW, self.driver as u32),
            (register::QUEUE_DRIVER_HIGH, (self.driver >> 32) as u32),
            (register::QUEUE_DEVICE_LOW, self.device as u32),
            (register::QUEUE_DEVICE_HIGH, (self.device >> 32) as u32),
            (register::QUEUE_READY, 1),
        ]
    }
}

/// The writes of registers, in order, by which a driver accepts `features`.
#[must_use]
pub const fn accept(features: u64) -> [(u64, u32); 4] {
    [
        (register::DRIVER_FEATURES_SEL, 0),
        (register::DRIVER_FEATURES, features as u32),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, (features >> 32) as u32),
    ]
}

/// How far a driver is in its ring: the free-running indices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DriverRing {
    available: u16,
    used: u16,
}

impl DriverRing {
    /// Writes `chain` into the descriptors from `head` on and makes it available. The driver notifies.
    pub fn offer<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        layout: &RingLayout,
        head: u16,
        chain: &[Piece],
    ) {
        for (index, &(addr, len, flags)) in (0..).zip(chain) {
            let more = if usize::from(index) + 1 < chain.len() { NEXT } else { 0 };
            let at = (head + index) % layout.entries;
            let next = (at + 1) % layout.entries;
            put_descriptor(memory, layout.descriptors, at, (addr, len, flags | more), next);
        }
        self.offer_head(memory, layout, head);
    }

    /// Makes the chain at `head` available, whatever is there.
    ///
    /// # Panics
    /// If the ring is not in memory.
    pub fn offer_head<M: GuestMemory + ?Sized>(&mut self, memory: &M, layout: &RingLayout, head: u16) {
        let entry = 4 + 2 * u64::from(self.available % layout.entries);
        put(memory, layout.driver + entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        let index = GuestAddr(layout.driver + 2);
        memory.store_u16_release(index, self.available).expect("rings are in RAM");
        memory.full_fence();
    }

    /// Takes the next element of the used ring: head, and bytes written.
    ///
    /// # Panics
    /// If the ring is not in memory.
    pub fn take_used<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        layout: &RingLayout,
    ) -> Option<(u32, u32)> {
        let index = memory.load_u16_acquire(GuestAddr(layout.device + 2)).expect("rings are in RAM");
        if index == self.used {
            return None;
        }
        let entry = layout.device + 4 + 8 * u64::from(self.used % layout.entries);
        self.used = self.used.wrapping_add(1);
        let element = u64::from_le_bytes(get(memory, entry));
        Some((element as u32, (element >> 32) as u32))
    }

    /// The index of the next element of the used ring.
    #[must_use]
    pub const fn used(&self) -> u16 {
        self.used
    }

    /// Asks for an interrupt with the next element (EVENT_IDX).
    ///
    /// # Panics
    /// If the ring is not in memory.
    pub fn want_interrupt<M: GuestMemory + ?Sized>(&self, memory: &M, layout: &RingLayout) {
        let event = layout.driver + 4 + 2 * u64::from(layout.entries);
        memory.store_u16_release(GuestAddr(event), self.used).expect("rings are in RAM");
        memory.full_fence();
    }
}

/// Writes descriptor `index` of the table at `table`.
pub fn put_descriptor<M: GuestMemory + ?Sized>(
    memory: &M,
    table: u64,
    index: u16,
    (addr, len, flags): Piece,
    next: u16,
) {
    let low = u128::from(len) << 64 | u128::from(addr);
    let bytes = low | u128::from(flags) << 96 | u128::from(next) << 112;
    put(memory, table + 16 * u64::from(index), &bytes.to_le_bytes());
}

impl<M: ?Sized, S: ?Sized> World<'_, M, S> {
    /// Reads a register of a virtio-mmio device.
    pub fn get(&mut self, device: &mut impl Device<M, S>, offset: u64) -> u32 {
        device.read(Region::Bar(0), offset, Width::Dword, self.memory, self.storage).value as u32
    }

    /// Writes a register of a virtio-mmio device. Status 0 may stay pending, which the poll sees.
    ///
    /// # Panics
    /// If another one does.
    pub fn set(&mut self, device: &mut impl Device<M, S>, offset: u64, value: u32) {
        let access =
            device.write(Region::Bar(0), offset, Width::Dword, value.into(), self.memory, self.storage);
        assert!(access.value == WriteStatus::Done || (offset, value) == (register::STATUS, 0));
    }

    /// Writes registers of a virtio-mmio device, one after the other.
    pub fn set_all(&mut self, device: &mut impl Device<M, S>, registers: &[(u64, u32)]) {
        registers.iter().for_each(|&(offset, value)| self.set(device, offset, value));
    }

    /// Whether a virtio-mmio device has interrupted for what it has used, which is acknowledged.
    pub fn take_interrupt(&mut self, device: &mut impl Device<M, S>) -> bool {
        let raised = self.get(device, register::INTERRUPT_STATUS);
        self.set(device, register::INTERRUPT_ACK, raised);
        raised & INTERRUPT_USED != 0
    }
}

/// A device on a transport, whose registers a driver names as virtio-mmio does.
pub trait Transport<M: ?Sized, S: ?Sized>: Device<M, S> {
    /// Where the register is in BAR 0, and how wide.
    fn place(register: u64) -> (u64, Width);

    /// Reads a register.
    fn get(&mut self, register: u64, memory: &M, storage: &mut S) -> Access<u64> {
        let (offset, width) = Self::place(register);
        self.read(Region::Bar(0), offset, width, memory, storage)
    }

    /// Writes a register.
    fn set(&mut self, register: u64, value: u32, memory: &M, storage: &mut S) -> Access<WriteStatus> {
        let (offset, width) = Self::place(register);
        self.write(Region::Bar(0), offset, width, value.into(), memory, storage)
    }
}

impl<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>> Transport<M, S> for Mmio<D> {
    fn place(register: u64) -> (u64, Width) {
        (register, Width::Dword)
    }
}

impl<M: ?Sized, S: ?Sized, D: VirtioDevice<M, S>, const V: usize> Transport<M, S>
    for PciFunction<VirtioPci<D>, V>
{
    fn place(register: u64) -> (u64, Width) {
        place_on_pci(register)
    }
}

/// Where virtio-pci has what virtio-mmio calls so, in BAR 0, and how wide.
///
/// # Panics
/// If there is no such register on PCI.
#[must_use]
pub fn place_on_pci(register: u64) -> (u64, Width) {
    if let Some(offset) = register.checked_sub(register::CONFIG) {
        return (structure::DEVICE + offset, Width::Dword);
    }
    match register {
        register::DEVICE_FEATURES_SEL => (common::DEVICE_FEATURE_SELECT, Width::Dword),
        register::DEVICE_FEATURES => (common::DEVICE_FEATURE, Width::Dword),
        register::DRIVER_FEATURES_SEL => (common::DRIVER_FEATURE_SELECT, Width::Dword),
        register::DRIVER_FEATURES => (common::DRIVER_FEATURE, Width::Dword),
        register::STATUS => (common::DEVICE_STATUS, Width::Byte),
        register::CONFIG_GENERATION => (common::CONFIG_GENERATION, Width::Byte),
        register::QUEUE_SEL => (common::QUEUE_SELECT, Width::Word),
        register::QUEUE_SIZE_MAX | register::QUEUE_SIZE => (common::QUEUE_SIZE, Width::Word),
        register::QUEUE_READY => (common::QUEUE_ENABLE, Width::Word),
        register::QUEUE_RESET => (common::QUEUE_RESET, Width::Word),
        register::QUEUE_DESC_LOW => (common::QUEUE_DESC, Width::Dword),
        register::QUEUE_DESC_HIGH => (common::QUEUE_DESC + 4, Width::Dword),
        register::QUEUE_DRIVER_LOW => (common::QUEUE_DRIVER, Width::Dword),
        register::QUEUE_DRIVER_HIGH => (common::QUEUE_DRIVER + 4, Width::Dword),
        register::QUEUE_DEVICE_LOW => (common::QUEUE_DEVICE, Width::Dword),
        register::QUEUE_DEVICE_HIGH => (common::QUEUE_DEVICE + 4, Width::Dword),
        register::QUEUE_NOTIFY => (structure::NOTIFY, Width::Word),
        register::INTERRUPT_STATUS => (structure::ISR, Width::Byte),
        _ => panic!("there is no such register on PCI: {register:#x}"),
    }
}
