//! Direct I/O on a device whose blocks are larger than a guest's: parts of blocks are read, changed and written back, and no
//! neighbour is ever lost.

mod common;

use blk_core::op::{Op, Segment};
use blk_core::storage::{CacheMode, Storage};
use blk_core::units::Extent;
use common::*;
use host_std::backend::{FileBackend, FileOptions, FileStorage};
use host_std::memory::MappedMemory;

const SECTORS: u64 = (IMAGE_BYTES / 512) as u64;

/// A device with blocks of 4096 bytes, opened with a logical block of 512 bytes.
fn with_large_blocks(mode: CacheMode, check: impl Fn(&FileBackend, &MappedMemory)) {
    let images = Images::on_disk();
    let backing = images.image("backing", IMAGE_BYTES);
    let Some(device) = Loop::over(&backing, 4096) else { return };
    let plain = FileBackend::open(&device.0, &FileOptions::new(mode)).unwrap();
    assert_eq!(plain.info().logical_block_bytes, 4096, "the device's own, unless told otherwise");
    drop(plain);
    let options = FileOptions { logical_block_bytes: Some(512), ..FileOptions::new(mode) };
    let backend = FileBackend::open(&device.0, &options).unwrap();
    assert_eq!((backend.info().logical_block_bytes, backend.info().physical_block_bytes), (512, 4096));
    check(&backend, &memory());
}

#[test]
fn parts_of_blocks_are_written_without_touching_the_rest() {
    for mode in [CacheMode::None, CacheMode::DirectSync] {
        with_large_blocks(mode, |backend, memory| {
            let mut disk = backend.handle().unwrap();
            let mut expected = vec![0xee_u8; IMAGE_BYTES];
            // Inside a block, over a border, over the bounce buffer's size, the last sector, odd memory, FUA.
            let cases =
                [(1, 1, 0x0), (7, 2, 0x1001), (3, 600, 0x3), (8, 8, 0x2), (SECTORS - 1, 1, 0), (8, 520, 1)];
            for (n, (start, sectors, addr)) in cases.into_iter().enumerate() {
                let (at, bytes) = (start as usize * 512, sectors as usize * 512);
                fill(memory, addr, bytes, n as u8);
                expected[at..at + bytes].fill(n as u8);
                let op = if n % 2 == 0 { write(start, sectors) } else { fua(start, sectors) };
                assert_eq!(run(&mut disk, memory, op, &[guest(addr, bytes as u32)]), Ok(()));
                assert_eq!(
                    run(&mut disk, memory, read(start, sectors), &[guest(0x10_0005, bytes as u32)]),
                    Ok(())
                );
                assert!(peek(memory, 0x10_0005, bytes) == expected[at..at + bytes], "case {n}");
            }
            let zeroes = Extent::new(5, 700);
            assert_eq!(
                run(&mut disk, memory, Op::WriteZeroes { extent: zeroes, may_unmap: true }, &[]),
                Ok(())
            );
            expected[5 * 512..705 * 512].fill(0);
            assert_eq!(run(&mut disk, memory, read(0, SECTORS), &[guest(0, IMAGE_BYTES as u32)]), Ok(()));
            assert!(peek(memory, 0, IMAGE_BYTES) == expected);
            assert_eq!(run(&mut disk, memory, Op::Discard { extent: Extent::new(1, 6) }, &[]), Ok(()));
            assert_eq!(run(&mut disk, memory, read(1, 6), &[guest(0, 3072)]), Ok(()));
            assert!(peek(memory, 0, 3072) == expected[512..4096 - 512], "no whole block: nothing to release");
            assert!(backend.counts().bounced > 0);
        });
    }
}

/// Two handles write single sectors of the same blocks at the same time, among them whole blocks and zeroes; each sector
/// has one writer, and what was acknowledged last is there.
#[test]
fn a_write_beside_another_in_the_same_block_is_never_lost() {
    const DEPTH: u16 = 24;
    const ROUNDS: u8 = 60;
    with_large_blocks(CacheMode::None, |backend, memory| {
        let mut disks = [backend.handle().unwrap(), backend.handle().unwrap()];
        // Slot n of handle h writes sector 2n + h; slot DEPTH writes the whole block behind, or zeroes two sectors of it.
        let submit = |disk: &mut FileStorage, h: u64, slot: u16, round: u8| {
            let addr = 0x1000 * (u64::from(slot) + 64 * h);
            let (op, segments): (Op, &[Segment]) = if slot < DEPTH {
                fill(memory, addr, 512, round);
                (write(2 * u64::from(slot) + h, 1), &[guest(addr, 512)])
            } else if round.is_multiple_of(2) {
                fill(memory, addr, 4096, round);
                (write(2 * u64::from(DEPTH) + 8 * h, 8), &[guest(addr, 4096)])
            } else {
                let extent = Extent::new(2 * u64::from(DEPTH) + 8 * h + 3, 2);
                (Op::WriteZeroes { extent, may_unmap: false }, &[])
            };
            let _ = disk.submit(memory, tag(slot), op, segments).unwrap();
        };
        let mut rounds = [[1_u8; DEPTH as usize + 1]; 2];
        let mut left = 0;
        for (h, disk) in disks.iter_mut().enumerate() {
            for slot in 0..=DEPTH {
                submit(disk, h as u64, slot, 1);
                left += u32::from(ROUNDS);
            }
        }
        while left != 0 {
            for (h, disk) in disks.iter_mut().enumerate() {
                while let Some(completion) = disk.poll(memory) {
                    assert_eq!(completion.result, Ok(()));
                    left -= 1;
                    let slot = completion.tag.slot;
                    let round = &mut rounds[h][usize::from(slot)];
                    if *round < ROUNDS {
                        *round += 1;
                        submit(disk, h as u64, slot, *round);
                    }
                }
            }
            std::thread::yield_now();
        }
        let sectors = 2 * u64::from(DEPTH) + 16;
        let all = [guest(0, sectors as u32 * 512)];
        assert_eq!(run(&mut disks[0], memory, read(0, sectors), &all), Ok(()));
        let bytes = peek(memory, 0, sectors as usize * 512);
        for (n, sector) in bytes.chunks(512).enumerate() {
            let behind = n.checked_sub(2 * usize::from(DEPTH));
            // The last round is even: the whole block was written after the zeroes of the round before.
            let expected = if behind.is_none_or(|n| n < 16) { ROUNDS } else { 0xee };
            assert!(sector.iter().all(|&byte| byte == expected), "sector {n}: {}", sector[0]);
        }
    });
}
