//! A host without space, for real: the image is sparse, and the file system that it lies on is full.

use std::fs;
use std::time::{Duration, Instant};

use super::serving::{Disk, Server, SmallFs};
use crate::guest::{Boot, Front, Guest, Machine, SOON};
use crate::say;

fn wait_until_paused(disk: &Disk, retries: u64) {
    let deadline = Instant::now() + SOON;
    loop {
        let stats = disk.stats();
        let retried = stats["images"][0]["operations"]["retries"].as_u64().expect("a count");
        if stats["state"] == "paused" && stats["held"] != 0 && retried >= retries {
            assert!(stats["reason"].as_str().expect("a reason").contains("no space left"), "{stats}");
            return;
        }
        assert!(Instant::now() < deadline, "not paused: {stats}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn boot(front: Front, server: &Server) -> Guest {
    Guest::boot(&Boot::new(Machine::Uml, front, server.socket()))
}

/// The default: the guest waits until there is room, and finds all that it wrote.
#[test]
fn a_full_file_system_makes_the_guest_wait_for_room() {
    const BYTES: u64 = 20 << 20;
    for front in Front::VHOST_USER {
        let Some(full) = SmallFs::ext4(32 << 20) else {
            say!("not shown: only root can mount a file system to fill");
            return;
        };
        let ballast = full.path().join("ballast");
        fs::write(&ballast, vec![1; 16 << 20]).expect("there is room yet");
        let disk = Disk::within(full.path(), BYTES);
        let server = disk.serve_as(front.name(), "", &[], None);
        let mut guest = boot(front, &server);
        guest.start(&format!("agent compare /dev/{} {BYTES} 16384 8 7", front.disk()));
        wait_until_paused(&disk, 0);
        assert!(guest.silent(Duration::from_secs(1)), "the guest waits");
        // Still no room.
        disk.ctl(&["resume"]);
        wait_until_paused(&disk, 1);
        assert!(guest.silent(Duration::from_secs(1)), "the guest waits");
        fs::remove_file(&ballast).expect("it is ours");
        disk.ctl(&["resume"]);
        let output = guest.finish(SOON);
        assert_eq!((output.text(), output.status), (format!("=COMPARED {BYTES} 0"), 0));
        let dmesg = guest.kernel_log();
        assert!(!dmesg.contains("I/O error") && !dmesg.contains("timed out"), "{dmesg}");
        let stats = disk.stats();
        guest.power_off();
        say!(
            "{:11}: a full ext4: the guest waits for room, {} writes tried again, {} MiB compared",
            front.name(),
            stats["images"][0]["operations"]["retries"],
            BYTES >> 20
        );
    }
}

/// `report`: an error for what found no room, and no false success before it.
#[test]
fn a_full_file_system_is_an_error_where_that_is_the_policy() {
    // What Linux makes of VIRTIO_BLK_S_IOERR is EIO, and of the sense data of a medium without space ENOSPC.
    for (front, error) in [(Front::Blk, "os error 5"), (Front::Scsi, "os error 28")] {
        let Some(full) = SmallFs::mount(512 << 10) else {
            say!("not shown: only root can mount a file system to fill");
            return;
        };
        let ballast = full.path().join("ballast");
        fs::write(&ballast, vec![1; 384 << 10]).expect("there is room yet");
        let disk = Disk::within(full.path(), 8 << 20);
        let server = disk.serve_as(front.name(), "werror=report", &[], None);
        let mut guest = boot(front, &server);
        let device = front.disk();
        let output =
            guest.run(&format!("for at in $(seq 0 8 1024); do agent one /dev/{device} $at 1 || break; done"));
        let Some((failed, written)) = output.lines.split_last() else { panic!("nothing was written") };
        assert!(failed.starts_with("=ERROR") && failed.contains(error), "{}", output.text());
        assert!(!written.is_empty());
        for (line, at) in written.iter().zip((0..).step_by(8)) {
            assert_eq!(*line, format!("=WROTE {at} 1"));
            assert_eq!(guest.sh(&format!("agent read /dev/{device} {at}")), format!("=HOLDS {at} 1"));
        }
        fs::remove_file(&ballast).expect("it is ours");
        let at = written.len() * 8;
        assert_eq!(guest.sh(&format!("agent one /dev/{device} {at} 2")), format!("=WROTE {at} 2"));
        assert_eq!(guest.sh(&format!("agent read /dev/{device} {at}")), format!("=HOLDS {at} 2"));
        guest.power_off();
        say!(
            "{:11}: a full tmpfs, werror=report: {} writes are there, then {error}",
            front.name(),
            written.len()
        );
    }
}
