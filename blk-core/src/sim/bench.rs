//! A bench for tests of one virtio device: registers and rings that a test writes by hand, with whatever it likes.

use std::vec;
use std::vec::Vec;

use crate::bus::{Device as _, IrqChange, Progress, Region, Width, WriteStatus};
use crate::memory::GuestMemory;
use crate::sim::driver::put;
use crate::sim::virtio::{DriverRing, Piece, RingLayout, Transport, put_descriptor};
use crate::units::GuestAddr;
use crate::virtio::mmio::register;

/// A ring of the bench's driver.
#[derive(Clone, Copy, Debug)]
pub struct BenchRing {
    layout: RingLayout,
    ring: DriverRing,
    /// The free-running number of the next descriptor.
    next: u16,
}

impl BenchRing {
    /// A ring that is not set up.
    #[must_use]
    pub fn new(layout: RingLayout) -> Self {
        Self { layout, ring: DriverRing::default(), next: 0 }
    }

    /// The free-running number of the descriptor that the next chain begins with.
    #[must_use]
    pub const fn next(&self) -> u16 {
        self.next
    }
}

/// A device, its memory and its storage, and a driver's rings.
///
/// # Panics
/// Its methods panic where there is no memory, no such ring, or no such register.
pub trait Bench {
    /// Guest memory.
    type Memory: GuestMemory;
    /// What the device works on.
    type Storage: ?Sized;
    /// The device.
    type Device: Transport<Self::Memory, Self::Storage>;

    /// What an access needs.
    fn parts(&mut self) -> (&mut Self::Device, &Self::Memory, &mut Self::Storage);

    /// Guest memory.
    fn memory(&self) -> &Self::Memory;

    /// The rings, and the memory that they are in.
    fn rings(&mut self) -> (&mut [BenchRing], &Self::Memory);

    /// Takes note of interrupt lines that changed.
    fn hear(&mut self, irq: IrqChange) {
        let _ = irq;
    }

    /// Reads anywhere.
    fn load(&mut self, region: Region, offset: u64, width: Width) -> u64 {
        let (device, memory, storage) = self.parts();
        let access = device.read(region, offset, width, memory, storage);
        self.hear(access.irq);
        access.value
    }

    /// Writes anywhere.
    fn store(&mut self, region: Region, offset: u64, width: Width, value: u64) -> WriteStatus {
        let (device, memory, storage) = self.parts();
        let access = device.write(region, offset, width, value, memory, storage);
        self.hear(access.irq);
        access.value
    }

    /// Reads in BAR 0.
    fn read(&mut self, offset: u64, width: Width) -> u64 {
        self.load(Region::Bar(0), offset, width)
    }

    /// Writes in BAR 0.
    fn write(&mut self, offset: u64, width: Width, value: u64) -> WriteStatus {
        self.store(Region::Bar(0), offset, width, value)
    }

    /// Reads a register.
    fn get(&mut self, register: u64) -> u32 {
        let (offset, width) = Self::Device::place(register);
        self.read(offset, width) as u32
    }

    /// Writes a register, whatever comes of it.
    fn set(&mut self, register: u64, value: u32) {
        let _ = self.try_set(register, value);
    }

    /// Writes registers one after the other, whatever comes of it.
    fn set_all(&mut self, registers: &[(u64, u32)]) {
        registers.iter().for_each(|&(register, value)| self.set(register, value));
    }

    /// Writes a register.
    fn try_set(&mut self, register: u64, value: u32) -> WriteStatus {
        let (offset, width) = Self::Device::place(register);
        self.write(offset, width, value.into())
    }

    /// Clears a ring's memory, and begins anew.
    fn clear_ring(&mut self, ring: usize) -> RingLayout {
        let (rings, memory) = self.rings();
        let layout = rings[ring].layout;
        rings[ring] = BenchRing::new(layout);
        let end = layout.device + 6 + 8 * u64::from(layout.entries);
        put(memory, layout.descriptors, &vec![0; (end - layout.descriptors) as usize]);
        layout
    }

    /// Clears a ring, and enables its queue.
    fn set_up_ring(&mut self, ring: usize) {
        let layout = self.clear_ring(ring);
        self.set_all(&layout.set_up(ring as u32));
    }

    /// Polls until the device rests.
    fn poll(&mut self) -> Progress {
        loop {
            let (device, memory, storage) = self.parts();
            let progress = device.poll(memory, storage);
            self.hear(progress.irq);
            if !progress.again {
                return progress;
            }
        }
    }

    /// Writes memory.
    fn put(&self, at: u64, bytes: &[u8]) {
        put(self.memory(), at, bytes);
    }

    /// Reads memory.
    fn fetch(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory().read(GuestAddr(at), &mut bytes).expect("it is memory");
        bytes
    }

    /// Writes a descriptor of any table.
    fn descriptor(&self, table: u64, index: u16, piece: Piece, next: u16) {
        put_descriptor(self.memory(), table, index, piece, next);
    }

    /// Makes a chain of `pieces` available, and returns its head.
    fn offer(&mut self, ring: usize, pieces: &[Piece]) -> u16 {
        let (rings, memory) = self.rings();
        let BenchRing { layout, ring: indices, next } = &mut rings[ring];
        let head = *next % layout.entries;
        *next += pieces.len() as u16;
        indices.offer(memory, layout, head, pieces);
        self.set(register::QUEUE_NOTIFY, ring as u32);
        head
    }

    /// Makes whatever is at `head` available.
    fn offer_head(&mut self, ring: usize, head: u16) {
        let (rings, memory) = self.rings();
        let BenchRing { layout, ring: indices, .. } = &mut rings[ring];
        indices.offer_head(memory, layout, head);
        self.set(register::QUEUE_NOTIFY, ring as u32);
    }

    /// The used ring's next element: head and length.
    fn reap(&mut self, ring: usize) -> Option<(u16, u32)> {
        let (rings, memory) = self.rings();
        let BenchRing { layout, ring: indices, .. } = &mut rings[ring];
        indices.take_used(memory, layout).map(|(head, written)| (head as u16, written))
    }
}
