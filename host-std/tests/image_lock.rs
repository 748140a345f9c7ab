//! The image lock. In a process of its own: a test beside it that starts programs would hold copies of the descriptors
//! between fork and exec.

mod common;

use common::everywhere;
use host_std::backend::{FileBackend, FileOptions, OpenError};

#[test]
fn an_image_has_one_writer_or_many_readers() {
    everywhere(|path, mode| {
        let plain = FileOptions::new(mode);
        let reader = FileOptions { read_only: true, ..plain };
        let writer = FileBackend::open(path, &plain).unwrap();
        for options in [plain, reader] {
            let error = FileBackend::open(path, &options).map(|_| ()).unwrap_err();
            assert!(matches!(error, OpenError::InUse { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains("stop that program"), "{text}");
        }
        assert!(FileBackend::open(path, &FileOptions { lock: false, ..plain }).is_ok());
        drop(writer);
        let readers = [FileBackend::open(path, &reader).unwrap(), FileBackend::open(path, &reader).unwrap()];
        assert!(FileBackend::open(path, &plain).is_err());
        drop(readers);
        assert!(FileBackend::open(path, &plain).is_ok());
    });
}
