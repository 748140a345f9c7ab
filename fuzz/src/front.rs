//! A virtio device behind any of its transports. Registers are named as virtio-mmio names them.

use blk_core::bus::{Access, Device as _, IrqChange, Progress, Region, Width, WriteStatus};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::sim::virtio::place_on_pci;
use blk_core::virtio::VirtioDevice;
use blk_core::virtio::mmio::{INTERRUPT_USED, Mmio, register};
use blk_core::virtio::pci::{ISR_QUEUE, VirtioPci, common, structure};

use crate::disk::Handle;
use crate::memory::Memory;
use crate::ring::Layout;

/// Vectors of the MSI-X table: one for changes, and one for each of four queues.
const VECTORS: usize = 5;
/// COMMAND: memory and bus mastering. MSI-X is the first capability, at 40h.
const COMMAND: u64 = 4;
const MEMORY_SPACE: u64 = 2;
const BUS_MASTER: u64 = 4;
const MSIX_CONTROL: u64 = 0x42;

/// How the guest reaches the device, and is interrupted by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// virtio-mmio.
    Mmio,
    /// virtio-pci with its pin.
    Pin,
    /// virtio-pci with MSI-X.
    Messages,
}

enum Bus<D> {
    Mmio(Box<Mmio<D>>),
    Pci(Box<PciFunction<VirtioPci<D>, VECTORS>>),
}

/// The device.
pub struct Front<D> {
    bus: Bus<D>,
    way: Way,
    bus_master: bool,
    /// Bit n: message n was due.
    messages: u32,
}

/// Guest memory and storage, as they come in with each call.
pub struct World<'a> {
    /// Memory.
    pub memory: &'a Memory,
    /// The handles that the device works on.
    pub disks: &'a mut [Handle],
}

impl<D: VirtioDevice<Memory, [Handle]>> Front<D> {
    /// A device after power-on.
    pub fn new(device: D, way: Way) -> Self {
        let bus = match way {
            Way::Mmio => Bus::Mmio(Box::new(Mmio::new(device))),
            Way::Pin | Way::Messages => {
                Bus::Pci(Box::new(PciFunction::new(VirtioPci::new(device), MsixOwner::Function)))
            }
        };
        Self { bus, way, bus_master: way == Way::Mmio, messages: 0 }
    }

    /// What is behind the transport.
    pub fn device(&self) -> &D {
        match &self.bus {
            Bus::Mmio(transport) => transport.device(),
            Bus::Pci(function) => function.device().device(),
        }
    }

    /// What is behind the transport.
    pub fn device_mut(&mut self) -> &mut D {
        match &mut self.bus {
            Bus::Mmio(transport) => transport.device_mut(),
            Bus::Pci(function) => function.device_mut().device_mut(),
        }
    }

    /// Any place among the registers, of which those of virtio-pci are in pages of their own, and a width.
    pub fn anywhere(&self, offset: u16, width: u8) -> (u64, Width) {
        let within = u64::from(offset) % 0x200;
        let page = if self.way == Way::Mmio { 0 } else { u64::from(offset) / 0x200 % 8 * structure::ISR };
        (page + within, Width::from_bytes(1 << (width % 4)).expect("a width"))
    }

    /// Lets the device work: what a machine's firmware and a driver write into configuration space.
    pub fn enable(&mut self, mut world: World<'_>) {
        self.messages = 0;
        self.set_bus_master(&mut world, true);
        if self.way == Way::Messages {
            self.write_at(&mut world, Region::Config, (MSIX_CONTROL, Width::Word), 1 << 15);
            for vector in 0..VECTORS as u64 {
                let control = structure::MSIX_TABLE + 16 * vector + 12;
                self.write_at(&mut world, Region::Bar(0), (control, Width::Dword), 0);
            }
        }
    }

    /// Lets the device access memory, or forbids it, where the transport can.
    pub fn set_bus_master(&mut self, world: &mut World<'_>, on: bool) {
        if self.way == Way::Mmio {
            return;
        }
        self.bus_master = on;
        let command = MEMORY_SPACE | if on { BUS_MASTER } else { 0 };
        self.write_at(world, Region::Config, (COMMAND, Width::Word), command);
    }

