//! The AHCI HBA of an ICH9 as a PCI function (identity and registers beyond AHCI 1.3.1: Intel I/O Controller Hub 9
//! datasheet, SATA controller, D31:F2).

use blk_core::bus::{Access, Device, Progress, Quiet, Region, Width, WriteStatus};
use blk_core::memory::GuestMemory;
use blk_core::pci::{Bar, Capability, Endpoint, Function, Identity, Permissions};
use blk_core::storage::Storage;

use super::ahci::Hba;
use crate::drive::DriveConfig;

/// MAP, at 90h: bits 7:6 say that the function is an AHCI one. PCS, at 92h: bits 5:0 enable the ports that it knows, and
/// software sets them again. What is attached PxSSTS says.
const MAP: u8 = 0x90;
const MAP_AHCI: u32 = 1 << 6;
const PCS_PORTS: u32 = 6;

/// Where the pending bits of MSI-X are in BAR 0.
const MSIX_PENDING: u32 = 0x800;

/// The index-data pair in BAR 4, by which code that cannot reach memory above 1 MiB reaches the HBA's registers.
const INDEX: u64 = 0x10;
const DATA: u64 = 0x14;
/// SATACR1: BARLOC 8 (BAR 4, which is dword 8 of the configuration space), BAROFST 4 (in dwords) (AHCI 1.3.1, 2.4).
const PAIR: u32 = 4 << 4 | 8;

/// An AHCI HBA with `P` ports, behind [`PciFunction`](blk_core::pci::PciFunction): 8086:2922, class 010601h.
///
/// | range | what |
/// |---|---|
/// | `Bar(5)`, [`Self::BAR_BYTES`] | the registers of [`Hba`] |
/// | `Bar(4)`, 32 bytes | at 10h the index, at 14h the data: the register at that index |
/// | `Bar(0)`, [`Self::MESSAGES_BYTES`] | with MSI-X: its table, at 800h its pending bits |
///
/// One MSI message, INTA, or a message for each port by MSI-X, which an ICH9 does not have: a driver that uses it reads and writes a
/// register less for each interrupt. In configuration space also power management, the Serial ATA capability, MAP and PCS.
///
/// ```
/// use ata_model::{DriveConfig, PciAhci};
/// use blk_core::bus::{Device, Region, Width};
/// use blk_core::memory::CellMemory;
/// use blk_core::pci::{MsixOwner, PciFunction};
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::units::GuestAddr;
///
/// let (mut ram, mut image, mut staging) = ([0; 512], [0; 1 << 16], [0; 32 * 512]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// let mut disks = [RamDisk::<32>::new(Ram::new(&mut image), &mut staging)];
/// // Two ports, one with a drive: an MSI-X table of two entries.
/// let ahci = PciAhci::new([Some(DriveConfig::new("RAM DISK", "0001")), None]);
/// let mut function = PciFunction::<PciAhci<2>, 2>::new(ahci, MsixOwner::Function);
///
/// // Firmware places BAR 5 and enables memory and bus mastering.
/// for (register, value) in [(0x24, 0xfe00_0000), (0x04, 6)] {
///     function.write(Region::Config, register, Width::Dword, value, &memory, &mut disks[..]);
/// }
/// assert_eq!(function.config().bar(5), Some((0xfe00_0000, PciAhci::<2>::BAR_BYTES)));
/// let ports = function.read(Region::Bar(5), 0x0c, Width::Dword, &memory, &mut disks[..]);
/// assert_eq!(ports.value, 0b11, "PI");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub struct PciAhci<const P: usize> {
    hba: Hba<P>,
    index: u32,
    /// It has MSI-X.
    message_per_port: bool,
}

impl<const P: usize> Quiet for PciAhci<P> {
    fn is_quiet(&self) -> bool {
        self.hba.is_quiet()
    }
}

#[cfg(feature = "snapshot")]
impl<const P: usize> blk_core::snapshot::Snapshot for PciAhci<P> {
    const KIND: blk_core::snapshot::Kind = blk_core::snapshot::Kind::new(*b"PAHC", 1).sized(P);
}

impl<const P: usize> PciAhci<P> {
    /// Bytes of BAR 5: a page at least, so that what maps by pages maps nothing else with it.
    pub const BAR_BYTES: u32 = {
        let bytes = Hba::<P>::ABAR_BYTES.next_power_of_two() as u32;
        if bytes < 4096 { 4096 } else { bytes }
    };

    /// Bytes of BAR 0, with MSI-X.
    pub const MESSAGES_BYTES: u32 = 4096;

    /// A function after power-on, with a drive or none at each port. With 2 to 31 ports it has
    /// MSI-X: its [`PciFunction`](blk_core::pci::PciFunction) then needs `P` entries, which the
    /// compiler checks.
    #[must_use]
    pub const fn new(drives: [Option<DriveConfig>; P]) -> Self {
        let mut hba = Hba::new(drives);
        hba.set_bus_master(false);
        Self { hba, index: 0, message_per_port: Self::VECTORS != 0 }
    }

