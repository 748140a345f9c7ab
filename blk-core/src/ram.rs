//! A RAM disk.

use crate::memory::MemoryError;
use crate::storage::{Cache, Info, IoError, IoErrorKind};
use crate::sync::{Medium, Synchronous};
use crate::units::SECTOR_BYTES;

/// The `Info` of a plain medium of `bytes` bytes, with `cache` as its owner declares it.
#[must_use]
pub const fn plain_info(bytes: u64, cache: Cache) -> Info {
    Info {
        sectors: bytes >> 9,
        logical_block_bytes: SECTOR_BYTES,
        physical_block_bytes: SECTOR_BYTES,
        optimal_io_bytes: 0,
        read_only: false,
        rotational: false,
        cache,
        fua: false,
        range_stable: false,
        discard: false,
        staging_bytes: 0,
        segments_max: 126,
        transfer_max_bytes: 1 << 20,
        holds: true,
        state_bytes: 0,
    }
}

/// A disk in memory, with `N` operations in flight at most.
///
/// ```
/// use blk_core::memory::CellMemory;
/// use blk_core::op::{Op, Segment};
/// use blk_core::ram::{Ram, RamDisk};
/// use blk_core::storage::{Cache, Storage, Submission};
/// use blk_core::units::{Extent, GuestAddr, Tag};
///
/// let (mut ram, mut image) = ([7; 4096], [0; 1 << 16]);
/// let memory = CellMemory::new(GuestAddr(0), &mut ram);
/// // Without staging buffers, which virtio-blk does not need.
/// let mut disk = RamDisk::<1>::new(Ram::new(&mut image).with_cache(Cache::WriteBack), &mut []);
///
/// let write = Op::Write { extent: Extent::new(3, 1), fua: false };
/// let done = disk.submit(&memory, Tag::default(), write, &[Segment::Guest { addr: GuestAddr(0), len: 512 }])?;
/// assert_eq!(done, Submission::Done(Ok(())));
/// assert_eq!(disk.medium().bytes()[3 * 512..4 * 512], [7; 512]);
/// # Ok::<(), blk_core::storage::Busy>(())
/// ```
pub type RamDisk<'a, const N: usize> = Synchronous<'a, Ram<'a>, N>;

/// The memory of a [`RamDisk`].
#[derive(Debug)]
pub struct Ram<'a> {
    bytes: &'a mut [u8],
    info: Info,
}

impl<'a> Ram<'a> {
    /// A disk in `bytes`, of which whole sectors are used. RAM forgets when the power goes, so it is declared as
    /// [`Cache::Unsafe`] unless [`Self::with_cache`] says that it is, for example, battery-backed.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        let info = plain_info(bytes.len() as u64, Cache::Unsafe);
        Self { bytes, info }
    }

    /// Declares what a completed write is worth.
    #[must_use]
    pub const fn with_cache(self, cache: Cache) -> Self {
        Self { info: Info { cache, ..self.info }, ..self }
    }

    /// Declares the medium read-only.
    #[must_use]
    pub const fn read_only(self) -> Self {
        Self { info: Info { read_only: true, ..self.info }, ..self }
    }

    /// Declares another logical block size, a power of two from 512 on; the capacity becomes a multiple of it.
    #[must_use]
    pub const fn with_logical_block(self, bytes: u32) -> Self {
        let mut info = self.info;
        info.logical_block_bytes = bytes;
        if info.physical_block_bytes < bytes {
            info.physical_block_bytes = bytes;
        }
        info.sectors &= !(info.sectors_per_block().wrapping_sub(1));
        Self { info, ..self }
    }

    /// The disk's contents.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        self.bytes
    }

    fn range(&mut self, offset: u64, len: usize) -> Result<&mut [u8], IoError> {
        let start = usize::try_from(offset).map_err(|_| IoErrorKind::OutOfRange)?;
        let end = start.checked_add(len).ok_or(IoErrorKind::OutOfRange)?;
        self.bytes.get_mut(start..end).ok_or_else(|| IoErrorKind::OutOfRange.into())
    }
}

