//! The image lock. In a process of its own: a test beside it that starts programs would hold copies of the descriptors
//! between fork and exec.

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use blk_core::storage::CacheMode;
use common::*;
use host_std::backend::{FileBackend, FileOptions, OpenError};

#[test]
fn an_image_has_one_writer_or_many_readers() {
    everywhere(|path, mode| {
        let plain = FileOptions::new(mode);
        let reader = FileOptions { read_only: true, ..plain.clone() };
        let writer = FileBackend::open(path, &plain).unwrap();
        for options in [&plain, &reader] {
            let error = FileBackend::open(path, options).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::InUse { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains("stop that program"), "{text}");
        }
        assert!(FileBackend::open(path, &FileOptions { lock: false, ..plain.clone() }).is_ok());
        drop(writer);
        let readers = [FileBackend::open(path, &reader).unwrap(), FileBackend::open(path, &reader).unwrap()];
        assert!(FileBackend::open(path, &plain).is_err());
        drop(readers);
        assert!(FileBackend::open(path, &plain).is_ok());
    });
}

/// A child has copies of all descriptors until it has become another program, and the lock would live as long as they do.
#[test]
fn the_lock_is_given_up_with_the_backend_although_a_child_holds_a_copy() {
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let backend = open(&path, CacheMode::WriteBack);
    let (read, write) = rustix::pipe::pipe().unwrap();
    let child = std::thread::spawn(move || {
        let mut command = Command::new("true");
        let linger = move || {
            rustix::io::write(&write, b"!")?;
            let _ = rustix::thread::nanosleep(&Duration::from_millis(500).try_into().unwrap());
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes two system calls, and neither allocates nor locks.
        unsafe { command.pre_exec(linger) };
        command.status().map(|_| ())
    });
    assert_eq!(rustix::io::read(&read, &mut [0; 1]), Ok(1), "the child is there");
    drop(backend);
    let again = FileBackend::open(&path, &FileOptions::new(CacheMode::WriteBack));
    assert!(again.is_ok(), "{:?}", again.err());
    drop(again);
    child.join().unwrap().unwrap();
}
