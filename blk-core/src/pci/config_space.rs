//! The configuration space of a function: a type 0 header and capabilities (PCI 3.0, 6.1 and 6.7).

use bitflags::bitflags;

use super::capability::{Capability, Message};
use super::function::{BARS, Bar, Function, Identity, NO_VENDOR};
use crate::bus::{IrqChange, Width};

/// Bytes of a conventional configuration space.
const BYTES: usize = 256;

mod register {
    pub(super) const COMMAND: usize = 0x04;
    pub(super) const STATUS: usize = 0x06;
    pub(super) const CLASS: usize = 0x08;
    pub(super) const CACHE_LINE: usize = 0x0c;
    pub(super) const LATENCY_TIMER: usize = 0x0d;
    pub(super) const BAR0: usize = 0x10;
    pub(super) const SUBSYSTEM: usize = 0x2c;
    pub(super) const CAPABILITIES: usize = 0x34;
    pub(super) const INTERRUPT_LINE: usize = 0x3c;
    pub(super) const INTERRUPT_PIN: usize = 0x3d;
}

bitflags! {
    /// The command register (PCI 3.0, 6.2.2): the bits that a function here has.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Command: u16 {
        /// Responds to I/O accesses.
        const IO = 1;
        /// Responds to memory accesses.
        const MEMORY = 1 << 1;
        /// May access memory by itself.
        const BUS_MASTER = 1 << 2;
        /// Parity Error Response: kept, without effect.
        const PARITY = 1 << 6;
        /// SERR# Enable: kept, without effect.
        const SERR = 1 << 8;
        /// INTx is not asserted.
        const INTX_DISABLE = 1 << 10;
    }
}

/// STATUS bit 3, Interrupt Status: the level, whatever INTX_DISABLE says (6.2.3).
const STATUS_INTERRUPT: u8 = 1 << 3;
/// STATUS bit 4, Capabilities List.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Changes that a write made, for the embedder that maps and decodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Changed {
    /// BARs were written, or decoding was switched: map [`ConfigSpace::bar`] again.
    pub bars: bool,
    /// The level of the INTx pin.
    pub irq: IrqChange,
}

/// An access that VIRTIO's window stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) bar: u8,
    pub(super) offset: u64,
    pub(super) width: Width,
    /// What is in the data register, of which a write takes the low bytes.
    pub(super) data: u64,
    /// Where that is.
    place: usize,
}

/// A function's configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct ConfigSpace {
    function: Function,
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    bytes: [u8; BYTES],
    places: Places,
    /// The front's interrupt, before INTX_DISABLE.
    level: bool,
}

/// Where the capabilities are that an access may depend on; 0 for one that is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
struct Places {
    msi: u8,
    msix: u8,
    window: u8,
}

impl Places {
    const NONE: Self = Self { msi: 0, msix: 0, window: 0 };

    fn of(function: &Function) -> Self {
        let mut places = Self::NONE;
        for (at, capability) in function.places() {
            let place = match capability {
                Capability::Msi { .. } => &mut places.msi,
                Capability::Msix { .. } => &mut places.msix,
                Capability::VirtioWindow => &mut places.window,
                _ => continue,
            };
            if *place == 0 {
                *place = u8::try_from(at).unwrap_or(0);
            }
        }
        places
    }
}

/// The capability at a place, if it is there.
const fn there(place: u8) -> Option<usize> {
    if place == 0 { None } else { Some(place as usize) }
}

impl ConfigSpace {
    /// The space after power-on. Capabilities that do not fit are left out.
    #[must_use]
    pub fn new(function: Function) -> Self {
        let mut space = Self::off();
        space.power_on(function);
        space
    }

    /// The space of a function without power: reads return ones, writes are ignored.
    #[must_use]
    pub const fn off() -> Self {
        Self { function: Function::NONE, bytes: [0; BYTES], places: Places::NONE, level: false }
    }

