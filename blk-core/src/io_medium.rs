//! Disks behind the traits of `embedded-io`.

use embedded_io::{Read, Seek, SeekFrom, Write};

use crate::memory::MemoryError;
use crate::ram::plain_info;
use crate::storage::{Cache, Info, IoError, IoErrorKind};
use crate::sync::Medium;
use crate::units::{Lba, SECTOR_BYTES};

/// A medium behind the `embedded-io` traits: flash, an SD card, a serial line to another machine.
///
/// `Write::flush` has to reach the medium; whoever passes a `T` whose flush does less declares [`Cache::Unsafe`].
#[derive(Debug)]
pub struct IoMedium<T> {
    io: T,
    info: Info,
}

impl<T: Read + Write + Seek> IoMedium<T> {
    /// A disk of `bytes` bytes, of which whole sectors are used, behind `io`.
    pub const fn new(io: T, bytes: u64, cache: Cache) -> Self {
        Self { io, info: plain_info(bytes, cache) }
    }

    /// Moves `len` bytes at `offset` through a buffer of one sector.
    fn pieces(
        &mut self,
        offset: u64,
        len: usize,
        mut piece: impl FnMut(&mut T, &mut [u8]) -> Result<(), IoErrorKind>,
    ) -> Result<(), IoError> {
        let mut buffer = [0; SECTOR_BYTES as usize];
        let mut lba = offset >> 9;
        self.io.seek(SeekFrom::Start(offset)).map_err(|_| medium_error(lba))?;
        let mut left = len;
        while left > 0 {
            let now = left.min(buffer.len());
            let bytes = buffer.get_mut(..now).ok_or(IoErrorKind::OutOfRange)?;
            piece(&mut self.io, bytes).map_err(|kind| IoError { kind, ..medium_error(lba) })?;
            left = left.saturating_sub(now);
            lba = lba.saturating_add(1);
        }
        Ok(())
    }
}

const fn medium_error(lba: u64) -> IoError {
    IoError { kind: IoErrorKind::Medium, lba: Some(Lba(lba)) }
}

impl<T: Read + Write + Seek> Medium for IoMedium<T> {
    fn info(&self) -> &Info {
        &self.info
    }

    fn read(
        &mut self,
        offset: u64,
        len: usize,
        mut sink: impl FnMut(&[u8]) -> Result<(), MemoryError>,
    ) -> Result<(), IoError> {
        self.pieces(offset, len, |io, bytes| {
            io.read_exact(bytes).map_err(|_| IoErrorKind::Medium)?;
            sink(bytes).map_err(|MemoryError| IoErrorKind::Memory)
        })
    }

    fn write(
        &mut self,
        offset: u64,
        len: usize,
        mut source: impl FnMut(&mut [u8]) -> Result<(), MemoryError>,
    ) -> Result<(), IoError> {
        self.pieces(offset, len, |io, bytes| {
            source(bytes).map_err(|MemoryError| IoErrorKind::Memory)?;
            io.write_all(bytes).map_err(|_| IoErrorKind::Medium)
        })
    }

    fn flush(&mut self) -> Result<(), IoError> {
        self.io.flush().map_err(|_| IoErrorKind::Medium.into())
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;
    use crate::memory::CellMemory;
    use crate::op::{Op, Segment};
    use crate::storage::{Storage, Submission};
    use crate::sync::Synchronous;
    use crate::units::{Extent, GuestAddr, Tag};

    const PAGE: Segment = Segment::Guest { addr: GuestAddr(0x1000), len: 1024 };

    fn run<D: Medium>(
        disk: &mut Synchronous<'_, D, 2>,
        memory: &CellMemory<'_>,
        op: Op,
        segments: &[Segment],
    ) -> Result<(), IoErrorKind> {
        match disk.submit(memory, Tag::default(), op, segments) {
            Ok(Submission::Done(result)) => result.map_err(|error| error.kind),
            other => panic!("it is done at once: {other:?}"),
        }
    }

    /// Flash whose flush fails once and then "succeeds".
    struct FailsOnce(std::io::Cursor<vec::Vec<u8>>, bool);

    impl embedded_io::ErrorType for FailsOnce {
        type Error = embedded_io::ErrorKind;
    }
    impl Read for FailsOnce {
        fn read(&mut self, buf: &mut [u8]) -> Result<usize, Self::Error> {
            std::io::Read::read(&mut self.0, buf).map_err(|_| embedded_io::ErrorKind::Other)
        }
    }
    impl Write for FailsOnce {
        fn write(&mut self, buf: &[u8]) -> Result<usize, Self::Error> {
            std::io::Write::write(&mut self.0, buf).map_err(|_| embedded_io::ErrorKind::Other)
        }
        fn flush(&mut self) -> Result<(), Self::Error> {
            if core::mem::replace(&mut self.1, true) { Ok(()) } else { Err(embedded_io::ErrorKind::Other) }
        }
    }
    impl Seek for FailsOnce {
        fn seek(&mut self, pos: SeekFrom) -> Result<u64, Self::Error> {
            let SeekFrom::Start(offset) = pos else { return Err(embedded_io::ErrorKind::Unsupported) };
            self.0.set_position(offset);
            Ok(offset)
        }
    }

    // host-std/tests/defects.md, 17.
    #[test]
    fn a_failed_flush_latches_although_the_next_would_succeed() {
        let mut ram = vec![5; 8192];
        let memory = CellMemory::new(GuestAddr(0), &mut ram);
        let io = FailsOnce(std::io::Cursor::new(vec![0; 4096]), false);
        let mut disk = Synchronous::<_, 2>::new(IoMedium::new(io, 4096, Cache::WriteBack), &mut []);
        let extent = Extent::new(1, 2);
        run(&mut disk, &memory, Op::Write { extent, fua: false }, &[PAGE]).unwrap();
        assert_eq!(run(&mut disk, &memory, Op::Flush, &[]), Err(IoErrorKind::Medium));
        assert_eq!(run(&mut disk, &memory, Op::Flush, &[]), Err(IoErrorKind::Latched));
        assert_eq!(
            run(&mut disk, &memory, Op::Write { extent, fua: false }, &[PAGE]),
            Err(IoErrorKind::Latched)
        );
        assert_eq!(run(&mut disk, &memory, Op::Read { extent }, &[PAGE]), Ok(()), "plain reads go on");
        assert!(disk.into_medium().io.0.into_inner()[512..1536].iter().all(|byte| *byte == 5));
    }
}
