//! virtio-blk's decoders: request headers, transfers, and the segments of a discard or write-zeroes.

use blk_core::op::Op;
use blk_core::ram::plain_info;
use blk_core::storage::{Cache, Info};
use virtio_blk_model::command::{Command, RANGES_MAX, decode, features, range, ranges, transfer};
use virtio_blk_model::wire::{Features, RequestHeader, Status};
use zerocopy::FromBytes as _;

use crate::program::Seed as _;
use crate::record;

record! {
    /// The device and a request's fixed part.
    pub struct Input {
        /// Read-only by configuration, by storage, discard, log2 of the logical block.
        pub disk: u8,
        /// Sectors.
        pub sectors: u32,
        /// As negotiated.
        pub features: u64,
        /// The header's bytes.
        pub header: [u8; 16],
        /// Bytes of data.
        pub bytes: u32,
    }
}

/// Runs one [`Input`]; the rest of the bytes are the data of a discard or write-zeroes.
pub fn run(data: &[u8]) {
    let mut source = arbitrary::Unstructured::new(data);
    let Ok(input) = source.arbitrary::<Input>() else { return };
    let rest = source.take_rest();
    let read_only = input.disk & 1 != 0;
    let block = 512_u32 << (input.disk >> 3 & 3);
    let info = Info {
        sectors: u64::from(input.sectors) & !(u64::from(block >> 9) - 1),
        logical_block_bytes: block,
        physical_block_bytes: block,
        read_only: input.disk & 2 != 0,
        discard: input.disk & 4 != 0,
        ..plain_info(0, Cache::WriteBack)
    };
    let read_only = read_only || info.read_only;
    let header = RequestHeader::read_from_bytes(&input.header).expect("16 bytes");
    let negotiated = Features::from_bits_truncate(input.features);
    let offered = features(&info, read_only);
    assert!(offered.contains(Features::FLUSH), "a flush is always offered");
    assert!(!(read_only && offered.intersects(Features::DISCARD | Features::WRITE_ZEROES)));

    let decoded = decode(&header, negotiated, &info, read_only);
    let Ok((command, _)) = decoded else {
        assert!(read_only, "only a change to a read-only disk is refused here: {header:?}");
        return;
    };
    match command {
        Command::Read { sector } | Command::Write { sector, .. } => {
            assert!(!(read_only && matches!(command, Command::Write { .. })));
            let bytes = u64::from(input.bytes);
            if let Ok(extent) = transfer(sector, bytes, &info) {
                assert_eq!((extent.start.0, extent.bytes()), (sector, Some(bytes)));
                assert!(extent.fits(info.sectors) && extent.sectors != 0);
                assert_eq!((sector | extent.sectors) % info.sectors_per_block(), 0);
            }
        }
        Command::Discard | Command::WriteZeroes => check_ranges(command, rest, &info),
        Command::Flush | Command::GetId | Command::Unknown { .. } => {}
    }
    if let Command::Discard = command {
        assert!(info.discard && !read_only);
    }
}

fn check_ranges(command: Command, bytes: &[u8], info: &Info) {
    let operation = |segment| range(command, segment, info).expect("it was checked");
    let decoded = ranges(command, bytes, info).map(|list| list.iter().map(operation).collect::<Vec<Op>>());
    let whole = bytes.len().is_multiple_of(16) && (1..=RANGES_MAX).contains(&(bytes.len() / 16));
    let Ok(ops) = decoded else {
        let flags = bytes.chunks_exact(16).any(|segment| segment[12..] != [0; 4]);
        assert!(decoded != Err(Status::Unsupported) || flags, "unsupported without a flag");
        return;
    };
    assert!(whole && ops.len() == bytes.len() / 16, "one operation for each segment");
    for (op, segment) in ops.iter().zip(bytes.chunks_exact(16)) {
        let extent = op.extent().expect("a range");
        assert_eq!(extent.start.0.to_le_bytes(), segment[..8]);
        assert_eq!((extent.sectors as u32).to_le_bytes(), segment[8..12]);
        assert!(extent.fits(info.sectors) && extent.sectors != 0);
        match *op {
            Op::Discard { .. } => assert_eq!(segment[12..], [0; 4], "a discard has no flags"),
            Op::WriteZeroes { may_unmap, .. } => assert_eq!([u8::from(may_unmap), 0, 0, 0], segment[12..]),
            _ => panic!("{command:?} became {op:?}"),
        }
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let input = |kind: u8, sector: u8, tail: &[u8]| {
        let mut header = [0; 16];
        (header[0], header[8]) = (kind, sector);
        let mut bytes = Vec::new();
        Input { disk: 4, sectors: 64, features: u64::MAX, header, bytes: 4096 }.put(&mut bytes);
        bytes.extend_from_slice(tail);
        bytes
    };
    let range = [3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
    let kinds = [0, 1, 4, 5, 8, 11, 13, 14];
    kinds.iter().map(|kind| input(*kind, 8, &range.repeat(2))).collect()
}
