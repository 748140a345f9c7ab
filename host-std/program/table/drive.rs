//! One half of a cell: a guest driver writes, flushes and reads back a real image, and what reached the kernel is counted.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use ata_model::{Channel, DriveConfig, PciAhci, PciIde, PciIdeChip, PciIdeMode};
use blk_core::pci::{MsixOwner, PciFunction};
use blk_core::storage::CacheMode;
use blk_core::units::GuestAddr;
use host_std::backend::{Counts, FileBackend, FileOptions, FileStorage};
use host_std::memory::MappedMemory;
use host_std::proof::Front;
use host_std::testing::guest::{
    Ahci, Commands, GuestDisk, Ide, Machine, Scsi, Transfer, Unit, VirtioBlk, VirtioScsi,
};
use host_std::trace::{BlockTrace, LoopDevice};
use scsi_model::LogicalUnit;
use scsi_model::front::virtio_scsi;
use serde::{Deserialize, Serialize};
use virtio_blk_model::device::{Blk, Config as VirtioConfig};
use virtio_blk_model::front::mmio::Mmio;

use super::place::{IMAGE_BYTES, Place};

const REQUEST_BYTES: usize = 4096;
const WRITES: u32 = 48;
const FLUSH_EVERY: u32 = 8;
const FUA_EVERY: u32 = 6;
const GUEST_MEMORY_BYTES: usize = 4 << 20;

/// What the guest asked for, and what became of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// What the guest issued.
    pub(crate) guest: Issued,
    /// Whether the guest saw a volatile write cache.
    pub(crate) write_cache: bool,
    /// What the backend did.
    pub(crate) host: Reached,
    /// What the kernel handed to a loop device under the same workload; with root only.
    pub(crate) kernel: Option<host_std::trace::Counts>,
    /// Bytes that the guest read back, and that the image was then found to hold.
    pub(crate) verified_bytes: u64,
}

/// Requests of the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    pub(crate) writes: u32,
    pub(crate) fua_writes: u32,
    pub(crate) flushes: u32,
    pub(crate) reads: u32,
}

/// System calls of the backend.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub(crate) fdatasyncs: u64,
    pub(crate) dsync_writes: u64,
}

impl From<Counts> for Reached {
    fn from(counts: Counts) -> Self {
        Self { fdatasyncs: counts.fdatasync_calls, dsync_writes: counts.dsync_writes + counts.fua_writes }
    }
}

/// Runs one cell on an image; `None` if it is to stop.
pub(crate) fn run(
    front: Front,
    mode: CacheMode,
    place: &Place,
    stop: &AtomicBool,
) -> anyhow::Result<Option<Run>> {
    let image = place.path();
    place.fill()?;
    let name = || format!("{} in mode {}", front.name(), mode.name());
    let Some(mut run) = drive(front, mode, &image, stop).with_context(name)? else { return Ok(None) };
    run.kernel = traced(front, mode, &image, stop).with_context(|| format!("{} on a loop device", name()))?;
    Ok(Some(run))
}

/// The same workload on a loop device over the image, under kernel tracing; `None` where that cannot be had.
fn traced(
    front: Front,
    mode: CacheMode,
    image: &Path,
    stop: &AtomicBool,
) -> anyhow::Result<Option<host_std::trace::Counts>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let Ok(device) = LoopDevice::attach(image, false) else { return Ok(None) };
    let (major, minor) = device.dev();
    let Ok(trace) = BlockTrace::start(major, minor) else { return Ok(None) };
    if drive(front, mode, device.path(), stop)?.is_none() {
        return Ok(None);
    }
    Ok(Some(trace.stop().context("cannot read the kernel's trace")?))
}

