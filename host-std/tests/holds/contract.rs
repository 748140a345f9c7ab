//! What a hold keeps off, and what it lets pass.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use blk_core::op::Op;
use blk_core::storage::{CacheMode, IoErrorKind, Storage};
use blk_core::units::Extent;
use host_std::backend::{FileBackend, FileOptions, FileStorage, IoEngine, IoVecs, LinuxSyscalls, Syscalls};
use host_std::memory::MappedMemory;
use rustix::fs::FallocateFlags;
use rustix::io::Result;

use crate::common::{
    self, IMAGE_BYTES, Images, everywhere, guest, memory, next, open, read, run, tag, write,
};

const HELD: Extent = Extent::new(16, 4);

fn hold<S: Syscalls>(disk: &mut FileStorage<S>, memory: &MappedMemory, slot: u16, extent: Extent) {
    let _ = disk.submit(memory, tag(slot), Op::Hold { extent }, &[]).unwrap();
}

fn release<S: Syscalls>(disk: &mut FileStorage<S>, slot: u16) {
    Storage::<MappedMemory>::release_hold(disk, slot);
}

/// Submits a write of a sector.
fn begin<S: Syscalls>(disk: &mut FileStorage<S>, memory: &MappedMemory, slot: u16, lba: u64) {
    let _ = disk.submit(memory, tag(slot), write(lba, 1), &[guest(0x1000, 512)]).unwrap();
}

/// Nothing ends on the handle for a while.
fn assert_waits<S: Syscalls>(disk: &mut FileStorage<S>, memory: &MappedMemory) {
    for _ in 0..3 {
        assert_eq!(disk.poll(memory), None);
        disk.wait(Some(Duration::from_millis(2)));
    }
}

fn assert_ends<S: Syscalls>(disk: &mut FileStorage<S>, memory: &MappedMemory, slot: u16) {
    let completion = next(disk, memory);
    assert_eq!((completion.tag, completion.result), (tag(slot), Ok(())));
}

#[test]
fn a_hold_keeps_off_what_overlaps_it_until_it_is_released() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let [mut owner, mut other] = [(); 2].map(|()| backend.handle().unwrap());
        hold(&mut owner, &memory, 1, HELD);
        assert_ends(&mut owner, &memory, 1);
        // What passes: what does not overlap, reads, flushes; and all that the owner does.
        for lba in [HELD.start.0 - 1, HELD.start.0 + HELD.sectors] {
            assert_eq!(run(&mut other, &memory, write(lba, 1), &[guest(0x1000, 512)]), Ok(()));
        }
        assert_eq!(run(&mut other, &memory, read(16, 4), &[guest(0x1000, 2048)]), Ok(()));
        assert_eq!(run(&mut other, &memory, Op::Flush, &[]), Ok(()));
        assert_eq!(run(&mut owner, &memory, write(17, 1), &[guest(0x1000, 512)]), Ok(()));
        for (slot, op) in [
            (2, Op::WriteZeroes { extent: Extent::new(19, 2), may_unmap: true }),
            (3, Op::Discard { extent: Extent::new(0, 100) }),
        ] {
            let _ = other.submit(&memory, tag(slot), op, &[]).unwrap();
        }
        begin(&mut other, &memory, 4, HELD.start.0);
        assert_waits(&mut other, &memory);
        // What waits there holds up nothing else of its handle.
        begin(&mut other, &memory, 5, 50);
        assert_ends(&mut other, &memory, 5);
        assert_eq!(other.in_use(), 3);
        release(&mut owner, 2);
        assert_waits(&mut other, &memory);
        release(&mut owner, 1);
        let mut ended = [(); 3].map(|()| next(&mut other, &memory).tag.slot);
        ended.sort_unstable();
        assert_eq!(ended, [2, 3, 4]);
        release(&mut owner, 1);
    });
}

