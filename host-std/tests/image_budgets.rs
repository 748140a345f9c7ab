//! Budgets of an image: bytes in flight, and memory that stands in for that of a guest whose client does not share it.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blk_core::memory::MemoryError;
use blk_core::op::Op;
use blk_core::storage::{CacheMode, Storage as _};
use blk_core::units::{Extent, GuestAddr};
use common::*;
use host_std::backend::{FileBackend, FileOptions, FileStorage, Handle, IoEngine};
use host_std::memory::{MappedMemory, RemoteMemory, RemoteWindow};

const PIECE: u32 = 256 << 10;

/// An image of 16 MiB with these budgets, whose requests threads serve.
fn with_budgets(images: &Images, in_flight: u64, private: u64) -> FileBackend {
    let options = FileOptions {
        in_flight_bytes_max: in_flight,
        private_bytes_max: private,
        engine: IoEngine::Threads,
        ..options(CacheMode::WriteBack)
    };
    FileBackend::open(images.image("image", 16 << 20), &options).unwrap()
}

/// Submits transfers of `PIECE` bytes in slots.
fn submit(disk: &mut FileStorage, memory: &MappedMemory, slots: std::ops::Range<u16>) {
    for slot in slots {
        let extent = Extent::new(u64::from(slot % 64) * 512, u64::from(PIECE) / 512);
        let op = if slot % 2 == 0 { Op::Read { extent } } else { Op::Write { extent, fua: false } };
        let _ = disk.submit(memory, tag(slot), op, &[guest(0, PIECE)]).unwrap();
    }
}

/// Polls until `count` operations have ended, asleep in between.
fn drain(disk: &mut FileStorage, memory: &MappedMemory, count: usize) {
    let mut ended = 0;
    while ended < count {
        match disk.poll(memory) {
            Some(completion) => {
                assert_eq!(completion.result, Ok(()));
                ended += 1;
            }
            None => assert!(
                disk.wait(Some(Duration::from_secs(60))),
                "nobody wakes the handle: {ended} of {count}"
            ),
        }
    }
}

#[test]
fn bytes_in_flight_stay_within_the_budget_of_all_handles_and_each_gets_its_turn() {
    let images = Images::on_disk();
    let backend = with_budgets(&images, 1 << 20, 1 << 20);
    let handles = [(); 4].map(|()| backend.handle().unwrap());
    std::thread::scope(|scope| {
        for mut disk in handles {
            scope.spawn(move || {
                let memory = memory();
                for _ in 0..8 {
                    submit(&mut disk, &memory, 0..100);
                    drain(&mut disk, &memory, 100);
                }
            });
        }
    });
    let report = backend.budgets();
    assert_eq!((report.bytes_in_flight.used, report.bytes_in_flight.limit), (0, 1 << 20));
    assert!(report.bytes_in_flight.peak <= 1 << 20, "{report:?}");
    assert!(report.delayed >= 4 * 90, "{report:?}");
    assert_eq!(report.waiting, 0);
}

/// One thread has both handles, as that of a PCI device, and looks at the one that waits first.
#[test]
fn a_handle_with_nothing_in_flight_is_woken_when_another_gives_room_back() {
    let images = Images::on_disk();
    let backend = with_budgets(&images, u64::from(PIECE), 1 << 20);
    let [mut one, mut other] = [(); 2].map(|()| backend.handle().unwrap());
    let memory = memory();
    submit(&mut one, &memory, 0..20);
    submit(&mut other, &memory, 0..20);
    let (mut ended, deadline) = ([0; 2], Instant::now() + Duration::from_secs(60));
    while ended != [20; 2] {
        for (disk, ended) in [&mut other, &mut one].into_iter().zip(&mut ended) {
            while let Some(completion) = disk.poll(&memory) {
                assert_eq!(completion.result, Ok(()));
                *ended += 1;
            }
        }
        let [a, b] = ended;
        // One began before the other came.
        assert!(i32::abs_diff(a, b) <= 12, "they take turns: {ended:?}");
        if ended != [20; 2] && other.arm() && one.arm() {
            use std::os::fd::AsFd as _;
            let fds = [other.as_fd(), one.as_fd()];
            let mut fds =
                fds.map(|fd| rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN));
            let second = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_ne!(rustix::event::poll(&mut fds, Some(&second)), Ok(0), "nobody is woken: {ended:?}");
        }
        assert!(Instant::now() < deadline);
    }
}

/// What it takes of the one budget and gives back, as the other has no room, is no news to the handle itself.
#[test]
fn a_handle_that_waits_for_private_memory_sleeps() {
    let images = Images::on_disk();
    let backend = with_budgets(&images, 1 << 20, u64::from(PIECE));
    let [mut one, mut other] = [(); 2].map(|()| backend.handle().unwrap());
    // Nobody polls it: it keeps its private memory.
    let memory = reached_by_messages(&Arc::default());
    submit(&mut one, &memory, 1..2);
    submit(&mut other, &memory, 1..2);
    assert_eq!(backend.budgets().waiting, 1);
    let looks = (0..10).take_while(|_| other.poll(&memory).is_none() && !other.arm()).count();
    assert!(looks <= 1, "it is polled again and again");
    drain(&mut one, &memory, 1);
    drain(&mut other, &memory, 1);
}

