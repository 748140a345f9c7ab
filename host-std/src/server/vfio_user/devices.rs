//! The PCI devices of this project, made for a server: [`Server::pci`](crate::server::Server::pci).

use ata_model::{DriveConfig, PciAhci, PciIde, PciIdeChip, PciIdeMode};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::Storage;
use blk_core::virtio::pci::VECTORS_MAX;
use scsi_model::front::virtio_scsi::{self, Address, Scsi};
use virtio_blk_model::device::{Blk, Config, Interface};

use super::pci_device::PciDevice;
use crate::backend::Handle;
use crate::server::options::{BlkOptions, Lun, ScsiOptions, ServerError, check_ring_size};

/// Ports of an AHCI HBA: those of an ICH9.
pub const AHCI_PORTS: usize = 6;
/// Drives on an IDE controller.
pub const IDE_DRIVES: usize = 4;
/// Most queues of a virtio device, the control and the event queue of virtio-scsi not counted: each has a message of its own.
pub const QUEUES_MAX: u16 = 16;
/// Most logical units of a virtio-scsi device.
pub const UNITS_MAX: usize = 16;

/// Requests in flight in each queue or unit: as many as a handle is deep.
const IN_FLIGHT: usize = 128;
/// What making a device may take of the stack.
const STACK_BYTES: usize = 64 << 20;

/// An AHCI HBA (8086:2922) with a drive at each of the first ports, and a message for each port by MSI-X or one for all. Handle n
/// is of drive n.
///
/// # Errors
/// [`ServerError`] for more than [`AHCI_PORTS`] drives.
pub fn ahci(drives: Vec<DriveConfig>, message_per_port: bool) -> Result<Box<dyn PciDevice>, ServerError> {
    let drives = places::<AHCI_PORTS>(drives, "an AHCI controller has 6 ports")?;
    made(move || {
        let device = PciAhci::new(drives);
        let device = if message_per_port { device } else { device.with_one_message() };
        Box::new(PciFunction::<_, AHCI_PORTS>::new(device, MsixOwner::Embedder))
    })
}

/// A PCI IDE controller: primary master, primary slave, secondary master, secondary slave. Handle n is of drive n.
///
/// # Errors
/// [`ServerError`] for more than [`IDE_DRIVES`] drives.
pub fn ide(
    drives: Vec<DriveConfig>,
    chip: PciIdeChip,
    mode: PciIdeMode,
) -> Result<Box<dyn PciDevice>, ServerError> {
    let drives = places::<IDE_DRIVES>(drives, "an IDE controller has 4 drives")?;
    made(move || Box::new(PciFunction::<_, 1>::new(PciIde::new(drives, chip, mode), MsixOwner::Embedder)))
}

/// A virtio-blk device. Handle n is of queue n; all are of one image.
///
/// # Errors
/// [`ServerError`] for an option out of range.
pub fn virtio_blk(options: &BlkOptions) -> Result<Box<dyn PciDevice>, ServerError> {
    const QUEUES: usize = QUEUES_MAX as usize;
    check_queues(options.queues)?;
    check_ring_size(options.queue_size_max)?;
    let config = Config {
        serial: options.serial_bytes()?,
        queues: options.queues,
        queue_size_max: options.queue_size_max,
        read_only: options.read_only,
        interface: Interface::Modern,
        experimental_fua: options.experimental_fua,
    };
    made(move || {
        let device = virtio_blk_model::front::Pci::<QUEUES, IN_FLIGHT>::new(Blk::new(config));
        Box::new(PciFunction::<_, { VECTORS_MAX as usize }>::new(device, MsixOwner::Embedder))
    })
}

/// A device, and the handles of its images.
pub type WithHandles = (Box<dyn PciDevice>, Vec<Box<dyn Handle>>);

/// A virtio-scsi device with logical units, and a handle of each.
///
/// # Errors
/// [`ServerError`] for an option out of range, two units at an address, or an image without a handle.
pub fn virtio_scsi(options: &ScsiOptions, luns: Vec<Lun>) -> Result<WithHandles, ServerError> {
    const QUEUES: usize = QUEUES_MAX as usize;
    check_queues(options.queues)?;
    check_ring_size(options.queue_size_max)?;
    let config = virtio_scsi::Config { queues: options.queues, queue_size_max: options.queue_size_max };
    let mut handles = Vec::new();
    for lun in &luns {
        handles.push(lun.backend.handle()?);
    }
    let units: Vec<_> = luns
        .iter()
        .zip(&handles)
        .map(|(lun, handle)| (Address { target: lun.target, lun: lun.lun }, lun.config, *handle.info()))
        .collect();
    let device = with_stack(move || -> Result<Box<dyn PciDevice>, ServerError> {
        let mut scsi = Box::new(Scsi::<QUEUES, UNITS_MAX, IN_FLIGHT>::new(config));
        for (address, identity, info) in units {
            scsi.controller_mut().insert(address, identity, &info).map_err(|_| ServerError::Option {
                option: "lun",
                value: format!("{}:{}", address.target, address.lun),
                remedy: "give each unit an address of its own, up to 255:16383, and at most 16 units",
            })?;
        }
        let device = virtio_scsi::Pci::new(*scsi);
        let function = PciFunction::<_, { VECTORS_MAX as usize }>::new(device, MsixOwner::Embedder);
        Ok(Box::new(function))
    })??;
    Ok((device, handles))
}

fn check_queues(queues: u16) -> Result<(), ServerError> {
    if (1..=QUEUES_MAX).contains(&queues) {
        return Ok(());
    }
    Err(ServerError::Option { option: "queues", value: queues.to_string(), remedy: "give 1 to 16" })
}

fn places<const N: usize>(
    drives: Vec<DriveConfig>,
    remedy: &'static str,
) -> Result<[Option<DriveConfig>; N], ServerError> {
    let count = drives.len();
    if count > N {
        return Err(ServerError::Option { option: "image", value: format!("{count} images"), remedy });
    }
    let mut drives = drives.into_iter();
    Ok(std::array::from_fn(|_| drives.next()))
}

fn made(
    make: impl FnOnce() -> Box<dyn PciDevice> + Send + 'static,
) -> Result<Box<dyn PciDevice>, ServerError> {
    with_stack(make)
}

/// A device is made in one piece, which may be larger than the stack of a thread.
fn with_stack<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Result<T, ServerError> {
    let made = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(make)?.join();
    Ok(made.map_err(|_| std::io::Error::other("no memory for the device"))?)
}
