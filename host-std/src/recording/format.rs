//! The layout of a recording. What it means is on the [front page](super).

use blk_core::op::Op;
use blk_core::storage::{Cache, Info, IoError, IoErrorKind};
use blk_core::units::{Extent, Lba};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of a recording. The first one is no ASCII, so that nothing takes the file for text.
pub(crate) const MAGIC: [u8; 8] = *b"\x89BLKREC\n";
/// The version that is written, and the only one that is read.
pub(crate) const VERSION: u16 = 1;
/// Stands for "no sector".
const NO_LBA: u64 = u64::MAX;

macro_rules! layout {
    ($($(#[$doc:meta])* $name:ident, $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $bytes);
    )*};
}

layout! {
    /// The start of the file.
    FileHeader, 64 {
        /// [`MAGIC`].
        magic: [u8; 8],
        /// [`VERSION`].
        version: U16,
        /// Zero.
        reserved: U16,
        /// What the image held at the start: [`base`].
        base: U32,
        /// Its size then, in sectors.
        sectors: U64,
        /// XXH3-128 of its contents; zero where they were zeroes.
        hash: [u8; 16],
        /// Zero.
        padding: [u8; 20],
        /// CRC32C of the bytes before.
        crc: U32,
    }

    /// The start of a record.
    RecordHeader, 28 {
        /// Bytes that follow this header.
        len: U32,
        /// [`kind`].
        kind: U16,
        /// [`flag`].
        flags: U16,
        /// The handle, by its number within the session; zero for records of the whole image.
        handle: U32,
        /// CRC32C of the bytes that follow.
        body_crc: U32,
        /// The number of records before this one.
        sequence: U64,
        /// CRC32C of the bytes before: a length that is wrong is not taken for a tail that was cut off.
        crc: U32,
    }

    /// A session begins.
    SessionBody, 48 {
        /// Seconds since 1970.
        time: U64,
        /// The process that serves the image.
        process: U32,
        /// Zero.
        reserved: U32,
        /// What the storage says of itself.
        info: InfoBody,
    }

    /// [`Info`].
    InfoBody, 32 {
        sectors: U64,
        logical_block_bytes: U32,
        physical_block_bytes: U32,
        optimal_io_bytes: U32,
        staging_bytes: U32,
        transfer_max_bytes: U32,
        segments_max: U16,
        /// 0 write-through, 1 write-back, 2 unsafe.
        cache: u8,
        /// Bit 0 read-only, 1 rotational, 2 FUA, 3 range_stable, 4 discard.
        flags: u8,
    }

    /// An operation is given to the host; a write's data follows unless [`flag::ZEROES`] is set.
    SubmitBody, 24 {
        /// [`opcode`].
        op: u8,
        /// Zero.
        reserved: [u8; 7],
        lba: U64,
        sectors: U64,
    }

    /// An operation's completion was taken from the host.
    CompleteBody, 24 {
        /// The sequence number of its submission.
        submission: U64,
        /// The sector that an error names, or all ones.
        lba: U64,
        /// [`result`].
        result: u8,
        /// Zero.
        reserved: [u8; 7],
    }

    /// The host was busy: the operation submitted with this sequence number was not taken.
    WithdrawnBody, 8 {
        submission: U64,
    }
}

/// What an image held when its recording began.
pub(crate) mod base {
    /// Zeroes everywhere.
    pub(crate) const ZEROES: u32 = 0;
    /// Something, of which the header has the hash.
    pub(crate) const DATA: u32 = 1;
}

/// Kinds of records.
pub(crate) mod kind {
    pub(crate) const SESSION: u16 = 1;
    pub(crate) const INFO: u16 = 2;
    pub(crate) const SUBMIT: u16 = 3;
    pub(crate) const COMPLETE: u16 = 4;
    pub(crate) const WITHDRAWN: u16 = 5;
    pub(crate) const FENCE: u16 = 6;
    pub(crate) const MARK: u16 = 7;
    pub(crate) const END: u16 = 8;
}

/// Flags of a submission.
pub(crate) mod flag {
    /// A write with FUA.
    pub(crate) const FUA: u16 = 1 << 0;
    /// A write-zeroes that may release the space.
    pub(crate) const MAY_UNMAP: u16 = 1 << 1;
    /// The data of the write is all zeroes, and left out.
    pub(crate) const ZEROES: u16 = 1 << 2;
}

mod opcode {
    pub(super) const READ: u8 = 0;
    pub(super) const WRITE: u8 = 1;
    pub(super) const WRITE_ZEROES: u8 = 2;
    pub(super) const DISCARD: u8 = 3;
    pub(super) const FLUSH: u8 = 4;
}

impl SubmitBody {
    /// The layout of an operation, and the flags of its record.
    pub(crate) fn encode(op: Op) -> (Self, u16) {
        let (code, flags) = match op {
            // The last three are not recorded; a reader would take them for what they are to the image, a read of nothing.
            Op::Read { .. } | Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {
                (opcode::READ, 0)
            }
            Op::Write { fua, .. } => (opcode::WRITE, if fua { flag::FUA } else { 0 }),
            Op::WriteZeroes { may_unmap, .. } => {
                (opcode::WRITE_ZEROES, if may_unmap { flag::MAY_UNMAP } else { 0 })
            }
            Op::Discard { .. } => (opcode::DISCARD, 0),
            Op::Flush => (opcode::FLUSH, 0),
        };
        let extent = op.extent().unwrap_or_default();
        let body =
            Self { op: code, reserved: [0; 7], lba: extent.start.0.into(), sectors: extent.sectors.into() };
        (body, flags)
    }

    pub(crate) fn decode(&self, flags: u16) -> Option<Op> {
        let extent = Extent::new(self.lba.get(), self.sectors.get());
        Some(match self.op {
            opcode::READ => Op::Read { extent },
            opcode::WRITE => Op::Write { extent, fua: flags & flag::FUA != 0 },
            opcode::WRITE_ZEROES => Op::WriteZeroes { extent, may_unmap: flags & flag::MAY_UNMAP != 0 },
            opcode::DISCARD => Op::Discard { extent },
            opcode::FLUSH => Op::Flush,
            _ => return None,
        })
    }
}

/// The results of a completion: 0 is success.
const RESULTS: [IoErrorKind; 8] = [
    IoErrorKind::Medium,
    IoErrorKind::NoSpace,
    IoErrorKind::ReadOnly,
    IoErrorKind::OutOfRange,
    IoErrorKind::Memory,
    IoErrorKind::Latched,
    IoErrorKind::Unsupported,
    IoErrorKind::Absent,
];

impl CompleteBody {
    pub(crate) fn encode(submission: u64, result: Result<(), IoError>) -> Self {
        let (code, lba) = match result {
            Ok(()) => (0, None),
            Err(error) => (1 + code_of(error.kind), error.lba),
        };
        let lba = lba.map_or(NO_LBA, |lba| lba.0);
        Self { submission: submission.into(), lba: lba.into(), result: code, reserved: [0; 7] }
    }

    pub(crate) fn decode(&self) -> Option<Result<(), IoError>> {
        let Some(index) = self.result.checked_sub(1) else { return Some(Ok(())) };
        let lba = self.lba.get();
        let lba = (lba != NO_LBA).then_some(Lba(lba));
        Some(Err(IoError { kind: *RESULTS.get(usize::from(index))?, lba }))
    }
}

/// The position in [`RESULTS`].
const fn code_of(kind: IoErrorKind) -> u8 {
    match kind {
        IoErrorKind::Medium => 0,
        IoErrorKind::NoSpace => 1,
        IoErrorKind::ReadOnly => 2,
        IoErrorKind::OutOfRange => 3,
        IoErrorKind::Memory => 4,
        IoErrorKind::Latched => 5,
        IoErrorKind::Unsupported => 6,
        IoErrorKind::Absent => 7,
    }
}

impl InfoBody {
    pub(crate) fn encode(info: &Info) -> Self {
        let flags = [info.read_only, info.rotational, info.fua, info.range_stable, info.discard];
        Self {
            sectors: info.sectors.into(),
            logical_block_bytes: info.logical_block_bytes.into(),
            physical_block_bytes: info.physical_block_bytes.into(),
            optimal_io_bytes: info.optimal_io_bytes.into(),
            staging_bytes: info.staging_bytes.into(),
            transfer_max_bytes: info.transfer_max_bytes.into(),
            segments_max: info.segments_max.into(),
            cache: match info.cache {
                Cache::WriteThrough => 0,
                Cache::WriteBack => 1,
                Cache::Unsafe => 2,
            },
            flags: flags.iter().rev().fold(0, |bits, &set| bits << 1 | u8::from(set)),
        }
    }

    pub(crate) fn decode(&self) -> Option<Info> {
        let flag = |bit: u8| self.flags >> bit & 1 != 0;
        Some(Info {
            sectors: self.sectors.get(),
            logical_block_bytes: self.logical_block_bytes.get(),
            physical_block_bytes: self.physical_block_bytes.get(),
            optimal_io_bytes: self.optimal_io_bytes.get(),
            read_only: flag(0),
            rotational: flag(1),
            cache: match self.cache {
                0 => Cache::WriteThrough,
                1 => Cache::WriteBack,
                2 => Cache::Unsafe,
                _ => return None,
            },
            fua: flag(2),
            range_stable: flag(3),
            discard: flag(4),
            staging_bytes: self.staging_bytes.get(),
            segments_max: self.segments_max.get(),
            transfer_max_bytes: self.transfer_max_bytes.get(),
            // Of no meaning to what is on the disk.
            holds: false,
            state_bytes: 0,
        })
    }
}

impl FileHeader {
    pub(crate) fn new(sectors: u64, hash: Option<u128>) -> Self {
        let mut header = Self {
            magic: MAGIC,
            version: VERSION.into(),
            reserved: 0.into(),
            base: if hash.is_some() { base::DATA } else { base::ZEROES }.into(),
            sectors: sectors.into(),
            hash: hash.unwrap_or(0).to_le_bytes(),
            padding: [0; 20],
            crc: 0.into(),
        };
        header.crc = header.checksum().into();
        header
    }

    pub(crate) fn checksum(&self) -> u32 {
        checksum_before_last_word(self.as_bytes())
    }
}

impl RecordHeader {
    /// The header of a record whose body is made of `parts`.
    pub(crate) fn new(sequence: u64, kind: u16, flags: u16, handle: u32, parts: [&[u8]; 2]) -> Self {
        let [first, second] = parts;
        let body_crc = crc32c::crc32c_append(crc32c::crc32c(first), second);
        let mut header = Self {
            // No record is larger than the largest transfer, whose length is a u32 already, and 24 bytes.
            len: ((first.len() + second.len()) as u32).into(),
            kind: kind.into(),
            flags: flags.into(),
            handle: handle.into(),
            body_crc: body_crc.into(),
            sequence: sequence.into(),
            crc: 0.into(),
        };
        header.crc = header.checksum().into();
        header
    }

    pub(crate) fn checksum(&self) -> u32 {
        checksum_before_last_word(self.as_bytes())
    }
}

fn checksum_before_last_word(bytes: &[u8]) -> u32 {
    crc32c::crc32c(&bytes[..bytes.len() - 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use blk_core::ram::plain_info;

    #[test]
    fn operations_results_and_infos_come_back_as_they_were() {
        let extent = Extent::new(7, 9);
        for op in [
            Op::Read { extent },
            Op::Write { extent, fua: false },
            Op::Write { extent, fua: true },
            Op::WriteZeroes { extent, may_unmap: false },
            Op::WriteZeroes { extent, may_unmap: true },
            Op::Discard { extent },
            Op::Flush,
        ] {
            let (body, flags) = SubmitBody::encode(op);
            assert_eq!(body.decode(flags), Some(op));
        }
        let errors = RESULTS
            .iter()
            .flat_map(|&kind| [None, Some(Lba(0)), Some(Lba(77))].map(|lba| Err(IoError { kind, lba })));
        for result in errors.chain([Ok(())]) {
            assert_eq!(CompleteBody::encode(3, result).decode(), Some(result));
        }
        let plain = plain_info(1 << 20, Cache::WriteBack);
        for info in [
            plain,
            Info { read_only: true, rotational: true, cache: Cache::Unsafe, ..plain },
            Info { fua: true, cache: Cache::WriteThrough, ..plain },
            Info { range_stable: true, optimal_io_bytes: 9, staging_bytes: 512, ..plain },
            Info { discard: true, logical_block_bytes: 4096, physical_block_bytes: 8192, ..plain },
        ] {
            let decoded = Info { holds: false, state_bytes: 0, ..info };
            assert_eq!(InfoBody::encode(&info).decode(), Some(decoded));
        }
    }
}
