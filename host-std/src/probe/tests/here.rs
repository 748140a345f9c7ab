//! This machine: files in the temporary directory, filesystems in memory, and mounts that no other thread sees.

use std::os::unix::fs::FileExt;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

#[test]
fn a_real_file_is_walked_to_a_disk_or_found_to_be_in_memory() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("image");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    file.write_all_at(&[1; 65536], 1 << 18).unwrap();
    file.sync_all().unwrap();
    let report = probe(&path).unwrap();
    assert_eq!(report.layers[0].kind, LayerKind::File);
    assert_eq!(report.layers[1].kind, LayerKind::Filesystem);
    says(&report, Verdict::Note, &format!("{} of {} bytes are holes", (1 << 20) - 65536, 1 << 20));
    assert!(report.layers.len() > 2 || report.verdict != Verdict::Safe, "{report}");
    let report = probe(directory.path()).unwrap();
    says(&report, Verdict::Note, "a directory");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the probe leaves nothing behind");
}

#[test]
fn shared_memory_is_unsafe() {
    if !Path::new("/dev/shm").is_dir() {
        eprintln!("skipped: no /dev/shm");
        return;
    }
    let report = probe(Path::new("/dev/shm")).unwrap();
    assert_eq!(report.verdict, Verdict::Unsafe, "{report}");
}

/// Runs `act` on a thread with a mount namespace of its own; prints why where that is not permitted.
fn in_own_namespace(act: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no file descriptor table is unshared: NEWNS gives this thread a mount namespace, and with it a working
            // directory, of its own, which end with it.
            let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
            let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
            match unshared.and_then(|()| mount_change("/", private)) {
                Ok(()) => act(),
                Err(errno) => eprintln!("skipped: no mount namespace: {errno}"),
            }
        });
        thread.join().unwrap();
    })
}

/// What the kernel shows of a mount is not what was given to mount(8), and changes: this asks the kernel at hand.
#[test]
fn an_overlay_that_the_kernel_mounted_volatile_is_unsafe() {
    in_own_namespace(|| {
        // An overlay cannot have an overlay as its upper directory, which the temporary directory may be.
        let base = TempDir::new().unwrap();
        mount("tmpfs", base.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        let directory = |name: &str| {
            let path = base.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let [lower, upper, work, point] = ["lower", "up per", "work", "point"].map(directory);
        for (option, expected) in [("", Verdict::Safe), (",volatile", Verdict::Unsafe)] {
            let options = format!(
                "lowerdir={},upperdir={},workdir={}{option}",
                lower.display(),
                upper.display(),
                work.display()
            );
            let options = std::ffi::CString::new(options).unwrap();
            if let Err(errno) = mount("overlay", &point, "overlay", MountFlags::empty(), options.as_c_str()) {
                eprintln!("skipped: no overlay: {errno}");
                return;
            }
            let report = probe(&point).unwrap();
            assert_eq!(report.layers[1].verdict(), expected, "{report}");
            assert_eq!(report.layers[2].name, upper.display().to_string());
            assert!(report.layers[3].name.starts_with("tmpfs"), "{report}");
        }
    });
}
