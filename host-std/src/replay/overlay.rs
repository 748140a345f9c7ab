//! A disk whose contents are a crash state, that a guest may change, and that are exchanged for the next one.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use blk_core::memory::GuestMemory as _;
use blk_core::op::{Op, Segment, total_bytes};
use blk_core::storage::{Busy, Cache, Completion, Info, IoError, IoErrorKind, Storage, Submission};
use blk_core::units::{Extent, SECTOR_BYTES, Tag};
use rustix::event::{EventfdFlags, eventfd};

use super::image::Image;
use crate::backend::{Backend, Counts, Handle, LatchCause, OpenError};
use crate::memory::MappedMemory;
use crate::mutex::lock;

const SECTOR: usize = SECTOR_BYTES as usize;
/// Bytes of a staging buffer.
const STAGING_BYTES: u32 = 64 * 1024;
/// Most slots that have one: as many as a queue has.
const SLOTS: usize = 1024;
const TRANSFER_MAX_BYTES: u32 = 256 << 20;

/// A backend over an [`Image`]: what a guest writes stays in memory, until [`Self::swap`] throws it away.
///
/// It says of itself that nothing is ever stable ([`Cache::Unsafe`]), which is the truth. Operations end at once. There are no holds:
/// a guest is not offered what compares and then writes. There are no records.
pub struct OverlayBackend {
    shared: Arc<OverlayDisk>,
}

struct OverlayDisk {
    info: Info,
    disk: Mutex<Disk>,
}

struct Disk {
    image: Image,
    /// The sectors that were written since.
    own: HashMap<u64, Box<[u8; SECTOR]>>,
    counts: Counts,
    latched: Option<LatchCause>,
    /// The latch that a client says there was.
    client_latch: Option<LatchCause>,
}

impl OverlayBackend {
    /// A disk that holds `image`, with logical blocks of `logical_block_bytes`.
    #[must_use]
    pub fn new(image: Image, logical_block_bytes: u32) -> Self {
        let info = Info {
            sectors: image.sectors(),
            logical_block_bytes,
            physical_block_bytes: logical_block_bytes,
            optimal_io_bytes: 0,
            read_only: false,
            rotational: false,
            cache: Cache::Unsafe,
            fua: false,
            range_stable: false,
            discard: true,
            staging_bytes: STAGING_BYTES,
            segments_max: 1024,
            transfer_max_bytes: TRANSFER_MAX_BYTES,
            // Its handles exclude each other for an operation, no longer.
            holds: false,
            // A recording has none.
            state_bytes: 0,
        };
        let disk =
            Disk { image, own: HashMap::new(), counts: Counts::default(), latched: None, client_latch: None };
        Self { shared: Arc::new(OverlayDisk { info, disk: Mutex::new(disk) }) }
    }

    /// Puts other contents under the handles, between two operations, and forgets what was written. The guest has to drop
    /// its caches, as after a change of disks. Returns false, and changes nothing, if `image` is of another size.
    #[must_use]
    pub fn swap(&self, image: Image) -> bool {
        let mut disk = self.shared.lock();
        if image.sectors() != self.shared.info.sectors {
            return false;
        }
        disk.image = image;
        disk.own.clear();
        disk.latched = None;
        true
    }
}

impl Backend for OverlayBackend {
    fn handle(&self) -> Result<Box<dyn Handle>, OpenError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
            OpenError::System {
                path: "crash state".into(),
                what: "make a handle",
                errno,
                remedy: "; raise the limit on open files",
            }
        })?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(OverlayHandle { shared, staging: Vec::new(), wake }))
    }

    fn info(&self) -> Info {
        self.shared.info
    }

    fn resize(&self, bytes: Option<u64>) -> Result<Info, OpenError> {
        match bytes {
            Some(value) if value != self.shared.info.sectors * u64::from(SECTOR_BYTES) => {
                Err(OpenError::Option {
                    path: "crash state".into(),
                    option: "size",
                    value,
                    remedy: "a crash state keeps the size that the image had",
                })
            }
            _ => Ok(self.shared.info),
        }
    }

    fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    fn latched(&self) -> Option<LatchCause> {
        let disk = self.shared.lock();
        disk.latched.or(disk.client_latch)
    }

    fn latch(&self, cause: LatchCause) {
        self.shared.lock().latched.get_or_insert(cause);
    }

    fn set_client_latch(&self, cause: Option<LatchCause>) {
        self.shared.lock().client_latch = cause;
    }
}

impl OverlayDisk {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        lock(&self.disk)
    }
}

