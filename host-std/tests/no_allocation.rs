//! No heap allocation per request on the aligned path, on any thread.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use blk_core::op::{Op, Segment};
use blk_core::storage::{CacheMode, Storage};
use common::*;
use host_std::backend::{FileBackend, FileOptions};

/// The system's allocator, with every allocation of every thread counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on as it is to the system's allocator, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's preconditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above: `pointer` came from `System.alloc` or `System.realloc` with `layout`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test alone: a second one's thread would allocate meanwhile.
#[test]
fn requests_on_the_aligned_path_allocate_nothing_on_any_thread() {
    const REQUESTS: u32 = 10_000;
    let disk = Images::on_disk();
    let ram = Images::in_memory();
    let images = [Some(disk), ram];
    for images in images.iter().flatten() {
        for mode in CacheMode::ALL {
            // Real syncs of a real disk take their time; fewer of them prove the same.
            let requests = if images.0.path().starts_with("/dev/shm") { REQUESTS } else { REQUESTS / 20 };
            let path = images.image("image", IMAGE_BYTES);
            let backend = FileBackend::open(&path, &FileOptions::new(mode)).unwrap();
            let memory = memory();
            let mut disks = [backend.handle().unwrap(), backend.handle().unwrap()];
            let mut run = |requests: u32| {
                let (mut submitted, mut done) = (0_u32, 0);
                while done < requests {
                    for (h, disk) in disks.iter_mut().enumerate() {
                        while submitted < requests && disk.in_use() < 32 {
                            let n = u64::from(submitted);
                            let at = 8 * (n % 64);
                            let pages = [guest(0x1000 * (n % 64), 2048), guest(0x8_0000, 2048)];
                            let (op, segments): (Op, &[Segment]) = match n % 8 {
                                0 => (Op::Flush, &[]),
                                1 if backend.info().fua => (fua(at, 8), &pages),
                                1..4 => (write(at, 8), &pages),
                                _ => (read(at, 8), &pages),
                            };
                            let _ = disk.submit(&memory, tag(h as u16), op, segments).unwrap();
                            submitted += 1;
                        }
                        while let Some(completion) = disk.poll(&memory) {
                            assert!(completion.result.is_ok());
                            done += 1;
                        }
                        if disk.in_use() != 0 {
                            disk.wait(None);
                        }
                    }
                }
            };
            // Queues reach their size, and threads come up, also those that are given nothing to do.
            run(500);
            std::thread::sleep(Duration::from_millis(100));
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            assert_ne!(before, 0, "the counter counts");
            run(requests);
            let made = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(made, 0, "{requests} requests, {} on {}", mode.name(), path.display());
            assert_eq!(backend.counts().bounced, 0, "the aligned path");
        }
    }
}