    /// The function without MSI-X, as the ICH9's is. Its
    /// [`PciFunction`](blk_core::pci::PciFunction) needs no fewer entries.
    #[must_use]
    pub const fn with_one_message(mut self) -> Self {
        self.message_per_port = false;
        self
    }

    /// The HBA.
    #[must_use]
    pub const fn hba(&self) -> &Hba<P> {
        &self.hba
    }

    /// The HBA, whose drives are plugged and pulled.
    pub const fn hba_mut(&mut self) -> &mut Hba<P> {
        &mut self.hba
    }

    /// Where in the HBA's registers an access of BAR 4 or 5 goes, if it does.
    fn route(&self, region: Region, offset: u64, width: Width) -> Option<u64> {
        match region {
            Region::Bar(5) => Some(offset),
            Region::Bar(4) => {
                let at = offset.checked_sub(DATA)?;
                let end = at.checked_add(width.bytes().into())?;
                (end <= 4).then_some(u64::from(self.index) | at)
            }
            Region::Bar(_) | Region::Config => None,
        }
    }

    fn write_index(&mut self, offset: u64, width: Width, value: u64) {
        let Some(at) = offset.checked_sub(INDEX) else { return };
        let mut bytes = self.index.to_le_bytes();
        let places = bytes.iter_mut().skip(usize::try_from(at).unwrap_or(usize::MAX));
        for (to, from) in places.zip(value.to_le_bytes()).take(width.bytes().into()) {
            *to = from;
        }
        self.index = u32::from_le_bytes(bytes) & Self::BAR_BYTES.saturating_sub(4);
    }
}

impl<const P: usize> Endpoint for PciAhci<P> {
    /// One for each port: interrupt lines are enough for 31. With one port MSI does.
    const VECTORS: usize = if P > 1 && P < 32 { P } else { 0 };

    fn function(&self) -> Function {
        let ports = u32::try_from(P).unwrap_or(PCS_PORTS).min(PCS_PORTS);
        let enabled = 1_u32.checked_shl(ports).unwrap_or(0).saturating_sub(1) << 16;
        let messages =
            if self.message_per_port { Bar::Memory32 { bytes: Self::MESSAGES_BYTES } } else { Bar::Absent };
        let bars = [
            messages,
            Bar::Absent,
            Bar::Absent,
            Bar::Absent,
            Bar::Io { bytes: 32 },
            Bar::Memory32 { bytes: Self::BAR_BYTES },
        ];
        let ports = u16::try_from(P).unwrap_or(u16::MAX);
        let msix = Capability::Msix { vectors: ports, table: (0, 0), pending: (0, MSIX_PENDING) };
        let capabilities = [
            Some(Capability::Msi { vectors_log2: 0 }),
            Some(Capability::PowerManagement),
            Some(Capability::Sata { location: PAIR }),
            self.message_per_port.then_some(msix),
            None,
            None,
            None,
            None,
        ];
        Function {
            identity: Identity::ICH9_AHCI,
            bars,
            capabilities,
            specific: [Some((MAP, MAP_AHCI | enabled, 0x3f << 16)), None, None, None],
        }
    }

    fn permit(&mut self, permissions: Permissions) {
        self.hba.set_bus_master(permissions.bus_master);
        self.hba.set_message_per_port(self.message_per_port && usize::from(permissions.messages) >= P);
    }
}

impl<const P: usize, M: GuestMemory + ?Sized, H: Storage<M>> Device<M, [H]> for PciAhci<P> {
    fn read(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        memory: &M,
        storage: &mut [H],
    ) -> Access<u64> {
        match (self.route(region, offset, width), region) {
            (Some(at), _) => self.hba.read(Region::Bar(5), at, width, memory, storage),
            (None, Region::Bar(4)) if (INDEX..DATA).contains(&offset) => {
                let shift = u32::try_from(offset.saturating_sub(INDEX)).unwrap_or(0).saturating_mul(8);
                Access::quiet(u64::from(self.index).checked_shr(shift).unwrap_or(0) & width.ones())
            }
            // The ports of a bus master, which an AHCI function has no use for.
            (None, Region::Bar(4)) => Access::quiet(0),
            (None, _) => Access::quiet(width.ones()),
        }
    }

    fn write(
        &mut self,
        region: Region,
        offset: u64,
        width: Width,
        value: u64,
        memory: &M,
        storage: &mut [H],
    ) -> Access<WriteStatus> {
        match (self.route(region, offset, width), region) {
            (Some(at), _) => self.hba.write(Region::Bar(5), at, width, value, memory, storage),
            (None, Region::Bar(4)) => {
                self.write_index(offset, width, value);
                Access::quiet(WriteStatus::Done)
            }
            (None, _) => Access::quiet(WriteStatus::Done),
        }
    }

    fn poll(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        self.hba.poll(memory, storage)
    }

    fn reset(&mut self, memory: &M, storage: &mut [H]) -> Progress {
        self.index = 0;
        self.hba.reset(memory, storage)
    }
}
