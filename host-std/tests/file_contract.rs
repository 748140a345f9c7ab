//! The storage contract, kept by the file backend in every cache mode over a disk's file system, tmpfs and a block device.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use blk_core::memory::GuestMemory;
use blk_core::op::{Op, Segment};
use blk_core::storage::{Busy, Cache, CacheMode, IoErrorKind, Storage};
use blk_core::units::{Extent, Lba};
use common::*;
use host_std::backend::{FileBackend, FileOptions, FileStorage, OpenError};
use host_std::memory::MappedMemory;

const SECTORS: u64 = (IMAGE_BYTES / 512) as u64;

#[test]
fn what_was_written_is_read_back_through_segments_of_every_shape() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let mut disk = backend.handle().unwrap();
        let data: Vec<u8> = (0..8192_u32).map(|i| (i * 7 + i / 256) as u8).collect();
        let shapes: [&[Segment]; 5] = [
            &[guest(0x1000, 8192)],
            &[guest(0x3000, 512), guest(0x1000, 7680)],
            // From one region into the next.
            &[guest(BORDER - 4096, 8192)],
            // Nothing aligned: `O_DIRECT` has to bounce.
            &[guest(0x1001, 3), guest(0x2003, 8000), guest(0x5005, 189)],
            &[Segment::Staging { offset: 512, len: 512 }, guest(0x1000, 0), guest(0x1000, 7680)],
        ];
        for (n, segments) in shapes.iter().enumerate() {
            let start = 16 * n as u64 + 1;
            scatter(&memory, &mut disk, segments, &data);
            assert_eq!(run(&mut disk, &memory, write(start, 16), segments), Ok(()));
            scatter(&memory, &mut disk, segments, &[0; 8192]);
            assert_eq!(run(&mut disk, &memory, read(start, 16), segments), Ok(()));
            assert_eq!(gather(&memory, &mut disk, segments), data, "shape {n}");
        }
        assert_eq!(run(&mut disk, &memory, Op::Flush, &[]), Ok(()));
        drop(disk);
        drop(backend);
        let file = std::fs::File::open(path).unwrap();
        let mut bytes = vec![0; 8192];
        for n in 0..shapes.len() as u64 {
            file.read_exact_at(&mut bytes, (16 * n + 1) * 512).unwrap();
            assert_eq!(bytes, data);
        }
    });
}

fn scatter(memory: &MappedMemory, disk: &mut FileStorage, segments: &[Segment], mut data: &[u8]) {
    for segment in segments {
        let (part, rest) = data.split_at(segment.len() as usize);
        data = rest;
        match *segment {
            Segment::Guest { addr, .. } => memory.write(addr, part).unwrap(),
            Segment::Staging { offset, .. } => {
                let staging = Storage::<MappedMemory>::staging(disk, 3);
                staging[offset as usize..][..part.len()].copy_from_slice(part);
            }
        }
    }
}

fn gather(memory: &MappedMemory, disk: &mut FileStorage, segments: &[Segment]) -> Vec<u8> {
    let mut data = Vec::new();
    for segment in segments {
        let len = segment.len() as usize;
        match *segment {
            Segment::Guest { addr, .. } => data.extend(peek(memory, addr.0, len)),
            Segment::Staging { offset, .. } => {
                let staging = Storage::<MappedMemory>::staging(disk, 3);
                data.extend(&staging[offset as usize..][..len]);
            }
        }
    }
    data
}

#[test]
fn every_mode_states_what_its_completed_writes_are_worth() {
    everywhere(|path, mode| {
        let backend = open(path, mode);
        let info = backend.info();
        let expected = match mode {
            CacheMode::WriteThrough | CacheMode::DirectSync => Cache::WriteThrough,
            CacheMode::WriteBack | CacheMode::None => Cache::WriteBack,
            CacheMode::Unsafe => Cache::Unsafe,
        };
        assert_eq!((info.cache, info.sectors, info.logical_block_bytes), (expected, SECTORS, 512));
        if path.starts_with("/dev") {
            assert_eq!(
                info.fua,
                mode != CacheMode::Unsafe,
                "RWF_DSYNC is known to work on tmpfs and on devices"
            );
        }
        assert!(!(info.fua && mode == CacheMode::Unsafe));
        assert!(!info.range_stable && info.discard && info.staging_bytes == 65536);
        assert!(info.physical_block_bytes.is_power_of_two() && info.physical_block_bytes >= 512);
    });
}

