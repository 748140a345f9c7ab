//! Models of all that threads hand each other, in every order that the memory model allows:
//! `RUSTFLAGS="--cfg loom" cargo test -p host-std --no-default-features --lib --config profile.dev.package.host-std.opt-level=1
//! loom`. (Optimised, since the stacks of its threads are small.)
//!
//! The kernel's part is real: an eventfd is written and read under a lock. `OnceLock`, `Arc` and locks that are never waited for are
//! those of the standard library.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use blk_core::op::Op;
use blk_core::storage::CacheMode;
use blk_core::units::{Extent, Lba};
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::budget::{Budgets, Waiter};
use super::holds::{Holds, Mutator};
use super::image::Image;
use super::image_info::SharedInfo;
use super::job::{CompletionQueue, Job};
use super::latch::Latch;
use super::options::FileOptions;
use super::shared::Shared;
use super::syscalls::LinuxSyscalls;

fn is_readable(queue: &CompletionQueue) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&queue.wake_fd(), PollFlags::IN)], Some(&now)) == Ok(1)
}

/// A handle of an image, and its only job.
fn handle(holds: &Arc<Holds>, queue: &Arc<CompletionQueue>, number: u16) -> (Arc<Mutator>, Box<Job>) {
    let mutator = Mutator::new(holds, Arc::clone(queue) as Arc<dyn Waiter>, 1);
    let budgets = Arc::new(Budgets::new(u64::MAX, u64::MAX));
    let job = Job::new(number, Arc::clone(queue), budgets, Arc::clone(&mutator));
    (mutator, Box::new(job))
}

fn complete(queue: &Arc<CompletionQueue>, number: u16) -> thread::JoinHandle<()> {
    let (_, job) = handle(&Arc::new(Holds::new()), queue, number);
    thread::spawn(move || job.complete(Ok(())))
}

#[test]
fn a_handle_that_sleeps_is_woken_by_each_job_that_ends() {
    loom::model(|| {
        let queue = Arc::new(CompletionQueue::new(2, Arc::new(())).unwrap());
        let workers = [complete(&queue, 0), complete(&queue, 1)];
        let mut ended = VecDeque::new();
        queue.take(&mut ended);
        let asleep = ended.len() < 2 && queue.arm(false);
        let before = ended.len();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert!(!asleep || is_readable(&queue), "nobody wakes the handle");
        queue.take(&mut ended);
        assert_eq!(ended.len(), 2, "{before} before it slept");
    });
}

