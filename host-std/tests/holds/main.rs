//! Holds of the file backend: what is compared and written on one handle is one atomic group for all others.

#[path = "../common/mod.rs"]
mod common;
mod contract;
mod initiator;

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;

use blk_core::storage::CacheMode;
use common::{IMAGE_BYTES, Images};
use host_std::backend::{FileBackend, FileOptions, IoEngine};
use initiator::{BLOCK, Block, Holds, Initiator};

const PAIRS: u32 = 300;
const LBA: u32 = 5;

/// Runs `test` on an image in each cache mode, and, with fewer turns, in each engine and on tmpfs.
fn in_every_mode(turns: u32, test: impl Fn(&FileBackend, u32)) {
    let (disk, ram) = (Images::on_disk(), Images::in_memory());
    let open = |path: &Path, mode, engine| {
        std::fs::write(path, vec![0; IMAGE_BYTES]).unwrap();
        let backend = FileBackend::open(path, &FileOptions { engine, ..FileOptions::new(mode) });
        // A kernel may forbid io_uring, which a handle asks for, and an older one O_DIRECT on a tmpfs.
        let backend = backend.and_then(|backend| backend.handle().map(|_| backend));
        backend.inspect_err(|error| common::ignored(error)).ok()
    };
    for mode in CacheMode::ALL {
        for (images, engine, turns) in [
            (Some(&disk), IoEngine::Auto, turns),
            (Some(&disk), IoEngine::Threads, turns / 6),
            (Some(&disk), IoEngine::Ring, turns / 6),
            (ram.as_ref(), IoEngine::Auto, turns / 6),
        ] {
            let Some(images) = images else { continue };
            println!("{} {}", mode.name(), engine.name());
            if let Some(backend) = open(&images.0.path().join("image"), mode, engine) {
                test(&backend, turns);
            }
        }
    }
}

/// Both compare with what the last pair wrote, and write what is theirs. Returns in how many pairs not exactly one succeeded.
fn pairs(backend: &FileBackend, pairs: u32, holds: Holds) -> u32 {
    let (together, ended) = (Barrier::new(2), Barrier::new(2));
    let (successes, wrong) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for me in 0..2_u64 {
            let (together, ended, successes, wrong) = (&together, &ended, &successes, &wrong);
            let mut unit = Initiator::new(backend, holds);
            scope.spawn(move || {
                for _ in 0..pairs {
                    let before = unit.read(LBA);
                    together.wait();
                    let done = unit.compare_and_write(LBA, &before, &before.successor(me + 1));
                    successes.fetch_add(done.into(), Ordering::Relaxed);
                    ended.wait();
                    if me == 0 {
                        wrong
                            .fetch_add((successes.swap(0, Ordering::Relaxed) != 1).into(), Ordering::Relaxed);
                    }
                    together.wait();
                }
            });
        }
    });
    wrong.into_inner()
}

#[test]
fn of_two_units_that_compare_and_write_at_once_exactly_one_succeeds() {
    in_every_mode(PAIRS, |backend, turns| assert_eq!(pairs(backend, turns, Holds::Kept), 0, "of {turns}"));
}

/// So that the test above can fail.
#[test]
fn without_holds_both_succeed() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let backend = FileBackend::open(path, &FileOptions::new(CacheMode::WriteThrough)).unwrap();
    assert_ne!(pairs(&backend, PAIRS, Holds::Granted), 0);
}

#[test]
fn no_increment_by_compare_and_write_is_lost_beside_writes_of_the_neighbours() {
    const HANDLES: u64 = 3;
    in_every_mode(120, |backend, turns| {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let counters: Vec<_> = (0..HANDLES)
                .map(|_| {
                    let mut unit = Initiator::new(backend, Holds::Kept);
                    scope.spawn(move || (0..turns / 3).for_each(|_| unit.increment(LBA)))
                })
                .collect();
            for lba in [LBA - 1, LBA + 1] {
                let (over, mut unit) = (&over, Initiator::new(backend, Holds::Kept));
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        unit.write(lba, &Block::filled(7));
                    }
                });
            }
            counters.into_iter().for_each(|counter| counter.join().unwrap());
            over.store(true, Ordering::Relaxed);
        });
        let mut unit = Initiator::new(backend, Holds::Kept);
        assert_eq!(unit.read(LBA).counter(), HANDLES * u64::from(turns / 3));
    });
}

/// Returns in how many turns a write was undone by a COMPARE AND WRITE that had compared before it.
fn undone_writes(backend: &FileBackend, turns: u32, holds: Holds) -> u64 {
    let (over, undone) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            let (over, mut unit) = (&over, Initiator::new(backend, holds));
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    unit.increment(LBA);
                }
            });
        }
        let mut unit = Initiator::new(backend, holds);
        for turn in 1..=u64::from(turns) {
            // The counter is below the turn: increments leave the turn as it is.
            unit.write(LBA, &Block::new(turn << 32));
            let seen = unit.read(LBA).counter() >> 32;
            undone.fetch_add((seen < turn).into(), Ordering::Relaxed);
        }
        over.store(true, Ordering::Relaxed);
    });
    undone.into_inner()
}

/// And each of the writes comes to its turn, although there is always somebody who holds.
#[test]
fn a_write_is_not_undone_by_who_compared_before_it() {
    in_every_mode(120, |backend, turns| assert_eq!(undone_writes(backend, turns, Holds::Kept), 0));
}

#[test]
fn without_holds_writes_are_undone() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let backend = FileBackend::open(path, &FileOptions::new(CacheMode::WriteThrough)).unwrap();
    assert_ne!(undone_writes(&backend, 1000, Holds::Granted), 0);
}

#[test]
fn no_bit_that_orwrite_sets_on_two_units_is_lost() {
    const BLOCKS: u32 = 4;
    in_every_mode(64, |backend, _| {
        let mut unit = Initiator::new(backend, Holds::Kept);
        (LBA..LBA + BLOCKS).for_each(|lba| unit.write(lba, &Block::filled(0)));
        thread::scope(|scope| {
            for half in [0x11_u8, 0x22, 0x44] {
                let mut unit = Initiator::new(backend, Holds::Kept);
                scope.spawn(move || {
                    for lba in LBA..LBA + BLOCKS {
                        for byte in 0..4 {
                            unit.or_write(lba, &Block::with(byte, half));
                        }
                    }
                });
            }
        });
        for lba in LBA..LBA + BLOCKS {
            let block = unit.read(lba);
            assert_eq!(block.0[..5], [0x77, 0x77, 0x77, 0x77, 0], "block {lba} of {BLOCK} bytes");
        }
    });
}