    /// Turns the power on: the space is from now on as `function` has it.
    pub fn power_on(&mut self, function: Function) {
        self.function = function;
        self.places = Places::of(&self.function);
        self.reset();
    }

    /// Whether there is a function at all (6.2.1: no vendor has the number FFFFh).
    const fn is_off(&self) -> bool {
        self.function.identity.vendor == NO_VENDOR
    }

    /// The function as it was described.
    #[must_use]
    pub const fn function(&self) -> &Function {
        &self.function
    }

    /// Bus reset: every register as after power-on.
    pub fn reset(&mut self) {
        self.bytes = [0; BYTES];
        self.level = false;
        let Identity { vendor, device, revision, class, subsystem_vendor, subsystem, interrupt_pin } =
            self.function.identity;
        self.put(0, &vendor.to_le_bytes());
        self.put(2, &device.to_le_bytes());
        self.put(register::CLASS, &(class << 8 | u32::from(revision)).to_le_bytes());
        self.put(register::SUBSYSTEM, &subsystem_vendor.to_le_bytes());
        self.put(register::SUBSYSTEM.wrapping_add(2), &subsystem.to_le_bytes());
        self.put(register::INTERRUPT_PIN, &[interrupt_pin]);
        for (n, bar) in (0_u8..).zip(self.function.bars) {
            // 6.2.5.1: bit 0 I/O; bits 2:1 = 10b 64 bits wide; bit 3 prefetchable.
            let flags = match bar {
                Bar::Absent | Bar::Memory32 { .. } => 0,
                Bar::Io { .. } => 1,
                Bar::Memory64 { prefetchable, .. } => 4 | u8::from(prefetchable) << 3,
            };
            self.put(bar_at(n), &[flags]);
        }
        for (at, value, _) in self.function.specific.into_iter().flatten() {
            self.put(at.into(), &value.to_le_bytes());
        }
        self.put_capabilities();
    }