#[test]
fn what_moves_nothing_passes_what_waits_for_room() {
    let images = Images::on_disk();
    let backend = with_budgets(&images, 1, 1 << 20);
    let mut disk = backend.handle().unwrap();
    // Its bytes are fetched by polls: until then it has all that there is.
    let memory = reached_by_messages(&Arc::default());
    submit(&mut disk, &memory, 1..9);
    let report = backend.budgets();
    assert_eq!(report.bytes_in_flight.used, u64::from(PIECE), "larger than the budget, and alone");
    assert_eq!(report.waiting, 7);
    let _ = disk.submit(&memory, tag(100), Op::Flush, &[]).unwrap();
    assert_eq!(backend.budgets().waiting, 7);
    drain(&mut disk, &memory, 9);
    assert_eq!(backend.budgets().bytes_in_flight.peak, u64::from(PIECE));
}

#[test]
fn a_handle_that_goes_while_its_operations_wait_stands_in_nobody_s_way() {
    let images = Images::on_disk();
    let backend = with_budgets(&images, u64::from(PIECE), 1 << 20);
    let [mut one, mut other] = [(); 2].map(|()| backend.handle().unwrap());
    let memory = memory();
    submit(&mut one, &memory, 0..8);
    submit(&mut other, &memory, 0..8);
    drop(one);
    drain(&mut other, &memory, 8);
    assert_eq!(backend.budgets().waiting, 0);
}

#[test]
fn a_budget_of_nothing_is_refused() {
    let images = Images::on_disk();
    let path = images.image("image", 1 << 20);
    let options = FileOptions { in_flight_bytes_max: 0, ..options(CacheMode::WriteBack) };
    let error = FileBackend::open(path, &options).unwrap_err().to_string();
    assert!(error.contains("inflight=0") && error.contains("1 byte or more"), "{error}");
}

/// Counts what is copied, and whether it is anything but what it gave itself.
#[derive(Debug, Default)]
struct Counting(AtomicU64, AtomicBool);

impl RemoteMemory for Counting {
    fn read(&self, _: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        self.0.fetch_add(into.len() as u64, Ordering::Relaxed);
        into.fill(0x5a);
        Ok(())
    }

    fn write(&self, _: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        self.1.fetch_or(from.iter().any(|&byte| byte != 0x5a), Ordering::Relaxed);
        self.0.fetch_add(from.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn reached_by_messages(counting: &Arc<Counting>) -> MappedMemory {
    let window = RemoteWindow { addr: GuestAddr(0), len: 64 << 20, memory: Arc::clone(counting) as _ };
    MappedMemory::with_remote(Vec::new(), vec![window]).unwrap()
}

/// Layers give a handle memory of their own, which is not that of its polls.
#[test]
fn what_waits_for_room_keeps_the_memory_that_it_was_submitted_with() {
    let images = Images::on_disk();
    let backend = with_budgets(&images, 1, 1 << 20);
    let mut disk = backend.handle().unwrap();
    let polled = reached_by_messages(&Arc::default());
    submit(&mut disk, &polled, 1..2);
    {
        let own = memory();
        fill(&own, 0, PIECE as usize, 0xc3);
        submit(&mut disk, &own, 3..4);
    }
    assert_eq!(backend.budgets().waiting, 1);
    drain(&mut disk, &polled, 2);
    let image = std::fs::read(images.0.path().join("image")).unwrap();
    assert!(image[3 * PIECE as usize..][..PIECE as usize].iter().all(|&byte| byte == 0xc3));
}

/// A transfer of 8 MiB, and one of 12 KiB beside it, in memory that is reached by messages.
#[test]
fn one_turn_copies_no_more_than_a_mebibyte_to_and_from_memory_that_is_not_shared() {
    const BYTES: u32 = 8 << 20;
    const SMALL: u32 = 12 << 10;
    let images = Images::on_disk();
    let backend = with_budgets(&images, 256 << 20, 256 << 20);
    let mut disk = backend.handle().unwrap();
    let counting = Arc::new(Counting::default());
    let memory = reached_by_messages(&counting);
    for write in [true, false] {
        counting.0.store(0, Ordering::Relaxed);
        for (slot, at, bytes) in [(0, 0, BYTES), (1, u64::from(BYTES), SMALL)] {
            let extent = Extent::new(at / 512, u64::from(bytes) / 512);
            let op = if write { Op::Write { extent, fua: false } } else { Op::Read { extent } };
            // Odd addresses: no piece begins with a page.
            let _ = disk.submit(&memory, tag(slot), op, &[guest(77, 512), guest(4099, bytes - 512)]).unwrap();
        }
        assert_eq!(counting.0.load(Ordering::Relaxed), 0, "nothing is copied before a poll");
        let (mut before, mut ended) = (0, 0);
        while ended < 2 {
            if !write {
                Handle::begin_turn(&mut disk);
            }
            // As devices: until there is nothing more; some look many times in a turn of their thread.
            for _ in 0..if write { 1 } else { 100 } {
                while let Some(completion) = disk.poll(&memory) {
                    assert_eq!(completion.result, Ok(()));
                    ended += 1;
                }
            }
            let now = counting.0.load(Ordering::Relaxed);
            assert!(now - before <= 1 << 20, "{} bytes in one turn", now - before);
            before = now;
            assert!(ended == 2 || disk.wait(Some(Duration::from_secs(60))), "it is to be polled again");
        }
        assert_eq!(before, u64::from(BYTES + SMALL));
    }
    assert_eq!(backend.budgets().private_memory.used, 0);
    assert!(!counting.1.load(Ordering::Relaxed), "what was written is read");
}
