//! What a guest's FUA writes become: NCQ's FUA bit reaches the host as a write that is stable, and the host's device as a FUA write
//! or a flush, by the kernel's own count. Needs root for that; says so where it is not. (Without NCQ Linux uses no drive's FUA.)

use host_std::trace::{BlockTrace, Counts, LoopDevice};

use crate::guest::{Boot, Front, Guest};
use crate::say;
use crate::server::{Serve, Server};

/// The host's counts of stable writes and of flushes.
fn counts(server: &Server) -> (u64, u64) {
    let stats = server.stats();
    let host = &stats["images"][0]["host"];
    let count = |name: &str| host[name].as_u64().expect("a count");
    (count("fua_writes"), count("fdatasync_calls"))
}

/// The guest's own: flushes are the 16th number (Documentation/block/stat.rst).
fn flushes(guest: &mut Guest) -> u64 {
    let stat = guest.cat("/sys/block/sda/stat");
    stat.split_whitespace().nth(15).and_then(|count| count.parse().ok()).expect("a count")
}

fn traced(fua: bool) {
    let front = Front::Ahci;
    let folder =
        tempfile::Builder::new().prefix("loop").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let path = folder.path().join("backing");
    let file = std::fs::File::create_new(&path).expect("a file");
    file.set_len(64 << 20).expect("a size");
    let device = match LoopDevice::attach(&path, false) {
        Ok(device) => device,
        Err(error) => return say!("skipped: {error}"),
    };
    let image = Some(device.path().to_owned());
    let server = Server::start(Serve { image, ..Serve::new(front, "none", 0) });
    let arguments = if fua { "libata.fua=1" } else { "" };
    let socket = server.socket();
    let mut guest = Guest::boot(&Boot { arguments, ..Boot::new(front.machine(), front, &socket) });
    assert_eq!(guest.cat("/sys/module/libata/parameters/fua"), if fua { "1" } else { "0" });
    assert_eq!(guest.cat("/sys/block/sda/queue/fua"), if fua { "1" } else { "0" });
    guest.sh("mkfs.ext4 -qF /dev/sda && mount -t ext4 /dev/sda /mnt && echo 1 >/mnt/file && sync");

    let trace = |guest: &mut Guest, command: &str| -> Option<(Counts, u64, u64, u64)> {
        let (major, minor) = device.dev();
        let trace = BlockTrace::start(major, minor).inspect_err(|error| say!("skipped: {error}")).ok()?;
        let before = (counts(&server), flushes(guest));
        guest.sh(command);
        let after = (counts(&server), flushes(guest));
        let seen = trace.stop().expect("the kernel's trace");
        Some((seen, after.0.0 - before.0.0, after.0.1 - before.0.1, after.1 - before.1))
    };
    // A transaction of the journal: its commit block is written with FUA, if the disk has that, and is followed by a flush if not.
    let commit = "echo 2 >>/mnt/file && sync /mnt/file";
    let Some((seen, stable, synced, flushed)) = trace(&mut guest, commit) else { return };
    if fua {
        assert!(stable >= 1, "the commit is a stable write: {seen:?}");
        assert!(seen.fua_writes + seen.flushes >= 1 && seen.writes >= 1, "{seen:?}");
    } else {
        assert_eq!(stable, 0, "the guest has no FUA");
        assert!(synced >= 1 && flushed >= 1 && seen.flushes >= 1, "{synced} {flushed} {seen:?}");
    }
    let journal = (seen, stable, synced, flushed);
    // A direct write that the application wants stable: Linux adds a flush to it in any case, and a second one without FUA.
    guest.sh("umount /mnt");
    let write = "agent stable /dev/sda 8 1";
    let Some((seen, stable, synced, flushed)) = trace(&mut guest, write) else { return };
    if fua {
        assert_eq!((stable, flushed), (1, 1), "{seen:?}");
        assert!(seen.fua_writes + seen.flushes >= 1, "{seen:?}");
    } else {
        assert_eq!((stable, flushed), (0, 2), "{seen:?}");
        assert!(synced >= 1 && seen.flushes >= 1, "{seen:?}");
    }
    guest.power_off();
    let (status, _files) = server.stop();
    assert!(status.success(), "{status}");
    let (seen_then, stable_then, ..) = journal;
    say!(
        "{:7} {}: ext4's commit made {stable_then} stable writes, {} flushes and {} FUA writes of the host's device; \
         a stable write {stable}, {} and {}",
        front.name(),
        if fua { "with libata.fua=1" } else { "without FUA" },
        seen_then.flushes,
        seen_then.fua_writes,
        seen.flushes,
        seen.fua_writes,
    );
}

#[test]
fn fua_reaches_the_device_by_ncq() {
    traced(true);
}

#[test]
fn without_fua_a_flush_does() {
    traced(false);
}