impl Medium for Ram<'_> {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &mut self,
        offset: u64,
        len: usize,
        mut sink: impl FnMut(&[u8]) -> Result<(), MemoryError>,
    ) -> Result<(), IoError> {
        Ok(sink(self.range(offset, len)?)?)
    }

    fn write(
        &mut self,
        offset: u64,
        len: usize,
        mut source: impl FnMut(&mut [u8]) -> Result<(), MemoryError>,
    ) -> Result<(), IoError> {
        Ok(source(self.range(offset, len)?)?)
    }

    fn flush(&mut self) -> Result<(), IoError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::memory::CellMemory;
    use crate::op::{Op, Segment};
    use crate::storage::{Storage, Submission};
    use crate::units::{Extent, GuestAddr, Tag};

    const TAG: Tag = Tag { slot: 1, generation: 7 };
    const PAGE: Segment = Segment::Guest { addr: GuestAddr(0x1000), len: 1024 };
    const STAGED: Segment = Segment::Staging { offset: 512, len: 1024 };

    fn run<D: Medium>(
        disk: &mut Synchronous<'_, D, 2>,
        memory: &CellMemory<'_>,
        op: Op,
        segments: &[Segment],
    ) -> Result<(), IoErrorKind> {
        match disk.submit(memory, TAG, op, segments) {
            Ok(Submission::Done(result)) => result.map_err(|error| error.kind),
            other => panic!("it is done at once: {other:?}"),
        }
    }

    #[test]
    fn data_goes_from_guest_to_disk_to_staging() {
        let (mut bytes, mut staging, mut ram) = (vec![0; 8192], vec![0; 4096], vec![0; 8192]);
        let memory = CellMemory::new(GuestAddr(0), &mut ram);
        let mut disk = RamDisk::<2>::new(Ram::new(&mut bytes), &mut staging);
        memory_fill(&memory, 0x1000, 1024);
        let extent = Extent::new(3, 2);
        run(&mut disk, &memory, Op::Write { extent, fua: false }, &[PAGE]).unwrap();
        run(&mut disk, &memory, Op::Read { extent }, &[STAGED]).unwrap();
        let staged = Storage::<CellMemory<'_>>::staging(&mut disk, 1);
        assert_eq!(staged.len(), 2048);
        assert!(staged[512..1536].iter().enumerate().all(|(i, byte)| *byte == i as u8));
        assert!(staged[..512].iter().all(|byte| *byte == 0));
        run(&mut disk, &memory, Op::WriteZeroes { extent: Extent::new(4, 1), may_unmap: true }, &[]).unwrap();
        assert!(disk.medium().bytes()[2048..2560].iter().all(|byte| *byte == 0));
        assert_eq!(disk.medium().bytes()[1537], 1);
    }

    fn memory_fill(memory: &CellMemory<'_>, at: u64, len: usize) {
        use crate::memory::GuestMemory;
        let bytes: vec::Vec<u8> = (0..len).map(|i| i as u8).collect();
        memory.write(GuestAddr(at), &bytes).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_refused_and_moves_nothing() {
        let (mut bytes, mut ram) = (vec![0; 2048], vec![1; 8192]);
        let memory = CellMemory::new(GuestAddr(0), &mut ram);
        let mut disk = RamDisk::<2>::new(Ram::new(&mut bytes), &mut []);
        let write = |start, sectors| Op::Write { extent: Extent::new(start, sectors), fua: false };
        assert_eq!(run(&mut disk, &memory, write(3, 2), &[PAGE]), Err(IoErrorKind::OutOfRange));
        assert_eq!(run(&mut disk, &memory, write(u64::MAX, 2), &[PAGE]), Err(IoErrorKind::OutOfRange));
        assert_eq!(run(&mut disk, &memory, write(0, 1), &[PAGE]), Err(IoErrorKind::OutOfRange));
        assert_eq!(run(&mut disk, &memory, write(0, 2), &[STAGED]), Err(IoErrorKind::Memory));
        assert!(disk.medium().bytes().iter().all(|byte| *byte == 0));
    }

    #[test]
    #[should_panic(expected = "of 2 slots has 1023 bytes of staging and needs 1024")]
    fn staging_that_is_no_block_for_each_slot_is_refused() {
        let (mut bytes, mut staging) = (vec![0; 2048], vec![0; 1023]);
        let _ = RamDisk::<2>::new(Ram::new(&mut bytes), &mut staging);
    }
}
