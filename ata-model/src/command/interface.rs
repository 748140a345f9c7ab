//! What is between a drive and its host.

use serde::{Deserialize, Serialize};

/// Which way a command's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Direction {
    /// From the disk to the host.
    Read,
    /// From the host to the disk.
    Write,
}

/// What is between a drive and its host. It decides which commands there are, and so what IDENTIFY shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
