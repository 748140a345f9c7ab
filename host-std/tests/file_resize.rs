//! An image that is resized while it is served.

mod common;

use std::fs::OpenOptions;
use std::path::Path;
use std::process::Command;

use blk_core::op::Op;
use blk_core::storage::{CacheMode, IoErrorKind};
use blk_core::units::{Extent, Lba};
use common::*;
use host_std::backend::{Backend, Durable, LatchCause, OpenError};

const SECTORS: u64 = (IMAGE_BYTES / 512) as u64;

fn set_length(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

fn files(check: impl Fn(&Path, CacheMode)) {
    let places = [Some(Images::on_disk()), Images::in_memory()];
    for images in places.iter().flatten() {
        for mode in CacheMode::ALL {
            check(&images.image("image", IMAGE_BYTES), mode);
        }
    }
}

#[test]
fn handles_take_a_new_size_over_and_keep_to_a_lower_end_at_once() {
    files(|path, mode| {
        let (backend, memory) = (open(path, mode), memory());
        let mut disks = [backend.handle().unwrap(), backend.handle().unwrap()];
        let page = [guest(0, 4096)];
        assert_eq!(kind(run(&mut disks[0], &memory, read(SECTORS, 8), &page)), Some(IoErrorKind::OutOfRange));
        // Grown by us, and then once more by somebody else.
        for grow in [Some(2 * IMAGE_BYTES as u64), None] {
            if grow.is_none() {
                set_length(path, 3 * IMAGE_BYTES as u64);
                assert_eq!(backend.info().sectors, 2 * SECTORS, "not before it is asked for");
            }
            let end = if grow.is_some() { 2 * SECTORS } else { 3 * SECTORS };
            assert_eq!(backend.resize(grow).unwrap().sectors, end);
            assert_eq!(backend.info().sectors, end);
            for disk in &mut disks {
                assert!(disk.poll_nothing(&memory));
                assert_eq!(disk.info().sectors, end, "as of the next poll");
                assert_eq!(run(disk, &memory, write(end - 8, 8), &page), Ok(()));
            }
        }
        set_length(path, 4096);
        assert_eq!(backend.resize(None).unwrap().sectors, 8);
        for disk in &mut disks {
            // At once, whether it has polled since or not: a write would make the file longer again.
            for op in [read(8, 8), write(8, 8), write(0, 16)] {
                let segments = if op == write(0, 16) { &[guest(0, 8192)][..] } else { &page };
                assert_eq!(kind(run(disk, &memory, op, segments)), Some(IoErrorKind::OutOfRange));
            }
            let zeroes = Op::WriteZeroes { extent: Extent::new(8, 8), may_unmap: false };
            assert_eq!(kind(run(disk, &memory, zeroes, &[])), Some(IoErrorKind::OutOfRange));
            assert_eq!(run(disk, &memory, write(0, 8), &page), Ok(()));
            assert_eq!(disk.info().sectors, 8);
        }
        assert_eq!(std::fs::metadata(path).unwrap().len(), 4096);
    });
}

trait PollNothing {
    fn poll_nothing(&mut self, memory: &host_std::memory::MappedMemory) -> bool;
}

impl PollNothing for host_std::backend::FileStorage {
    fn poll_nothing(&mut self, memory: &host_std::memory::MappedMemory) -> bool {
        blk_core::storage::Storage::poll(self, memory).is_none()
    }
}

/// A file that somebody cuts short: what was behind its new end is lost, and a write makes it read as zeroes.
#[test]
fn a_truncated_file_latches_at_the_next_read_of_what_is_lost_and_at_the_next_flush() {
    let cut = |path: &Path| set_length(path, IMAGE_BYTES as u64 / 2 + 512);
    let lost = SECTORS / 2 + 1;
    everywhere(|path, mode| {
        if !path.metadata().unwrap().is_file() {
            return;
        }
        for by_read in [true, false] {
            set_length(path, IMAGE_BYTES as u64);
            let (backend, memory) = (open(path, mode), memory());
            let mut disk = backend.handle().unwrap();
            assert_eq!(run(&mut disk, &memory, read(0, 8), &[guest(0, 4096)]), Ok(()));
            cut(path);
            if by_read {
                // One that begins before the end, and one behind it.
                for at in [lost - 1, lost + 7] {
                    let failed = run(&mut disk, &memory, read(at, 8), &[guest(0, 4096)]);
                    assert_eq!(kind(failed), Some(IoErrorKind::Medium));
                }
            } else if mode == CacheMode::Unsafe {
                assert_eq!(run(&mut disk, &memory, Op::Flush, &[]), Ok(()), "promises nothing");
                continue;
            }
            assert_eq!(kind(run(&mut disk, &memory, Op::Flush, &[])), Some(IoErrorKind::Latched));
            let cause = LatchCause { what: Durable::Truncated, errno: None, lba: Some(Lba(lost)) };
            assert_eq!(backend.latched(), Some(cause));
            // What would make it longer again, and hide the loss.
            let hides = run(&mut disk, &memory, write(SECTORS - 8, 8), &[guest(0, 4096)]);
            assert_eq!(kind(hides), Some(IoErrorKind::Latched));
            assert_eq!(run(&mut disk, &memory, read(0, 8), &[guest(0, 4096)]), Ok(()), "reads go on");
        }
    });
}

#[test]
fn what_cannot_be_is_refused_with_the_remedy_and_changes_nothing() {
    files(|path, mode| {
        let backend: Box<dyn Backend> = Box::new(open(path, mode));
        let refuse = |bytes, parts: [&str; 3]| {
            let error = backend.resize(bytes).unwrap_err();
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
            assert_eq!(backend.info().sectors, SECTORS);
            error
        };
        let name = path.to_str().unwrap();
        let shrink = refuse(Some(4096), [name, "cut data off", "truncate -s 4096"]);
        assert!(matches!(shrink, OpenError::Shrinks { bytes: 4096, .. }));
        refuse(Some(IMAGE_BYTES as u64 + 100), [name, "not a multiple of", "truncate -s %"]);
        refuse(Some(0), [name, "no capacity", "truncate"]);
        assert_eq!(std::fs::metadata(path).unwrap().len(), IMAGE_BYTES as u64);
        set_length(path, 1000);
        refuse(None, [name, "1000 bytes", "truncate -s %"]);
        set_length(path, IMAGE_BYTES as u64);
        assert_eq!(backend.resize(None).unwrap().sectors, SECTORS);
    });
}

#[test]
fn a_device_is_taken_over_as_it_is_and_never_extended() {
    let images = Images::on_disk();
    let backing = images.image("backing", IMAGE_BYTES);
    let Some(device) = Loop::over(&backing, 512) else { return };
    for (round, mode) in [CacheMode::WriteBack, CacheMode::None].into_iter().enumerate() {
        let sectors = SECTORS * (round as u64 + 2);
        let (backend, memory) = (open(&device.0, mode), memory());
        let mut disk = backend.handle().unwrap();
        set_length(&backing, sectors * 512);
        assert!(Command::new("losetup").arg("--set-capacity").arg(&device.0).status().unwrap().success());
        assert_eq!(backend.resize(None).unwrap().sectors, sectors);
        assert_eq!(run(&mut disk, &memory, write(sectors - 8, 8), &[guest(0, 4096)]), Ok(()));
        let error = backend.resize(Some(1 << 30)).unwrap_err().to_string();
        assert!(error.contains("only a file"), "{error}");
        assert_eq!(backend.info().sectors, sectors);
    }
}
