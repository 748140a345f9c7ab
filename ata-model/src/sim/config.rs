//! Configuration of the explorer's drivers.

use serde::{Deserialize, Serialize};

/// Data transfer of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Through the Data register: WRITE SECTORS EXT, WRITE MULTIPLE FUA EXT, READ MULTIPLE EXT. There is no TRIM.
    Pio,
    /// By the bus master: WRITE DMA (FUA) EXT, READ DMA EXT, DATA SET MANAGEMENT.
    Dma,
}

/// Reset that a driver makes for [`Action::Reset`](blk_core::sim::Action::Reset).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetBy {
    /// SRST in the Device Control register.
    Software,
    /// Stops the bus master in mid-command, and waits for the drive to give up. Only with [`Transport::Dma`].
    BusMasterStop,
    /// Switches bus mastering off in mid-command, then SRST; on again after it. Only with [`Transport::Dma`].
    BusMasterOff,
    /// The machine's reset line.
    Machine,
}

/// The driver's knowledge of the write cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Belief {
    /// What IDENTIFY says.
    Identify,
    /// What IDENTIFY says, until a reset: then the next guest takes over, which knows that the drive is set up to begin
    /// with its cache off, and does not look.
    IdentifyThenNoCache,
    /// Word 85 bit 5 reads as zero, as it did in 2009: there is no cache, and nothing to flush.
    NoCache,
}

/// Configuration of an IDE driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriverConfig {
    /// How data moves.
    pub transport: Transport,
    /// What a reset is.
    pub reset: ResetBy,
    /// What is believed.
    pub belief: Belief,
}

impl DriverConfig {
    /// A driver of today.
    #[must_use]
    pub const fn new(transport: Transport) -> Self {
        Self { transport, reset: ResetBy::Software, belief: Belief::Identify }
    }

    /// The guest of 2009.
    #[must_use]
    pub const fn of_2009(transport: Transport) -> Self {
        Self { belief: Belief::NoCache, ..Self::new(transport) }
    }

    /// Firmware of today, and after a reset of the machine an old guest, on a drive whose cache is off at power-on.
    #[must_use]
    pub const fn firmware_then_old(transport: Transport) -> Self {
        Self { transport, reset: ResetBy::Machine, belief: Belief::IdentifyThenNoCache }
    }
}

/// Reset that an AHCI driver makes for [`Action::Reset`](blk_core::sim::Action::Reset).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AhciReset {
    /// Stops the port, and starts it again.
    Stop,
    /// Switches bus mastering off, stops the port, and starts it when it is on again.
    BusMasterOff,
    /// Stops the port, and sends SRST by two FISes.
    Software,
    /// Stops the port, and sends COMRESET.
    Comreset,
    /// GHC.HR.
    Host,
    /// The machine's reset line.
    Machine,
}

/// Configuration of an AHCI driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AhciConfig {
    /// Whether reads and writes are queued.
    pub queued: bool,
    /// What a reset is.
    pub reset: AhciReset,
    /// What is believed.
    pub belief: Belief,
}

impl AhciConfig {
    /// A driver of today.
    #[must_use]
    pub const fn new(queued: bool) -> Self {
        Self { queued, reset: AhciReset::Comreset, belief: Belief::Identify }
    }

    /// Firmware of today, and after a reset of the machine an old guest, on a drive whose cache is off at power-on.
    #[must_use]
    pub const fn firmware_then_old(queued: bool) -> Self {
        Self { queued, reset: AhciReset::Machine, belief: Belief::IdentifyThenNoCache }
    }
}
