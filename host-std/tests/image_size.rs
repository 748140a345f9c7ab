//! The option `size` makes an image, or extends it; and a refusal leaves it as it was. In a process of its own: children of a test
//! beside it would hold copies of the locks, and the umask is the process's.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;

use blk_core::storage::CacheMode;
use common::*;
use host_std::backend::{FileBackend, FileOptions, OpenError};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const BYTES: u64 = IMAGE_BYTES as u64;

/// The umask and the limits are the process's, and so are for one test at a time.
static PROCESS: Mutex<()> = Mutex::new(());

fn sized(bytes: u64) -> FileOptions {
    FileOptions { size: Some(bytes), ..FileOptions::new(CacheMode::WriteBack) }
}

fn length(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

fn refuse(path: &Path, options: &FileOptions, parts: &[&str]) {
    let text = FileBackend::open(path, options).map(|_| ()).unwrap_err().to_string();
    let all = parts.iter().all(|part| text.contains(part)) && text.contains(path.to_str().unwrap());
    assert!(all, "{text}");
}

#[test]
fn an_image_is_made_for_its_owner_alone_or_extended_and_never_made_smaller() {
    let _alone = PROCESS.lock();
    let images = Images::on_disk();
    let path = images.0.path().join("new");
    for mask in [0, 0o777] {
        let before = rustix::process::umask(Mode::from_raw_mode(mask));
        let made = FileBackend::open(&path, &sized(1 << 20));
        rustix::process::umask(before);
        assert_eq!(made.unwrap().info().sectors, 2048);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600, "umask {mask:o}");
        std::fs::remove_file(&path).unwrap();
    }
    let path = images.image("image", IMAGE_BYTES);
    assert_eq!(FileBackend::open(&path, &sized(3 * BYTES)).unwrap().info().sectors * 512, 3 * BYTES);
    assert_eq!(FileBackend::open(&path, &sized(BYTES)).unwrap().info().sectors * 512, 3 * BYTES);
}

/// Has too few descriptors for the threads of an image, and enough for all that comes before.
fn with_few_descriptors(act: impl FnOnce()) {
    let before = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open: Vec<u64> = open.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    // Some that the process was started with may have high numbers.
    let eighth = (0..).filter(|number| !open.contains(number)).nth(7).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(eighth + 1), ..before }).unwrap();
    act();
    setrlimit(Resource::Nofile, before).unwrap();
}

#[test]
fn a_refusal_leaves_nothing_behind() {
    let _alone = PROCESS.lock();
    let images = Images::on_disk();
    let path = images.image("image", IMAGE_BYTES);
    let new = images.0.path().join("new");
    let missing = images.0.path().join("no/image");

    let holder = FileBackend::open(&path, &FileOptions::new(CacheMode::WriteBack)).unwrap();
    let error = FileBackend::open(&path, &sized(2 * BYTES)).map(|_| ()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert_eq!(length(&path), BYTES, "another program's image is left alone");
    drop(holder);

    for path in [&path, &new] {
        let was = path.metadata().map(|metadata| metadata.len()).ok();
        refuse(path, &sized(2 * BYTES + 100), &["not a multiple of", "truncate -s %"]);
        refuse(path, &FileOptions { logical_block_bytes: Some(100), ..sized(2 * BYTES) }, &["logical-block"]);
        refuse(path, &FileOptions { workers: 0, ..sized(2 * BYTES) }, &["workers"]);
        refuse(path, &FileOptions { read_only: true, ..sized(2 * BYTES) }, &["size", "readonly"]);
        refuse(path, &sized(1 << 62), &["size=4194304T", "ulimit -f"]);
        let threads = FileOptions { workers: 64, ..sized(2 * BYTES) };
        with_few_descriptors(|| refuse(path, &threads, &["open it again", "ulimit -n"]));
        assert_eq!(path.metadata().map(|metadata| metadata.len()).ok(), was);
    }
    refuse(&missing, &sized(1 << 30), &["size=1G", "make its folder"]);

    // Something else that the caller needs is refused.
    for (path, was) in [(&path, Some(BYTES)), (&new, None)] {
        let backend = FileBackend::open(path, &sized(2 * BYTES)).unwrap();
        backend.undo_size();
        drop(backend);
        assert_eq!(path.metadata().map(|metadata| metadata.len()).ok(), was);
    }
}