#[test]
fn a_handle_that_is_not_to_sleep_finds_a_job() {
    loom::model(|| {
        let queue = Arc::new(CompletionQueue::new(2, Arc::new(())).unwrap());
        let workers = [complete(&queue, 0), complete(&queue, 1)];
        let mut ended = VecDeque::new();
        queue.take(&mut ended);
        if !queue.arm(false) {
            let before = ended.len();
            queue.take(&mut ended);
            assert!(ended.len() > before, "it looks again and again, and finds nothing");
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

/// The kernel orders a write and a flush of the same file, whichever comes first.
#[test]
fn a_write_is_named_by_the_flush_that_covers_it_or_left_to_the_next() {
    const LBA: Lba = Lba(9);
    loom::model(|| {
        let latch = Arc::new(Latch::new());
        let written = Arc::new(Mutex::new(false));
        let writer = {
            let (latch, written) = (Arc::clone(&latch), Arc::clone(&written));
            thread::spawn(move || {
                latch.dirty(LBA);
                *written.lock().unwrap() = true;
                latch.dirty(LBA);
            })
        };
        let named = latch.take_dirty();
        let covered = *written.lock().unwrap();
        writer.join().unwrap();
        let left = latch.take_dirty();
        assert!(left == Some(LBA) || (covered && named == Some(LBA)), "{named:?}, then {left:?}");
    });
}

/// fdatasync of a pipe fails.
#[test]
fn a_write_that_completes_once_a_flush_has_failed_is_not_ok() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let path = file.path().to_owned();
    let extent = Extent::new(0, 1);
    loom::model(move || {
        let image = Image::open(&path, &FileOptions::new(CacheMode::WriteBack)).unwrap();
        let shared = Arc::new(Shared::new(LinuxSyscalls, image, None, 1, Budgets::new(u64::MAX, u64::MAX)));
        let told = Arc::new(AtomicBool::new(false));
        let flusher = {
            let (shared, told) = (Arc::clone(&shared), Arc::clone(&told));
            thread::spawn(move || {
                let (reader, _writer) = rustix::pipe::pipe().unwrap();
                shared.sync(reader.as_fd()).unwrap_err();
                told.store(true, Ordering::Release);
            })
        };
        let write = Op::Write { extent, fua: false };
        if shared.admit(write).is_ok() {
            shared.dirty(Lba(0), false);
            let told = told.load(Ordering::Acquire);
            let result = shared.settle(write, Ok(()));
            assert!(!told || result.is_err(), "the flush before it was seen to fail");
        }
        flusher.join().unwrap();
        shared.settle(write, Ok(())).unwrap_err();
    });
}

/// A handle takes a new `Info` over where the count of changes says so, and checks every operation against the capacity.
#[test]
fn a_handle_that_sees_a_change_counted_sees_all_of_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let path = file.path().to_owned();
    loom::model(move || {
        let image = Image::open(&path, &FileOptions::new(CacheMode::WriteBack)).unwrap();
        let shared = Arc::new(SharedInfo::new(image.info.get()));
        let resizer = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.resize(4).sectors)
        };
        let changed = shared.epoch() != 0;
        let sectors = shared.sectors();
        let info = shared.get();
        assert!(!changed || (sectors == 4 && info.sectors == 4), "{sectors}, {info:?}");
        assert_eq!(resizer.join().unwrap(), 4);
        assert_eq!((shared.epoch(), shared.sectors(), shared.get().sectors), (1, 4, 4));
    });
}

/// The sectors are a cell: two that touch it at a time, or without having heard of each other, fail the model.
#[test]
fn a_hold_and_a_mutation_of_its_sectors_exclude_each_other_and_nobody_waits_for_ever() {
    let extent = Extent::new(0, 1);
    loom::model(move || {
        let holds = Arc::new(Holds::new());
        let queues = [(); 2].map(|()| Arc::new(CompletionQueue::new(1, Arc::new(())).unwrap()));
        let (writer, _) = handle(&holds, &queues[0], 0);
        let (owner, _) = handle(&holds, &queues[1], 0);
        let sectors = Arc::new(UnsafeCell::new(()));
        let touch = |sectors: &UnsafeCell<()>| sectors.with_mut(|_| ());
        let writes = {
            let (writer, sectors) = (Arc::clone(&writer), Arc::clone(&sectors));
            thread::spawn(move || {
                let begun = writer.begin(7, extent);
                if begun {
                    touch(&sectors);
                    writer.end();
                }
                begun
            })
        };
        owner.hold(3, 0, extent).unwrap();
        let at_once = owner.take_admitted();
        if at_once.is_some() {
            touch(&sectors);
            owner.release(Some(0));
        }
        let begun = writes.join().unwrap();
        assert!(!queues[1].arm(false), "it is woken");
        assert_eq!(at_once.or_else(|| owner.take_admitted()), Some(3), "by the last mutation that ends");
        if at_once.is_none() {
            touch(&sectors);
            owner.release(Some(0));
        }
        let admitted = writer.take_admitted();
        assert_eq!(admitted, (!begun).then_some(7), "who releases admits what waits");
        assert!(begun || !queues[0].arm(false), "and wakes its handle");
        if admitted.is_some() {
            touch(&sectors);
            writer.end();
        }
        [writer, owner].iter().for_each(Mutator::leave);
    });
}