impl Disk {
    fn read(&self, extent: Extent, into: &mut [u8]) -> Result<(), IoErrorKind> {
        let failed = |error: std::io::Error| {
            tracing::error!(%error, "cannot read the recording, or the image that it begins with");
            IoErrorKind::Medium
        };
        self.image.read(extent.start.0, into).map_err(failed)?;
        if !self.own.is_empty() {
            let (sectors, _) = into.as_chunks_mut::<SECTOR>();
            for (at, sector) in (extent.start.0..).zip(sectors) {
                if let Some(own) = self.own.get(&at) {
                    *sector = **own;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, extent: Extent, from: &[u8]) {
        let (sectors, _) = from.as_chunks::<SECTOR>();
        for (at, sector) in (extent.start.0..).zip(sectors) {
            self.own.insert(at, Box::new(*sector));
        }
    }

    fn zero(&mut self, extent: Extent) {
        for at in extent.start.0..extent.end().unwrap_or(0) {
            self.own.insert(at, Box::new([0; SECTOR]));
        }
    }
}

struct OverlayHandle {
    shared: Arc<OverlayDisk>,
    /// By slot, made when they are asked for.
    staging: Vec<Vec<u8>>,
    /// Never signalled: whatever has been submitted has ended.
    wake: OwnedFd,
}

impl OverlayHandle {
    fn run(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<(), IoErrorKind> {
        let info = self.shared.info;
        let Some(bytes) = op.segment_bytes() else { return Err(IoErrorKind::Unsupported) };
        let fits = op.extent().is_none_or(|extent| extent.fits(info.sectors));
        let bytes = Some(bytes).filter(|&bytes| fits && bytes <= u64::from(TRANSFER_MAX_BYTES));
        let bytes =
            bytes.filter(|&bytes| total_bytes(segments) == Some(bytes)).ok_or(IoErrorKind::OutOfRange)?;
        let shared = Arc::clone(&self.shared);
        let mut disk = shared.lock();
        if disk.latched.or(disk.client_latch).is_some() && op.fails_when_latched() {
            return Err(IoErrorKind::Latched);
        }
        let mut data = vec![0; bytes as usize];
        match op {
            Op::Read { extent } => {
                disk.counts.reads += 1;
                disk.counts.bytes_read += bytes;
                disk.read(extent, &mut data)?;
                self.scatter(memory, tag, segments, &data)?;
            }
            Op::Write { fua: true, .. } | Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {
                return Err(IoErrorKind::Unsupported);
            }
            Op::Write { extent, .. } => {
                disk.counts.writes += 1;
                disk.counts.bytes_written += bytes;
                self.gather(memory, tag, segments, &mut data)?;
                disk.write(extent, &data);
            }
            Op::WriteZeroes { extent, .. } | Op::Discard { extent } => {
                disk.counts.ranges += 1;
                disk.zero(extent);
            }
            Op::Flush => disk.counts.flushes += 1,
        }
        Ok(())
    }

    fn scatter(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        segments: &[Segment],
        mut data: &[u8],
    ) -> Result<(), IoErrorKind> {
        for segment in segments {
            let (piece, rest) = data.split_at(segment.len() as usize);
            data = rest;
            match *segment {
                Segment::Guest { addr, .. } => memory.write(addr, piece).map_err(|_| IoErrorKind::Memory)?,
                Segment::Staging { offset, len } => self.staged(tag, offset, len)?.copy_from_slice(piece),
            }
        }
        Ok(())
    }

    fn gather(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        segments: &[Segment],
        mut data: &mut [u8],
    ) -> Result<(), IoErrorKind> {
        for segment in segments {
            let (piece, rest) = data.split_at_mut(segment.len() as usize);
            data = rest;
            match *segment {
                Segment::Guest { addr, .. } => memory.read(addr, piece).map_err(|_| IoErrorKind::Memory)?,
                Segment::Staging { offset, len } => piece.copy_from_slice(self.staged(tag, offset, len)?),
            }
        }
        Ok(())
    }

    fn staged(&mut self, tag: Tag, offset: u32, len: u32) -> Result<&mut [u8], IoErrorKind> {
        let buffer = self.staging(tag.slot).get_mut(offset as usize..);
        buffer.and_then(|rest| rest.get_mut(..len as usize)).ok_or(IoErrorKind::Memory)
    }
}

impl Storage<MappedMemory> for OverlayHandle {
    fn info(&self) -> &Info {
        &self.shared.info
    }

    fn submit(
        &mut self,
        memory: &MappedMemory,
        tag: Tag,
        op: Op,
        segments: &[Segment],
    ) -> Result<Submission, Busy> {
        let lba = op.extent().map(|extent| extent.start);
        let result = self.run(memory, tag, op, segments).map_err(|kind| IoError { kind, lba });
        Ok(Submission::Done(result))
    }

    fn poll(&mut self, _memory: &MappedMemory) -> Option<Completion> {
        None
    }

    fn staging(&mut self, slot: u16) -> &mut [u8] {
        let slot = usize::from(slot);
        if slot >= SLOTS {
            return &mut [];
        }
        if self.staging.len() <= slot {
            self.staging.resize_with(slot + 1, Vec::new);
        }
        let buffer = &mut self.staging[slot];
        buffer.resize(STAGING_BYTES as usize, 0);
        buffer
    }

    /// What was submitted has been done: nothing lands later.
    fn cancel_in_flight(&mut self) -> bool {
        true
    }
}

impl Handle for OverlayHandle {
    fn arm(&mut self) -> bool {
        true
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