#[test]
fn holds_of_the_same_sectors_take_turns_and_others_need_not_wait() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let mut disks = [(); 3].map(|()| backend.handle().unwrap());
        hold(&mut disks[0], &memory, 0, HELD);
        assert_ends(&mut disks[0], &memory, 0);
        hold(&mut disks[1], &memory, 0, Extent::new(18, 4));
        hold(&mut disks[2], &memory, 0, Extent::new(20, 4));
        // Of the same handle, too.
        hold(&mut disks[0], &memory, 1, HELD);
        hold(&mut disks[2], &memory, 1, Extent::new(100, 1));
        assert_ends(&mut disks[2], &memory, 1);
        for disk in &mut disks {
            assert_waits(disk, &memory);
        }
        release(&mut disks[0], 0);
        assert_ends(&mut disks[1], &memory, 0);
        assert_waits(&mut disks[2], &memory);
        assert_waits(&mut disks[0], &memory);
        release(&mut disks[1], 0);
        assert_ends(&mut disks[2], &memory, 0);
        assert_ends(&mut disks[0], &memory, 1);
    });
}

#[test]
fn a_slot_has_one_hold_and_a_hold_lies_on_the_disk() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let mut disk = backend.handle().unwrap();
        assert!(disk.info().holds);
        let beyond = Op::Hold { extent: Extent::new(disk.info().sectors, 1) };
        assert_eq!(common::kind(run(&mut disk, &memory, beyond, &[])), Some(IoErrorKind::OutOfRange));
        let segments = [guest(0, 512)];
        let with_data = run(&mut disk, &memory, Op::Hold { extent: HELD }, &segments);
        assert_eq!(common::kind(with_data), Some(IoErrorKind::OutOfRange));
        assert_eq!(run(&mut disk, &memory, Op::Hold { extent: HELD }, &[]), Ok(()));
        let again = run(&mut disk, &memory, Op::Hold { extent: Extent::new(1, 1) }, &[]);
        assert_eq!(common::kind(again), Some(IoErrorKind::Unsupported), "it would wait for itself");
    });
}

#[test]
fn a_handle_that_goes_or_is_cancelled_has_let_go() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let [mut gone, mut cancelled, mut other] = [(); 3].map(|()| backend.handle().unwrap());
        hold(&mut gone, &memory, 0, HELD);
        assert_ends(&mut gone, &memory, 0);
        hold(&mut cancelled, &memory, 0, HELD);
        begin(&mut cancelled, &memory, 1, 16);
        begin(&mut other, &memory, 0, 16);
        hold(&mut other, &memory, 1, HELD);
        // The first of the line goes with what it waits for.
        drop(gone);
        assert_ends(&mut cancelled, &memory, 0);
        // Its own hold did not keep this off, and now nobody else's does.
        assert_ends(&mut cancelled, &memory, 1);
        assert_waits(&mut other, &memory);
        assert!(Storage::<MappedMemory>::cancel_in_flight(&mut cancelled));
        // Nor does a hold wait for what its own handle does.
        let mut ended = [(); 2].map(|()| next(&mut other, &memory).tag.slot);
        ended.sort_unstable();
        assert_eq!(ended, [0, 1]);
    });
}

#[test]
fn what_waited_goes_with_its_handle() {
    everywhere(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let [mut owner, mut gone, mut other] = [(); 3].map(|()| backend.handle().unwrap());
        hold(&mut owner, &memory, 0, HELD);
        assert_ends(&mut owner, &memory, 0);
        begin(&mut gone, &memory, 0, 16);
        hold(&mut gone, &memory, 1, HELD);
        hold(&mut other, &memory, 0, HELD);
        // Admitted, and not polled: it counts as begun.
        release(&mut owner, 0);
        assert_waits(&mut other, &memory);
        drop(gone);
        assert_ends(&mut other, &memory, 0);
    });
}

/// The kernel's calls, but a write of this byte waits until the door is opened.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<bool>, Condvar)>);

const SLOW: u64 = 40;

