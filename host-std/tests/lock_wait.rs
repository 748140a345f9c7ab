//! Waiting for an image lock: until its holder lets go of it, or until the last operation of one that was killed has ended.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use blk_core::storage::{CacheMode, Storage};
use common::*;
use host_std::backend::{FileBackend, FileOptions, IoEngine, OpenError};

#[test]
fn who_may_wait_is_given_the_lock_when_it_is_free_and_told_how_long_it_waited() {
    everywhere(|path, mode| {
        let patient = |wait| FileOptions { lock_wait: wait, ..FileOptions::new(mode) };
        let writer = open(path, mode);
        let began = Instant::now();
        let error = FileBackend::open(path, &patient(Duration::from_millis(60))).map(|_| ()).unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(60));
        let text = error.to_string();
        assert!(text.contains("after waiting for 60ms") && text.contains("stop that program"), "{text}");
        let leaver = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(writer);
        });
        let successor = FileBackend::open(path, &patient(Duration::from_secs(10)));
        assert!(successor.is_ok(), "{:?}", successor.err());
        leaver.join().unwrap();
    });
}

const IMAGE: &str = "HOST_STD_TEST_IMAGE";
const ENGINE: &str = "HOST_STD_TEST_ENGINE";

/// Not a test by itself: a server that is killed with writes in flight, which its device never ends.
#[test]
fn program_that_is_killed() {
    let (Ok(image), Ok(engine)) = (std::env::var(IMAGE), std::env::var(ENGINE)) else { return };
    let engine = IoEngine::ALL.into_iter().find(|known| known.name() == engine).unwrap();
    let (memory, options) = (memory(), FileOptions { engine, ..FileOptions::new(CacheMode::None) });
    let backend = FileBackend::open(Path::new(&image), &options).unwrap();
    let mut disk = backend.handle().unwrap();
    fill(&memory, 0, 4096, 0x99);
    println!("opened");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    for slot in 0..8 {
        let _ = disk.submit(&memory, tag(slot), write(8 * u64::from(slot), 8), &[guest(0, 4096)]).unwrap();
    }
    assert!(disk.poll(&memory).is_none());
    println!("submitted");
    disk.wait(None);
    println!("ended");
}

/// A frozen file system; thawed when dropped, or nobody could use it, or unmount it, any more.
struct Frozen(PathBuf);

impl Frozen {
    fn new(mount: &Path) -> Option<Self> {
        let done =
            Command::new("fsfreeze").arg("-f").arg(mount).status().is_ok_and(|status| status.success());
        done.then(|| Self(mount.into()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

/// An ext4 on a loop device over an image: the mount, and what it lies on.
fn ext4_on(backing: &Path, mount: &Path) -> Option<(Mounted, Loop)> {
    let device = Loop::over(backing, 512)?;
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0).status();
    if !made.is_ok_and(|made| made.success()) {
        println!("skipped: no mkfs.ext4");
        return None;
    }
    std::fs::create_dir(mount).unwrap();
    Some((Mounted::on(mount, Command::new("mount").arg(&device.0))?, device))
}

/// A killed process's writes that the kernel still has must not land over those of the next one: the lock is held until they
/// have ended. Here a device keeps them back: a loop device over a file on a frozen file system.
#[test]
fn the_lock_of_a_killed_process_is_held_until_its_last_write_has_ended() {
    for engine in [IoEngine::Ring, IoEngine::Threads] {
        let images = Images::on_disk();
        let dir = images.0.path();
        let Some((_outer, _device)) = ext4_on(&images.image("outer", 64 << 20), &dir.join("slow")) else {
            return;
        };
        let backing = dir.join("slow/backing");
        std::fs::write(&backing, vec![0; 16 << 20]).unwrap();
        let Some((_inner, _inner_device)) = ext4_on(&backing, &dir.join("fast")) else { return };
        let image = dir.join("fast/image");
        std::fs::write(&image, vec![0xee; IMAGE_BYTES]).unwrap();
        std::fs::File::open(&image).unwrap().sync_all().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["program_that_is_killed", "--exact", "--nocapture"])
            .env(IMAGE, &image)
            .env(ENGINE, engine.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.ends_with("opened")), "it opens the image");
        let Some(frozen) = Frozen::new(&dir.join("slow")) else {
            let _ = child.kill().and_then(|()| child.wait());
            return println!("skipped: no fsfreeze");
        };
        drop(child.stdin.take());
        assert!(lines.any(|line| line == "submitted"));
        std::thread::sleep(Duration::from_millis(100));
        child.kill().unwrap();
        let patient = |wait| FileOptions { lock_wait: wait, ..FileOptions::new(CacheMode::None) };
        // On a thread of its own: if it were given the lock, it would go on to wait for the device.
        let (sender, early) = std::sync::mpsc::channel();
        let early_options = patient(Duration::from_millis(400));
        let path = image.clone();
        std::thread::spawn(move || {
            let opened = FileBackend::open(&path, &early_options);
            let _ = sender.send(matches!(opened, Err(OpenError::InUse { .. })));
        });
        let refused = early.recv_timeout(Duration::from_secs(5));
        assert_eq!(refused, Ok(true), "{}: given the lock with writes in flight", engine.name());
        drop(frozen);
        let (successor, memory) =
            (FileBackend::open(&image, &patient(Duration::from_secs(10))).unwrap(), memory());
        let mut disk = successor.handle().unwrap();
        fill(&memory, 0, 8 * 4096, 0x11);
        assert_eq!(run(&mut disk, &memory, write(0, 64), &[guest(0, 8 * 4096)]), Ok(()));
        child.wait().unwrap();
        assert!(lines.next().is_none(), "it never saw an end");
        drop((disk, successor));
        let bytes = std::fs::read(&image).unwrap();
        assert!(bytes[..8 * 4096].iter().all(|&byte| byte == 0x11), "no old write landed over a new one");
    }
}
