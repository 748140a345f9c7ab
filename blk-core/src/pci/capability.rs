//! Capabilities: a list in the configuration space, from 34h on (PCI 3.0, 6.7).

/// A message that signals an interrupt: a write of `data` to `address` (PCI 3.0, 6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Message {
    /// Where to; dword-aligned.
    pub address: u64,
    /// What: for MSI the vector is in the low bits already.
    pub data: u32,
}

/// A capability of a function. The order in [`Function::capabilities`](super::Function::capabilities) is the order of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Capability {
    /// Power management with D0 and D3hot (PCI Power Management 1.2, 3.2). State is kept in D3hot: No_Soft_Reset is set.
    PowerManagement,
    /// MSI with 64-bit addresses and without masking (PCI 3.0, 6.8.1); `1 << vectors_log2` vectors, 32 at most.
    Msi {
        /// Multiple Message Capable: 0 to 5.
        vectors_log2: u8,
    },
    /// MSI-X (PCI 3.0, 6.8.2). The table itself is the front's, in a BAR: [`MsixTable`](super::MsixTable).
    Msix {
        /// Entries of the table: 1 to 2048.
        vectors: u16,
        /// The BAR that holds the table, and its offset there, a multiple of 8.
        table: (u8, u32),
        /// The same of the pending bits.
        pending: (u8, u32),
    },
    /// Vendor-specific, read-only (PCI 3.0, appendix H): what follows the length byte. VIRTIO 1.3, 4.1.4 describes its structures so.
    Vendor {
        /// The bytes in use, the three of the header not counted; 21 at most.
        len: u8,
        /// The bytes.
        bytes: [u8; 21],
    },
    /// VIRTIO's PCI configuration access (VIRTIO 1.3, 4.1.4.9): a window through which the device's BARs are reached from
    /// configuration space, wherever they are and whether they are decoded or not.
    VirtioWindow,
    /// Serial ATA, revision 1.0 (Serial ATA AHCI 1.3.1, 2.4): index and data registers live in the BAR at this offset, or nowhere.
    Sata {
        /// Location of the index-data pair: BAR offset and location code as the register has them; 0 for none.
        location: u32,
    },
}

impl Capability {
    /// Capability identifier (PCI 3.0, appendix H).
    pub(super) const fn id(&self) -> u8 {
        match self {
            Self::PowerManagement => 0x01,
            Self::Msi { .. } => 0x05,
            Self::Vendor { .. } | Self::VirtioWindow => 0x09,
            Self::Msix { .. } => 0x11,
            Self::Sata { .. } => 0x12,
        }
    }

    /// Bytes in configuration space, a multiple of 4.
    pub(super) const fn bytes(&self) -> u8 {
        match self {
            Self::PowerManagement | Self::Sata { .. } => 8,
            Self::Msi { .. } => 16,
            Self::Msix { .. } => 12,
            Self::VirtioWindow => 20,
            Self::Vendor { len, .. } => (*len).saturating_add(3).next_multiple_of(4),
        }
    }
}
