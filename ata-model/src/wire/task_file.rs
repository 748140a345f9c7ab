//! The command block and control block registers (ATA/ATAPI-7 volume 1, register definitions).

use bitflags::bitflags;

bitflags! {
    /// The Status and Alternate Status registers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct Status: u8 {
        /// The command ended with an error; see the Error register.
        const ERR = 0x01;
        /// The device is ready to move data.
        const DRQ = 0x08;
        /// Seek complete, as up to ATA-3; guests of that time wait for it.
        const DSC = 0x10;
        /// Device fault.
        const DF = 0x20;
        /// Device ready.
        const DRDY = 0x40;
        /// Busy: no other register means anything.
        const BSY = 0x80;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Status {
    const POSTCARD_MAX_SIZE: usize = u8::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for Status {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

bitflags! {
    /// The Error register after a command that failed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct ErrorBits: u8 {
        /// The command was aborted.
        const ABRT = 0x04;
        /// An address was not found, or is beyond the end of the disk.
        const IDNF = 0x10;
        /// The data could not be read.
        const UNC = 0x40;
        /// The interface corrupted the data.
        const ICRC = 0x80;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for ErrorBits {
    const POSTCARD_MAX_SIZE: usize = u8::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for ErrorBits {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

bitflags! {
    /// The Device register without the head or address bits.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct DeviceBits: u8 {
        /// Device 1 is selected.
        const DEV = 0x10;
        /// The address is an LBA, not cylinder, head and sector.
        const LBA = 0x40;
        /// Of a queued command: Force Unit Access. Obsolete and a one in others.
        const FUA = 0x80;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for DeviceBits {
    const POSTCARD_MAX_SIZE: usize = u8::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for DeviceBits {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

bitflags! {
    /// The Device Control register.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    #[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
    pub struct Control: u8 {
        /// INTRQ is not driven.
        const NIEN = 0x02;
        /// Software reset, for as long as it is set.
        const SRST = 0x04;
        /// Reads return the previous content of the registers that are two deep.
        const HOB = 0x80;
    }
}

/// Its encoding is its bits.
#[cfg(feature = "snapshot")]
impl postcard::experimental::max_size::MaxSize for Control {
    const POSTCARD_MAX_SIZE: usize = u8::POSTCARD_MAX_SIZE;
}

#[cfg(feature = "defmt")]
impl defmt::Format for Control {
    fn format(&self, formatter: defmt::Formatter<'_>) {
        defmt::write!(formatter, "{}", defmt::Debug2Format(self));
    }
}

/// A register that is two deep: 48-bit commands use both bytes, 28-bit commands the current one only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Pair {
    /// The byte written last.
    pub current: u8,
    /// The byte written before it.
    pub previous: u8,
}

impl Pair {
    /// The register after a reset that puts `current` into it.
    #[must_use]
    pub const fn new(current: u8) -> Self {
        Self { current, previous: 0 }
    }

    /// A write by the host.
    pub const fn push(&mut self, value: u8) {
        self.previous = self.current;
        self.current = value;
    }

    /// Both bytes as a number.
    #[must_use]
    pub const fn wide(self) -> u16 {
        u16::from_le_bytes([self.current, self.previous])
    }
}

/// The registers that make up a command, and those that its outcome is reported in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TaskFile {
    /// Features.
    pub features: Pair,
    /// Sector Count.
    pub count: Pair,
    /// LBA bits 7:0 and 31:24; the sector number of a CHS address.
    pub lba_low: Pair,
    /// LBA bits 15:8 and 39:32; the low byte of a cylinder.
    pub lba_mid: Pair,
    /// LBA bits 23:16 and 47:40; the high byte of a cylinder.
    pub lba_high: Pair,
    /// Device: [`DeviceBits`], and in bits 3:0 the head or LBA bits 27:24.
    pub device: u8,
    /// Command.
    pub command: u8,
}

impl TaskFile {
    /// Registers of an ATA device after a reset, or after EXECUTE DEVICE DIAGNOSTIC (ATA/ATAPI-7 volume 1, device signatures).
    #[must_use]
    pub const fn signature() -> Self {
        let zero = Pair::new(0);
        Self {
            features: zero,
            count: Pair::new(1),
            lba_low: Pair::new(1),
            lba_mid: zero,
            lba_high: zero,
            device: 0,
            command: 0,
        }
    }

    /// The register that is two deep at an offset in the command block: 1 (Features) to 5 (LBA High).
    #[inline]
    pub(crate) const fn register(&mut self, offset: u64) -> Option<&mut Pair> {
        match offset {
            1 => Some(&mut self.features),
            2 => Some(&mut self.count),
            3 => Some(&mut self.lba_low),
            4 => Some(&mut self.lba_mid),
            5 => Some(&mut self.lba_high),
            _ => None,
        }
    }

    /// The address of a 28-bit command: current bytes only.
    #[must_use]
    pub const fn lba28(&self) -> u32 {
        let [low, mid, high] = [self.lba_low.current, self.lba_mid.current, self.lba_high.current];
        u32::from_le_bytes([low, mid, high, self.device & 0x0f])
    }

    /// The address of a 48-bit command.
    #[must_use]
    pub const fn lba48(&self) -> u64 {
        let (low, mid, high) = (self.lba_low, self.lba_mid, self.lba_high);
        u64::from_le_bytes([
            low.current,
            mid.current,
            high.current,
            low.previous,
            mid.previous,
            high.previous,
            0,
            0,
        ])
    }

    /// Reports an address in 28-bit form. Bits beyond 28 are dropped.
    pub const fn set_lba28(&mut self, lba: u64) {
        let [low, mid, high, top, ..] = lba.to_le_bytes();
        self.lba_low.current = low;
        self.lba_mid.current = mid;
        self.lba_high.current = high;
        self.device = (self.device & 0xf0) | (top & 0x0f);
    }

    /// Reports an address in 48-bit form. Bits beyond 48 are dropped.
    pub const fn set_lba48(&mut self, lba: u64) {
        let [b0, b1, b2, b3, b4, b5, ..] = lba.to_le_bytes();
        self.lba_low = Pair { current: b0, previous: b3 };
        self.lba_mid = Pair { current: b1, previous: b4 };
        self.lba_high = Pair { current: b2, previous: b5 };
    }

    /// LBA bits 7:0, 15:8 and 23:16, as a FIS has them.
    #[must_use]
    pub const fn lba_bytes(&self) -> [u8; 3] {
        [self.lba_low.current, self.lba_mid.current, self.lba_high.current]
    }

    /// LBA bits 31:24, 39:32 and 47:40, as a FIS has them.
    #[must_use]
    pub const fn lba_previous_bytes(&self) -> [u8; 3] {
        [self.lba_low.previous, self.lba_mid.previous, self.lba_high.previous]
    }

    /// Whether device 1 is selected.
    #[must_use]
    pub const fn device_1(&self) -> bool {
        self.device & DeviceBits::DEV.bits() != 0
    }
}
