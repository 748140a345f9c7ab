//! Interface between a drive and its host, parallel or serial.

/// Direction of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Direction {
    /// From the disk to the host.
    Read,
    /// From the host to the disk.
    Write,
}

/// Interface between a drive and its host. It decides which commands there are, and so what IDENTIFY shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Interface {
    /// A parallel cable, and a host that moves every word itself.
    Pio,
    /// A parallel cable, and a bus master.
    BusMaster,
    /// Serial ATA, with queued commands.
    Serial,
}

impl Interface {
    /// Whether there are DMA commands.
    #[must_use]
    pub const fn has_dma(self) -> bool {
        !matches!(self, Self::Pio)
    }
}
