//! A host that runs out of space, for real: a full tmpfs, and a loop device over a file in it.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use blk_core::op::Op;
use blk_core::storage::{CacheMode, IoErrorKind};
use blk_core::units::Lba;
use common::*;
use host_std::backend::{Durable, FileBackend, FileStorage};
use host_std::memory::MappedMemory;

const GOOD: u64 = 0;
const BAD: u64 = (IMAGE_BYTES / 2 / 512) as u64;

/// Calls `check` with an image of which only the first 64 KiB have room.
fn over_a_full_tmpfs(check: impl Fn(&Path)) {
    let images = Images::on_disk();
    let dir = images.0.path().join("full");
    std::fs::create_dir(&dir).unwrap();
    let tmpfs = ["-t", "tmpfs", "-o", "size=256k", "tmpfs"];
    let Some(_mounted) = Mounted::on(&dir, Command::new("mount").args(tmpfs)) else { return };
    let image = dir.join("image");
    let mut file = std::fs::File::create(&image).unwrap();
    file.write_all(&[0xee; 65536]).unwrap();
    file.set_len(IMAGE_BYTES as u64).unwrap();
    drop(file);
    let mut filler = std::fs::File::create(dir.join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    check(&image);
}

struct Guest<'a> {
    disk: &'a mut FileStorage,
    memory: &'a MappedMemory,
}

impl Guest<'_> {
    fn run(&mut self, op: Op) -> Option<IoErrorKind> {
        let segments = if op == Op::Flush { &[][..] } else { &[guest(0, 4096)] };
        kind(run(self.disk, self.memory, op, segments))
    }
}

#[test]
fn a_full_file_system_is_reported_as_no_space_and_good_blocks_go_on() {
    over_a_full_tmpfs(|image| {
        for mode in [CacheMode::WriteBack, CacheMode::None, CacheMode::Unsafe] {
            let (backend, memory) = (open(image, mode), memory());
            let mut disk = backend.handle().unwrap();
            let mut guest = Guest { disk: &mut disk, memory: &memory };
            assert_eq!(guest.run(write(BAD, 8)), Some(IoErrorKind::NoSpace), "{}", mode.name());
            assert_eq!(guest.run(write(GOOD, 8)), None);
            assert_eq!(guest.run(Op::Flush), None);
            assert_eq!(backend.latched(), None, "a plain write that failed promised nothing");
        }
    });
}

fn on_a_loop_device(check: impl Fn(&FileBackend, Guest<'_>, &Path)) {
    over_a_full_tmpfs(|image| {
        let Some(device) = Loop::over(image, 512) else { return };
        let (backend, memory) = (open(&device.0, CacheMode::WriteBack), memory());
        let mut disk = backend.handle().unwrap();
        check(&backend, Guest { disk: &mut disk, memory: &memory }, &device.0);
    });
}

/// The page cache took the write; the device cannot. The flush says so once, and the latch from then on.
#[test]
fn a_write_that_is_lost_in_writeback_fails_the_flush_and_latches() {
    on_a_loop_device(|backend, mut guest, _| {
        assert_eq!(guest.run(write(BAD + 16, 8)), None);
        assert_eq!(guest.run(write(BAD, 8)), None);
        assert!(guest.run(Op::Flush).is_some());
        let cause = backend.latched().unwrap();
        assert_eq!((cause.what, cause.lba), (Durable::Flush, Some(Lba(BAD))));
        assert_eq!(guest.run(Op::Flush), Some(IoErrorKind::Latched));
        assert_eq!(guest.run(write(GOOD, 8)), Some(IoErrorKind::Latched));
        assert_eq!(guest.run(read(GOOD, 8)), None);
    });
}

/// A FUA write to a good block gets the error of an earlier one. It latches: the flush after it must not say that all is well.
#[test]
fn a_fua_write_that_takes_the_error_of_another_write_leaves_no_good_flush_behind() {
    on_a_loop_device(|backend, mut guest, device| {
        assert_eq!(guest.run(write(BAD, 8)), None);
        // Writeback begins by itself at some time; here it is made to.
        let sync = Command::new("sync").arg(device).output();
        assert!(sync.is_ok());
        let fua = guest.run(fua(GOOD, 8));
        let flush = guest.run(Op::Flush);
        assert!(flush.is_some(), "FUA: {fua:?}");
        assert!(backend.latched().is_some());
    });
}