#[test]
fn zeroes_and_discards_read_back_as_zero_on_part_of_a_page() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let mut disk = backend.handle().unwrap();
        for (n, may_unmap) in [false, true].into_iter().enumerate() {
            let start = 100 + 100 * n as u64;
            fill(&memory, 0, 32 * 512, 0x5a);
            assert_eq!(run(&mut disk, &memory, write(start, 32), &[guest(0, 32 * 512)]), Ok(()));
            let zeroes = Op::WriteZeroes { extent: Extent::new(start + 3, 23), may_unmap };
            assert_eq!(run(&mut disk, &memory, zeroes, &[]), Ok(()));
            assert_eq!(run(&mut disk, &memory, read(start, 32), &[guest(0, 32 * 512)]), Ok(()));
            let back = peek(&memory, 0, 32 * 512);
            for (sector, bytes) in back.chunks(512).enumerate() {
                let expected = if (3..26).contains(&sector) { 0 } else { 0x5a };
                assert!(bytes.iter().all(|&byte| byte == expected), "sector {sector} of {}", path.display());
            }
        }
        let discard = Op::Discard { extent: Extent::new(100, 32) };
        assert_eq!(run(&mut disk, &memory, discard, &[]), Ok(()));
        assert_eq!(run(&mut disk, &memory, read(100, 32), &[guest(0, 32 * 512)]), Ok(()));
        let back = peek(&memory, 0, 32 * 512);
        assert!(back.chunks(512).all(|s| s.iter().all(|&b| b == 0) || s.iter().all(|&b| b == 0x5a)));
        assert_eq!(run(&mut disk, &memory, Op::Discard { extent: Extent::new(5, 0) }, &[]), Ok(()));
        assert_eq!(backend.counts().ranges, 4);
    });
}

/// host-std/tests/defects.md, 3; OpenVMM 4046; cloud-hypervisor 8388 and 7873.
#[test]
fn what_lies_outside_the_disk_or_does_not_add_up_is_refused() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let (backend, memory) = (open(&path, CacheMode::WriteBack), memory());
    let mut disk = backend.handle().unwrap();
    let page = [guest(0, 512)];
    let cases = [
        (read(SECTORS, 1), page.as_slice(), IoErrorKind::OutOfRange),
        // Sector 2^55 is not sector 0, and the end does not wrap.
        (write(1 << 55, 1), &page, IoErrorKind::OutOfRange),
        (write(u64::MAX, 1), &page, IoErrorKind::OutOfRange),
        (Op::Discard { extent: Extent::new(SECTORS - 1, 2) }, &[], IoErrorKind::OutOfRange),
        (read(0, 2), &page, IoErrorKind::OutOfRange),
        (read(0, 0), &page, IoErrorKind::OutOfRange),
        (Op::Flush, &page, IoErrorKind::OutOfRange),
        (read(0, 1), &[guest(MEMORY_BYTES as u64 - 511, 512)], IoErrorKind::Memory),
        (read(0, 1), &[guest(u64::MAX - 10, 512)], IoErrorKind::Memory),
        (read(0, 1), &[Segment::Staging { offset: 65536 - 511, len: 512 }], IoErrorKind::Memory),
        (read(0, 1), &[Segment::Staging { offset: u32::MAX, len: 512 }], IoErrorKind::Memory),
    ];
    for (op, segments, expected) in cases {
        let result = run(&mut disk, &memory, op, segments);
        assert_eq!(kind(result), Some(expected), "{op:?} {segments:?}");
        assert_eq!(result.unwrap_err().lba, op.extent().map(|extent| extent.start));
    }
    let many = vec![guest(0, 4); 129];
    assert_eq!(kind(run(&mut disk, &memory, read(0, 1), &many)), Some(IoErrorKind::OutOfRange));
    assert_eq!(run(&mut disk, &memory, read(0, 0), &[]), Ok(()), "nothing, done");
    assert_eq!(run(&mut disk, &memory, read(0, 1), &many[..128]), Ok(()));
    assert_eq!(backend.latched(), None);
}

