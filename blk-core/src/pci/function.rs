//! Description of a function by its front: what it is, its base address registers, its capabilities (PCI 3.0, 6.2).

use super::capability::Capability;

/// Base address registers of a type 0 header.
pub(super) const BARS: usize = 6;
/// Vendor ID of no vendor (6.2.1).
pub(super) const NO_VENDOR: u16 = 0xffff;
/// Where capabilities and device-specific registers begin: behind the header.
const HEADER_END: u8 = 0x40;

/// Identity of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass, programming interface: the high, middle and low byte.
    pub class: u32,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Interrupt pin, 1 for INTA#; 0 for none.
    pub interrupt_pin: u8,
}

impl Identity {
    /// PIIX3 IDE, both channels in compatibility mode only (class code 010180h).
    pub const PIIX3_IDE: Self = Self::intel(0x7010, 0x00, 0x01_0180, 0);
    /// PIIX4 IDE, the same.
    pub const PIIX4_IDE: Self = Self::intel(0x7111, 0x01, 0x01_0180, 0);
    /// PIIX3 IDE with both channels in native mode, which INTA# serves (class code 010185h).
    pub const PIIX3_IDE_NATIVE: Self = Self::intel(0x7010, 0x00, 0x01_0185, 1);
    /// PIIX4 IDE, the same.
    pub const PIIX4_IDE_NATIVE: Self = Self::intel(0x7111, 0x01, 0x01_0185, 1);
    /// ICH9 AHCI (class code 010601h).
    pub const ICH9_AHCI: Self = Self::intel(0x2922, 0x02, 0x01_0601, 1);

    const fn intel(device: u16, revision: u8, class: u32, interrupt_pin: u8) -> Self {
        Self { vendor: 0x8086, device, revision, class, subsystem_vendor: 0, subsystem: 0, interrupt_pin }
    }
}

/// A base address register (PCI 3.0, 6.2.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Bar {
    /// None: reads as zeroes.
    #[default]
    Absent,
    /// Ports: `bytes` is a power of two, 4 to 256.
    Io {
        /// Size.
        bytes: u32,
    },
    /// Memory below 4 GiB, not prefetchable: `bytes` is a power of two, 16 at least.
    Memory32 {
        /// Size.
        bytes: u32,
    },
    /// Memory anywhere. The next BAR holds the upper half of the address, and is to be [`Bar::Absent`].
    Memory64 {
        /// Size: a power of two, 16 at least.
        bytes: u32,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// Description of a function by its front.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct Function {
    /// Identity.
    pub identity: Identity,
    /// Base address registers.
    pub bars: [Bar; BARS],
    /// Capabilities, in the order of the list, of which `None` is no part.
    pub capabilities: [Option<Capability>; 8],
    /// Registers of the device's own from 40h on: (offset, value after reset, writable bits). A capability is placed
    /// behind the last of them.
    pub specific: [Option<(u8, u32, u32)>; 4],
}

impl Function {
    /// What is read where no function is.
    pub(super) const NONE: Self = {
        let identity = Identity {
            vendor: NO_VENDOR,
            device: 0xffff,
            revision: 0xff,
            class: 0xff_ffff,
            subsystem_vendor: 0xffff,
            subsystem: 0xffff,
            interrupt_pin: 0,
        };
        Self { identity, bars: [Bar::Absent; BARS], capabilities: [None; 8], specific: [None; 4] }
    };

    /// Each capability with its place.
    pub(super) fn places(&self) -> impl Iterator<Item = (usize, &Capability)> {
        let behind = self.specific.iter().flatten().map(|(at, _, _)| at.saturating_add(4));
        let mut at = behind.max().unwrap_or(HEADER_END).max(HEADER_END);
        self.capabilities.iter().flatten().map_while(move |capability| {
            let here = at;
            at = at.checked_add(capability.bytes())?;
            Some((usize::from(here), capability))
        })
    }
}