fn drive(front: Front, mode: CacheMode, path: &Path, stop: &AtomicBool) -> anyhow::Result<Option<Run>> {
    let backend = FileBackend::open(path, &FileOptions::new(mode))?;
    let handle = backend.handle()?;
    let memory = MappedMemory::anonymous(&[(GuestAddr(0), GUEST_MEMORY_BYTES)])?;
    let done = match front {
        Front::IdePio => {
            let channel = Channel::new([Some(DriveConfig::new("BLK-HOST", "0001")), None]);
            workload(&mut Ide::new(Machine::new(channel, memory, vec![handle]), Transfer::Pio)?, stop)?
        }
        Front::PciIde => {
            let drives = [Some(DriveConfig::new("BLK-HOST", "0001")), None, None, None];
            let device = PciIde::new(drives, PciIdeChip::Piix3, PciIdeMode::Native);
            let function = PciFunction::<_, 1>::new(device, MsixOwner::Function);
            workload(&mut Ide::new(Machine::new(function, memory, vec![handle]), Transfer::Dma)?, stop)?
        }
        Front::Ahci | Front::AhciNcq => {
            let commands = if front == Front::Ahci { Commands::Dma } else { Commands::Queued };
            let device = PciAhci::<1>::new([Some(DriveConfig::new("BLK-HOST", "0001"))]);
            let function = PciFunction::<_, 1>::new(device, MsixOwner::Function);
            workload(&mut Ahci::new(Machine::new(function, memory, vec![handle]), commands)?, stop)?
        }
        Front::Scsi => {
            let config = scsi_model::Config::new("BLKHOST", "DISK", "1", "0001");
            let unit = LogicalUnit::<4>::new(config, FileStorage::info(&handle));
            let unit =
                unit.map_err(|_| anyhow::anyhow!("{}: not the geometry of a SCSI disk", path.display()))?;
            workload(&mut Scsi::new(Unit::new(unit, memory, handle))?, stop)?
        }
        Front::VirtioScsi => {
            let config = scsi_model::Config::new("BLKHOST", "DISK", "1", "0001");
            let mut device =
                virtio_scsi::Mmio::new(virtio_scsi::Scsi::<1, 1, 4>::new(virtio_scsi::Config::DEFAULT));
            let address = virtio_scsi::Address { target: 0, lun: 0 };
            let host = device.device_mut().controller_mut();
            let inserted = host.insert(address, config, FileStorage::info(&handle));
            inserted.map_err(|_| anyhow::anyhow!("{}: not the geometry of a SCSI disk", path.display()))?;
            let carrier = VirtioScsi::new(Machine::new(device, memory, vec![handle]))?;
            workload(&mut Scsi::new(carrier)?, stop)?
        }
        Front::VirtioBlk => {
            let device = Mmio::new(Blk::<1, 64>::new(VirtioConfig::DEFAULT));
            workload(&mut VirtioBlk::new(Machine::new(device, memory, vec![handle]))?, stop)?
        }
    };
    let Some((issued, write_cache, expected)) = done else { return Ok(None) };
    let host = Reached::from(backend.counts());
    drop(backend);
    let verified_bytes = verify(path, &expected)?;
    Ok(Some(Run { guest: issued, write_cache, host, kernel: None, verified_bytes }))
}

/// Block number and contents of everything written.
type Written = std::collections::BTreeMap<u64, u32>;

/// Writes blocks in a scattered order, some twice, flushing now and then; reads everything back. `None` if it is to stop.
fn workload(guest: &mut dyn GuestDisk, stop: &AtomicBool) -> anyhow::Result<Option<(Issued, bool, Written)>> {
    let mut issued = Issued::default();
    let mut written = Written::new();
    let blocks = guest.sectors() / 8;
    ensure!(blocks == IMAGE_BYTES / REQUEST_BYTES as u64, "the guest sees {} sectors", guest.sectors());
    let write_cache = guest.write_cache()?;
    for step in 0..WRITES {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        // A multiplicative walk over three quarters as many blocks as there are writes: the rest are overwrites.
        let block = u64::from(step * 7 % (WRITES * 3 / 4)) * 53 % blocks;
        let fua = guest.has_fua() && step % FUA_EVERY == FUA_EVERY - 1;
        guest.write(block * 8, &contents(block, step), fua)?;
        written.insert(block, step);
        issued.writes += 1;
        issued.fua_writes += u32::from(fua);
        if step % FLUSH_EVERY == FLUSH_EVERY - 1 {
            guest.flush()?;
            issued.flushes += 1;
        }
    }
    let mut back = [0; REQUEST_BYTES];
    for (&block, &step) in &written {
        guest.read(block * 8, &mut back)?;
        issued.reads += 1;
        ensure!(back == contents(block, step), "block {block} reads back as something else");
    }
    Ok(Some((issued, write_cache, written)))
}

/// What step `step` writes to `block`: each 8 bytes name both and their own place.
fn contents(block: u64, step: u32) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    for (place, word) in (0_u64..).zip(bytes.chunks_exact_mut(8)) {
        word.copy_from_slice(&(block << 40 | u64::from(step) << 16 | place).to_le_bytes());
    }
    bytes
}

/// Checks the image itself, behind the models' back.
fn verify(path: &Path, written: &Written) -> anyhow::Result<u64> {
    let mut file = File::open(path)?;
    let mut bytes = [0; REQUEST_BYTES];
    for (&block, &step) in written {
        file.read_exact_at(&mut bytes, block * REQUEST_BYTES as u64)?;
        ensure!(
            bytes == contents(block, step),
            "{}: block {block} does not hold what was written",
            path.display()
        );
    }
    // The first megabyte again, through a fresh descriptor: blocks never written hold what they held.
    let mut start = vec![0; 1 << 20];
    file.read_exact(&mut start)?;
    for (block, bytes) in (0_u64..).zip(start.chunks_exact(REQUEST_BYTES)) {
        let untouched = !written.contains_key(&block);
        ensure!(
            !untouched || bytes.iter().all(|byte| *byte == 0xee),
            "block {block} was never written, yet changed"
        );
    }
    Ok(written.len() as u64 * REQUEST_BYTES as u64)
}