#[test]
fn a_full_handle_is_busy_and_takes_nothing() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let options = FileOptions { depth: 2, ..FileOptions::new(CacheMode::WriteBack) };
    let (backend, memory) = (FileBackend::open(&path, &options).unwrap(), memory());
    let mut disk = backend.handle().unwrap();
    let _ = disk.submit(&memory, tag(0), read(0, 1), &[guest(0, 512)]).unwrap();
    let _ = disk.submit(&memory, tag(1), Op::Flush, &[]).unwrap();
    assert_eq!(disk.submit(&memory, tag(2), read(0, 1), &[guest(0, 512)]), Err(Busy));
    let mut tags = [next(&mut disk, &memory).tag.slot, next(&mut disk, &memory).tag.slot];
    tags.sort_unstable();
    assert_eq!(tags, [0, 1]);
    assert!(disk.poll(&memory).is_none(), "exactly one completion each");
    assert_eq!(run(&mut disk, &memory, read(0, 1), &[guest(0, 512)]), Ok(()));
    assert_eq!(backend.counts().reads, 2);
}

#[test]
fn staging_is_out_of_reach_while_an_operation_uses_it() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let options = FileOptions { depth: 4, ..FileOptions::new(CacheMode::DirectSync) };
    let (backend, memory) = (FileBackend::open(&path, &options).unwrap(), memory());
    let mut disk = backend.handle().unwrap();
    let all = [Segment::Staging { offset: 0, len: 65536 }];
    let staging = |disk: &mut FileStorage, slot| Storage::<MappedMemory>::staging(disk, slot).to_vec();
    assert!(staging(&mut disk, 4).is_empty(), "no such slot");
    let _ = disk.submit(&memory, tag(1), read(0, 128), &all).unwrap();
    assert!(staging(&mut disk, 1).is_empty());
    assert_eq!(staging(&mut disk, 0), [0; 65536]);
    assert_eq!(next(&mut disk, &memory).result, Ok(()));
    assert_eq!(staging(&mut disk, 1), [0xee; 65536]);
    // A refused operation leaves it alone.
    let _ = disk.submit(&memory, tag(1), read(SECTORS, 128), &all).unwrap();
    assert!(next(&mut disk, &memory).result.is_err());
    assert_eq!(staging(&mut disk, 1), [0xee; 65536]);
}

/// host-std/tests/defects.md, 12: OVMF fails to boot where this is an error.
#[test]
fn a_flush_on_a_read_only_disk_succeeds_and_a_write_does_not() {
    everywhere(|path, mode| {
        let options = FileOptions { read_only: true, ..FileOptions::new(mode) };
        let (backend, memory) = (FileBackend::open(path, &options).unwrap(), memory());
        let mut disk = backend.handle().unwrap();
        assert!(backend.info().read_only && !backend.info().discard);
        assert_eq!(run(&mut disk, &memory, Op::Flush, &[]), Ok(()));
        assert_eq!(run(&mut disk, &memory, read(0, 1), &[guest(0, 512)]), Ok(()));
        let refused = [
            (write(0, 1), &[guest(0, 512)][..]),
            (Op::Discard { extent: Extent::new(0, 1) }, &[]),
            (Op::WriteZeroes { extent: Extent::new(0, 1), may_unmap: true }, &[]),
        ];
        for (op, segments) in refused {
            assert_eq!(kind(run(&mut disk, &memory, op, segments)), Some(IoErrorKind::ReadOnly));
        }
    });
}

#[test]
fn a_file_that_shrank_fails_reads_and_is_not_grown_by_them() {
    let images = Images::on_disk();
    for mode in CacheMode::ALL {
        let path = images.image("image", IMAGE_BYTES);
        let (backend, memory) = (open(&path, mode), memory());
        let mut disk = backend.handle().unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let error = run(&mut disk, &memory, read(4, 8), &[guest(0, 4096)]).unwrap_err();
        assert_eq!((error.kind, error.lba), (IoErrorKind::Medium, Some(Lba(8))), "{}", mode.name());
    }
}