    /// A guest reads at `offset`. What is beyond the space, or not aligned to its width, reads as ones: no device answers.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let Some(range) = range(offset, width).filter(|_| !self.is_off()) else { return width.ones() };
        let mut value = [0; 8];
        for (to, at) in value.iter_mut().zip(range) {
            *to = self.bytes.get(at).copied().unwrap_or(0);
        }
        u64::from_le_bytes(value)
    }

    /// A guest writes at `offset`: the writable bits of it change. What is beyond the space or not aligned is ignored.
    pub fn write(&mut self, offset: u64, width: Width, value: u64) -> Changed {
        let there = range(offset, width).filter(|_| !self.is_off());
        let Some(range) = there else { return Changed::default() };
        let (command, pin) = (self.command(), self.is_asserted());
        let mut bars = false;
        for (at, new) in range.zip(value.to_le_bytes()) {
            let mask = self.writable(at);
            if let Some(byte) = self.bytes.get_mut(at) {
                *byte = *byte & !mask | new & mask;
            }
            bars |= (register::BAR0..bar_at(BARS as u8)).contains(&at);
        }
        let decoding = Command::IO | Command::MEMORY;
        Changed {
            bars: bars || (command ^ self.command()).intersects(decoding),
            irq: IrqChange::between(pin.into(), self.is_asserted().into()),
        }
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::from_bits_truncate(u16::from_le_bytes(self.get(register::COMMAND)))
    }

    /// Where BAR `n` is decoded, if it is: its address, and its size in bytes.
    ///
    /// An address of 0 is an address like any other to the specification, but firmware and systems leave a BAR there that
    /// they did not place; so does one whose end would wrap.
    #[must_use]
    pub fn bar(&self, n: u8) -> Option<(u64, u32)> {
        let low = u32::from_le_bytes(self.get(bar_at(n)));
        let (bytes, decoded, address) = match *self.function.bars.get(usize::from(n))? {
            Bar::Absent => return None,
            Bar::Io { bytes } => (bytes, Command::IO, u64::from(low & !3)),
            Bar::Memory32 { bytes } => (bytes, Command::MEMORY, u64::from(low & !15)),
            Bar::Memory64 { bytes, .. } => {
                let high = u32::from_le_bytes(self.get(bar_at(n.saturating_add(1))));
                (bytes, Command::MEMORY, u64::from(low & !15) | u64::from(high) << 32)
            }
        };
        let placed = address != 0 && address.checked_add(u64::from(bytes)).is_some();
        (placed && self.command().contains(decoded)).then_some((address, bytes))
    }

    /// A register of the device's own, or any other dword, as it stands.
    #[must_use]
    pub fn dword(&self, at: u8) -> u32 {
        u32::from_le_bytes(self.get(usize::from(at & !3)))
    }

    /// Sets the front's interrupt level, and returns what is to be done where INTx is in use. STATUS follows the level.
    pub fn set_level(&mut self, level: bool) -> IrqChange {
        let before = self.is_asserted();
        self.level = level;
        if let Some(status) = self.bytes.get_mut(register::STATUS) {
            *status = *status & !STATUS_INTERRUPT | if level { STATUS_INTERRUPT } else { 0 };
        }
        IrqChange::between(before.into(), self.is_asserted().into())
    }

    /// Whether MSI is enabled.
    #[must_use]
    pub fn msi_enabled(&self) -> bool {
        self.control_of(self.places.msi).is_some_and(|control| control & 1 != 0)
    }

    /// Whether MSI-X is enabled (Message Control bit 15).
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        self.control_of(self.places.msix).is_some_and(|control| control & 1 << 15 != 0)
    }

    /// Whether every MSI-X vector is masked (Message Control bit 14), or bus mastering off, without which no message can be
    /// sent.
    #[must_use]
    pub fn msix_masked(&self) -> bool {
        let masked = self.control_of(self.places.msix).is_some_and(|control| control & 1 << 14 != 0);
        masked || !self.command().contains(Command::BUS_MASTER)
    }

    /// How many messages the guest lets the function tell apart; 0 where neither MSI nor MSI-X is enabled (6.8.1.3, 6.8.2.3).
    #[must_use]
    pub fn messages(&self) -> u16 {
        if self.msix_enabled() {
            let vectors = |capability: &Capability| match *capability {
                Capability::Msix { vectors, .. } => Some(vectors),
                _ => None,
            };
            return self.function.capabilities.iter().flatten().find_map(vectors).unwrap_or(0);
        }
        self.control_of(self.places.msi).filter(|control| control & 1 != 0).map_or(0, allocated)
    }

    /// The message of MSI `vector`. 6.8.1.3, 6.8.1.6: of the vectors that were allocated, in the low bits of the data; one
    /// that was not shares the first.
    #[must_use]
    pub fn msi_message(&self, vector: u16) -> Option<Message> {
        let at = there(self.places.msi)?;
        if !self.command().contains(Command::BUS_MASTER) {
            return None;
        }
        let control = u16::from_le_bytes(self.get(at.wrapping_add(2)));
        let allocated = allocated(control);
        let vector = if vector < allocated { vector } else { 0 };
        let data = u16::from_le_bytes(self.get(at.wrapping_add(12)));
        let address = u64::from_le_bytes(self.get(at.wrapping_add(4)));
        Some(Message { address, data: u32::from(data & !allocated.wrapping_sub(1) | vector) })
    }

    /// What a guest reaches through VIRTIO's window by an access to configuration space, if that meets the window's data.
    pub(super) fn window(&self, offset: u64, width: Width) -> Option<Window> {
        let at = there(self.places.window)?;
        let data = at.wrapping_add(16);
        let [bar] = self.get(at.wrapping_add(4));
        let offset_in_bar = u32::from_le_bytes(self.get(at.wrapping_add(8)));
        let length = u32::from_le_bytes(self.get(at.wrapping_add(12)));
        let in_bar =
            Width::from_bytes(usize::try_from(length).ok()?).filter(|width| *width != Width::Qword)?;
        let met = range(offset, width)?;
        let aligned = offset_in_bar.is_multiple_of(length);
        (aligned && met.start < data.wrapping_add(4) && met.end > data).then(|| Window {
            bar,
            offset: offset_in_bar.into(),
            width: in_bar,
            data: u32::from_le_bytes(self.get(data)).into(),
            place: data,
        })
    }

    /// Puts what was read through the window into its data: as many bytes as were read.
    pub(super) fn fill_window(&mut self, window: &Window, value: u64) {
        let bytes = value.to_le_bytes();
        self.put(window.place, bytes.get(..usize::from(window.width.bytes())).unwrap_or_default());
    }

    /// Message Control of the capability at `place`.
    #[inline]
    fn control_of(&self, place: u8) -> Option<u16> {
        Some(u16::from_le_bytes(self.get(there(place)?.wrapping_add(2))))
    }

    /// Where the MSI-X table and the pending bits are, each a BAR and an offset in it (6.8.2.4, 6.8.2.5).
    #[inline]
    pub(super) fn msix_places(&self) -> Option<[(u8, u32); 2]> {
        let at = there(self.places.msix)?;
        Some([4, 8].map(|slot| {
            let value = u32::from_le_bytes(self.get(at.wrapping_add(slot)));
            ((value & 7) as u8, value & !7)
        }))
    }

    /// Whether the INTx pin is asserted: not if disabled, nor where messages are enabled (6.8.2).
    #[must_use]
    pub fn is_asserted(&self) -> bool {
        let silent =
            self.command().contains(Command::INTX_DISABLE) || self.msi_enabled() || self.msix_enabled();
        self.level && !silent && self.function.identity.interrupt_pin != 0
    }

    fn put_capabilities(&mut self) {
        let mut link = register::CAPABILITIES;
        for (at, capability) in self.function.places() {
            let mut put = |at, from: &[u8]| put(&mut self.bytes, at, from);
            put(link, &[u8::try_from(at).unwrap_or(0)]);
            put(at, &[capability.id()]);
            let body = at.wrapping_add(2);
            match *capability {
                // PCI PM 1.2, 3.2.3: PMC version 3, no PME. 3.2.4: PMCSR bit 3, No_Soft_Reset.
                Capability::PowerManagement => {
                    put(body, &[3, 0]);
                    put(body.wrapping_add(2), &[1 << 3]);
                }
                // 6.8.1.3: 64-bit address capable (bit 7), Multiple Message Capable (bits 3:1).
                Capability::Msi { vectors_log2 } => put(body, &[1 << 7 | vectors_log2.min(5) << 1]),
                // 6.8.2.3: N - 1. 6.8.2.4, 6.8.2.5: BIR in the low three bits of the offsets.
                Capability::Msix { vectors, table, pending } => {
                    put(body, &vectors.saturating_sub(1).min(2047).to_le_bytes());
                    for (slot, (bar, offset)) in [(4, table), (8, pending)] {
                        let value = offset & !7 | u32::from(bar & 7);
                        put(at.wrapping_add(slot), &value.to_le_bytes());
                    }
                }
                Capability::Vendor { len, bytes } => {
                    let len = len.min(21);
                    put(body, &[len.saturating_add(3)]);
                    let bytes = bytes.get(..usize::from(len)).unwrap_or_default();
                    put(at.wrapping_add(3), bytes);
                }
                // VIRTIO 1.3, 4.1.4: length, type; the rest is the guest's.
                Capability::VirtioWindow => put(body, &[20, 5]),
                // AHCI 1.3.1, 2.4.2 and 2.4.3: revision 1.0.
                Capability::Sata { location } => {
                    put(body, &[0x10]);
                    put(at.wrapping_add(4), &location.to_le_bytes());
                }
            }
            if let Some(status) = self.bytes.get_mut(register::STATUS) {
                *status |= STATUS_CAPABILITIES;
            }
            link = at.wrapping_add(1);
        }
    }

    /// The bits of the byte at `at` that a guest can change.
    fn writable(&self, at: usize) -> u8 {
        match at {
            0x04 | 0x05 => {
                let [low, high] = Command::all().bits().to_le_bytes();
                if at == 0x04 { low } else { high }
            }
            register::CACHE_LINE | register::LATENCY_TIMER | register::INTERRUPT_LINE => 0xff,
            0x10..0x28 => {
                let place = at.wrapping_sub(register::BAR0);
                let [b0, b1, b2, b3] = self.bar_writable(place >> 2).to_le_bytes();
                [b0, b1, b2, b3].get(place & 3).copied().unwrap_or(0)
            }
            0x40.. => self.specific_writable(at) | self.capability_writable(at),
            _ => 0,
        }
    }

    /// The address bits of a BAR: what it decodes reads back as 0, by which it is sized.
    fn bar_writable(&self, n: usize) -> u32 {
        let below = n.checked_sub(1).and_then(|below| self.function.bars.get(below));
        match (self.function.bars.get(n), below) {
            (Some(Bar::Absent), Some(Bar::Memory64 { .. })) => u32::MAX,
            (Some(Bar::Io { bytes }), _) => !bytes.saturating_sub(1) & !3,
            (Some(Bar::Memory32 { bytes } | Bar::Memory64 { bytes, .. }), _) => {
                !bytes.saturating_sub(1) & !15
            }
            _ => 0,
        }
    }

    fn specific_writable(&self, at: usize) -> u8 {
        let found = self.function.specific.iter().flatten().find_map(|(start, _, mask)| {
            let place = at.checked_sub(usize::from(*start))?;
            mask.to_le_bytes().get(place).copied()
        });
        found.unwrap_or(0)
    }

    fn capability_writable(&self, at: usize) -> u8 {
        let found = self.function.places().find_map(|(start, capability)| {
            let place = at.checked_sub(start)?;
            (place < usize::from(capability.bytes())).then_some((capability, place))
        });
        match found {
            // PMCSR bits 1:0: the power state. Kept: the device works in any (PCI PM 1.2, 3.2.4).
            Some((Capability::PowerManagement, 4)) => 0b11,
            // 6.8.1.3: MSI Enable (bit 0), Multiple Message Enable (bits 6:4).
            Some((Capability::Msi { .. }, 2)) => 0x71,
            // 6.8.1.4: the address is dword-aligned.
            Some((Capability::Msi { .. }, 4)) => 0xfc,
            Some((Capability::Msi { .. }, 5..=13)) => 0xff,
            // 6.8.2.3: MSI-X Enable (bit 15), Function Mask (bit 14).
            Some((Capability::Msix { .. }, 3)) => 0xc0,
            // VIRTIO 1.3, 4.1.4.9: BAR, offset, length, data.
            Some((Capability::VirtioWindow, 4 | 8..=19)) => 0xff,
            _ => 0,
        }
    }

    fn get<const L: usize>(&self, at: usize) -> [u8; L] {
        let slice = at.checked_add(L).and_then(|end| self.bytes.get(at..end));
        slice.and_then(|slice| slice.try_into().ok()).unwrap_or([0; L])
    }

    /// Places bytes as the device has them, whatever a guest could write.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        put(&mut self.bytes, at, bytes);
    }
}

fn put(space: &mut [u8; BYTES], at: usize, bytes: &[u8]) {
    for (to, from) in space.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The bytes of an access, if it lies in the space and is aligned.
fn range(offset: u64, width: Width) -> Option<core::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let bytes = usize::from(width.bytes());
    let end = start.checked_add(bytes)?;
    (end <= BYTES && start.is_multiple_of(bytes)).then_some(start..end)
}

/// Messages that Message Control of MSI says are allocated, of those that there are (6.8.1.3).
fn allocated(control: u16) -> u16 {
    1_u16.wrapping_shl(u32::from(control >> 4 & 7).min(u32::from(control >> 1 & 7)))
}

const fn bar_at(n: u8) -> usize {
    (n as usize).saturating_mul(4).saturating_add(register::BAR0)
}