impl Door {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// Opened at the end, so that no thread of a test that fails is left behind it.
struct OpenedAtLast(Door);

impl Drop for OpenedAtLast {
    fn drop(&mut self) {
        self.0.open();
    }
}

impl Syscalls for Door {
    fn write(&self, fd: BorrowedFd<'_>, from: &IoVecs, offset: u64, dsync: bool) -> Result<usize> {
        if offset == SLOW * 512 {
            drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
        }
        LinuxSyscalls.write(fd, from, offset, dsync)
    }

    fn read(&self, fd: BorrowedFd<'_>, into: &IoVecs, offset: u64) -> Result<usize> {
        LinuxSyscalls.read(fd, into, offset)
    }

    fn fdatasync(&self, fd: BorrowedFd<'_>) -> Result<()> {
        LinuxSyscalls.fdatasync(fd)
    }

    fn fallocate(&self, fd: BorrowedFd<'_>, mode: FallocateFlags, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.fallocate(fd, mode, offset, bytes)
    }

    fn block_discard(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_discard(fd, offset, bytes)
    }

    fn block_zero(&self, fd: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<()> {
        LinuxSyscalls.block_zero(fd, offset, bytes)
    }
}

/// Wherever that one is, and also when its handle has gone meanwhile.
#[test]
fn a_hold_waits_for_what_others_have_begun_and_they_begin_no_more_until_it_is_granted() {
    for goes in [false, true] {
        let (images, door) = (Images::on_disk(), Door::default());
        let path = images.image("image", IMAGE_BYTES);
        let backend =
            FileBackend::open_on(door.clone(), path, &common::options(CacheMode::WriteBack)).unwrap();
        let _opened = OpenedAtLast(door.clone());
        let memory = memory();
        let [mut owner, mut slow, mut other] = [(); 3].map(|()| backend.handle().unwrap());
        begin(&mut slow, &memory, 0, SLOW);
        hold(&mut owner, &memory, 0, HELD);
        assert_waits(&mut owner, &memory);
        begin(&mut other, &memory, 0, 100);
        let _ = other.submit(&memory, tag(1), read(16, 1), &[guest(0x2000, 512)]).unwrap();
        assert_ends(&mut other, &memory, 1);
        assert_waits(&mut other, &memory);
        // Its own go on meanwhile.
        begin(&mut owner, &memory, 1, 17);
        assert_ends(&mut owner, &memory, 1);
        let mut slow = Some(slow).filter(|_| !goes);
        assert_waits(&mut owner, &memory);
        door.open();
        if let Some(slow) = &mut slow {
            assert_ends(slow, &memory, 0);
        }
        assert_ends(&mut owner, &memory, 0);
        assert_ends(&mut other, &memory, 0);
    }
}

#[test]
fn what_waits_for_a_hold_has_no_budget_that_its_owner_needs() {
    for engine in IoEngine::ALL {
        let images = Images::on_disk();
        let path = images.image("image", IMAGE_BYTES);
        let options = FileOptions { in_flight_bytes_max: 512, engine, ..FileOptions::new(CacheMode::None) };
        let backend = FileBackend::open(path, &options).unwrap();
        let memory = memory();
        let [mut owner, mut other] = [(); 2].map(|()| backend.handle().unwrap());
        hold(&mut owner, &memory, 0, HELD);
        assert_ends(&mut owner, &memory, 0);
        (0..3).for_each(|slot| begin(&mut other, &memory, slot, HELD.start.0));
        assert_waits(&mut other, &memory);
        for slot in 1..4 {
            begin(&mut owner, &memory, slot, 17);
        }
        let mut ended = [(); 3].map(|()| next(&mut owner, &memory).tag.slot);
        ended.sort_unstable();
        assert_eq!(ended, [1, 2, 3]);
        release(&mut owner, 0);
        let mut ended = [(); 3].map(|()| next(&mut other, &memory).tag.slot);
        ended.sort_unstable();
        assert_eq!(ended, [0, 1, 2]);
        let report = backend.budgets();
        assert_eq!((report.waiting, report.bytes_in_flight.used), (0, 0));
    }
}