#[test]
fn a_sleeper_is_woken_by_the_completion_and_only_by_it() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let (backend, memory) = (open(&path, CacheMode::WriteBack), memory());
    let mut disk = backend.handle().unwrap();
    assert!(!disk.wait(Some(Duration::from_millis(5))), "nothing to wait for");
    for _ in 0..200 {
        let _ = disk.submit(&memory, tag(0), read(0, 8), &[guest(0, 4096)]).unwrap();
        assert!(disk.wait(Some(Duration::from_secs(10))));
        assert!(disk.wait(None), "it is still there");
        assert!(disk.poll(&memory).is_some());
    }
    assert!(!disk.wait(Some(Duration::from_millis(5))), "and now it is not");
    // One that ended inside `submit` counts, too.
    let _ = disk.submit(&memory, tag(0), read(SECTORS, 1), &[guest(0, 512)]).unwrap();
    assert!(!disk.arm() && disk.wait(None));
}

#[test]
fn handles_share_the_image_and_each_gets_its_own_completions() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let mut disks: Vec<_> = (0..3).map(|_| backend.handle().unwrap()).collect();
        for (n, disk) in disks.iter_mut().enumerate() {
            fill(&memory, 0x1000 * n as u64, 512, n as u8 + 1);
            for slot in 0..20 {
                let op = write(40 * n as u64 + u64::from(slot), 1);
                let _ = disk.submit(&memory, tag(slot), op, &[guest(0x1000 * n as u64, 512)]).unwrap();
            }
        }
        for disk in &mut disks {
            let mut slots: Vec<_> = (0..20).map(|_| next(disk, &memory).tag.slot).collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..20).collect::<Vec<_>>());
        }
        assert_eq!(run(&mut disks[1], &memory, read(0, 120), &[guest(0x8000, 120 * 512)]), Ok(()));
        for (sector, bytes) in peek(&memory, 0x8000, 120 * 512).chunks(512).enumerate() {
            let expected = if sector % 40 < 20 { sector as u8 / 40 + 1 } else { bytes[0] };
            assert!(bytes.iter().all(|&byte| byte == expected));
        }
    });
}

#[test]
fn a_handle_dropped_in_mid_flight_lands_its_writes_and_keeps_their_memory() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    {
        let (backend, memory) = (open(&path, CacheMode::None), memory());
        let mut disk = backend.handle().unwrap();
        fill(&memory, 0, 4096, 0x77);
        for slot in 0..100 {
            let _ =
                disk.submit(&memory, tag(slot), write(8 * u64::from(slot), 8), &[guest(0, 4096)]).unwrap();
        }
        drop(disk);
        drop(memory);
        // The last owner waits for what is in flight.
        drop(backend);
    }
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[..100 * 4096].iter().all(|&byte| byte == 0x77));
    assert_eq!(bytes.len(), IMAGE_BYTES);
}

#[test]
fn odd_sizes_and_options_are_refused_with_the_file_and_the_remedy() {
    let images = Images::on_disk();
    let odd = images.image("odd", 1000);
    let empty = images.image("empty", 0);
    let good = images.image("good", 4096);
    let plain = FileOptions::new(CacheMode::WriteBack);
    let cases = [
        (&odd, plain.clone(), ["odd", "1000 bytes", "truncate -s %512"]),
        (&empty, plain.clone(), ["empty", "no capacity", "truncate -s 1G"]),
        (
            &good,
            FileOptions { logical_block_bytes: Some(8192), ..plain.clone() },
            ["good", "8192", "logical-block"],
        ),
        (
            &good,
            FileOptions { logical_block_bytes: Some(768), ..plain.clone() },
            ["good", "768", "power of two"],
        ),
        (&good, FileOptions { workers: 0, ..plain.clone() }, ["good", "workers=0", "1 to 64"]),
        (&good, FileOptions { depth: 129, ..plain.clone() }, ["good", "depth=129", "1 to 128"]),
    ];
    for (path, options, parts) in cases {
        let text = FileBackend::open(path, &options).map(|_| ()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    let missing = images.0.path().join("missing");
    let error = FileBackend::open(&missing, &plain).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::System { .. }) && error.to_string().contains("missing"), "{error}");
    assert!(matches!(
        FileBackend::open(images.0.path(), &FileOptions { read_only: true, ..plain.clone() }),
        Err(OpenError::NotADisk { .. })
    ));
}