    /// Whether the device may access memory.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master
    }

    /// Writes anything into PCI configuration space, and reads it.
    pub fn configure(&mut self, world: &mut World<'_>, offset: u8, width: u8, value: u32) {
        let at = (u64::from(offset), Width::from_bytes(1 << (width % 4)).expect("a width"));
        let _ = self.write_at(world, Region::Config, at, value.into());
        self.read_at(world, Region::Config, at);
    }

    /// Sets up the queue at `index` as VIRTIO 1.3, 4.2.3.2, has it.
    pub fn bring_up_queue(&mut self, world: &mut World<'_>, index: usize, layout: &Layout, entries: u16) {
        let setup = layout.setup();
        let mut set = |register, value| {
            let _ = self.write(world, register, Width::Dword, value);
        };
        set(register::QUEUE_SEL, index as u64);
        set(register::QUEUE_SIZE, entries.into());
        set(register::QUEUE_DESC_LOW, setup.descriptors.0);
        set(register::QUEUE_DRIVER_LOW, setup.driver.0);
        set(register::QUEUE_DEVICE_LOW, setup.device.0);
        self.give_vector(world, index);
        let _ = self.write(world, register::QUEUE_READY, Width::Dword, 1);
    }

    /// Gives the selected queue, number `queue`, its vector.
    fn give_vector(&mut self, world: &mut World<'_>, queue: usize) {
        if self.way == Way::Messages {
            let at = (common::QUEUE_MSIX_VECTOR, Width::Word);
            self.write_at(world, Region::Bar(0), at, queue as u64 + 1);
            let access = self.read_at(world, Region::Bar(0), at);
            assert_eq!(access.value, queue as u64 + 1, "there is a vector for each queue");
        }
    }

    /// Reads a register, or configuration space at any width.
    pub fn read(&mut self, world: &mut World<'_>, register: u64, width: Width) -> u64 {
        let at = self.place(register, width);
        self.read_at(world, Region::Bar(0), at).value
    }

    /// Writes a register, or configuration space at any width.
    pub fn write(
        &mut self,
        world: &mut World<'_>,
        register: u64,
        width: Width,
        value: u64,
    ) -> Access<WriteStatus> {
        let at = self.place(register, width);
        self.write_at(world, Region::Bar(0), at, value)
    }

    /// Reads anywhere.
    pub fn read_at(
        &mut self,
        world: &mut World<'_>,
        region: Region,
        (offset, width): (u64, Width),
    ) -> Access<u64> {
        let access = match &mut self.bus {
            Bus::Mmio(device) => device.read(region, offset, width, world.memory, world.disks),
            Bus::Pci(device) => device.read(region, offset, width, world.memory, world.disks),
        };
        self.hear(access.irq);
        access
    }

    /// Writes anywhere.
    pub fn write_at(
        &mut self,
        world: &mut World<'_>,
        region: Region,
        (offset, width): (u64, Width),
        value: u64,
    ) -> Access<WriteStatus> {
        let access = match &mut self.bus {
            Bus::Mmio(device) => device.write(region, offset, width, value, world.memory, world.disks),
            Bus::Pci(device) => device.write(region, offset, width, value, world.memory, world.disks),
        };
        self.hear(access.irq);
        access
    }

    /// Polls once.
    pub fn poll(&mut self, world: World<'_>) -> Progress {
        let progress = match &mut self.bus {
            Bus::Mmio(device) => device.poll(world.memory, world.disks),
            Bus::Pci(device) => device.poll(world.memory, world.disks),
        };
        self.hear(progress.irq);
        progress
    }

    /// The machine's reset.
    pub fn reset(&mut self, world: World<'_>) {
        match &mut self.bus {
            Bus::Mmio(device) => device.reset(world.memory, world.disks),
            Bus::Pci(device) => device.reset(world.memory, world.disks),
        };
    }

    /// The queues for which an interrupt may have come since the last time, as bits; it is acknowledged.
    pub fn take_interrupts(&mut self, world: &mut World<'_>) -> u32 {
        let raised = match self.way {
            Way::Messages => return std::mem::take(&mut self.messages) >> 1,
            Way::Mmio => {
                let raised =
                    self.read(world, register::INTERRUPT_STATUS, Width::Dword) as u32 & INTERRUPT_USED;
                let _ = self.write(world, register::INTERRUPT_ACK, Width::Dword, u64::from(raised));
                raised
            }
            Way::Pin => {
                self.read_at(world, Region::Bar(0), (structure::ISR, Width::Byte)).value as u32
                    & u32::from(ISR_QUEUE)
            }
        };
        if raised == 0 { 0 } else { u32::MAX }
    }

    fn hear(&mut self, irq: IrqChange) {
        self.messages |= (irq.changed & irq.level) >> 1;
    }

    /// Where a register is, and how wide.
    fn place(&self, register: u64, width: Width) -> (u64, Width) {
        if self.way == Way::Mmio {
            return (register, width);
        }
        match place_on_pci(register) {
            (offset, _) if register >= register::CONFIG => (offset, width),
            place => place,
        }
    }
}
