//! A guest of cloud-hypervisor, attached by the line that `blk-host serve` prints for it. It has to have KVM, which needs no
//! hardware here: that of a guest of QEMU, whose processor is an emulated one with SVM. So the server runs in a guest too.

use std::path::Path;
use std::time::{Duration, Instant};

use super::printed::line_for;
use crate::cache::Cache;
use crate::drivers::{buffered, first_word};
use crate::guest::{Boot, Front, Guest, Machine, OFF, SOON};
use crate::machine::{emulator, serial_ports};
use crate::say;

/// Names the program, of which Debian has no package.
const VARIABLE: &str = "BLK_HOST_CLOUD_HYPERVISOR";

const BYTES: u64 = 16 << 20;

/// The guest in which cloud-hypervisor runs, with all that it needs. `folder` is for the initramfs.
fn outer(program: &Path, folder: &Path) -> Guest {
    let (cache, initramfs) = (Cache::get(), folder.join("initramfs"));
    let files = [
        ("bin/cloud-hypervisor", program),
        ("bin/blk-host", Path::new(env!("CARGO_BIN_EXE_blk-host"))),
        ("kernel", &cache.kernel()),
        ("initramfs", &cache.initramfs),
    ];
    cache.initramfs_with(&files, &initramfs);
    let nothing = Path::new("");
    let boot = Boot { driver: "kvm-amd", filesystem: "", ..Boot::new(Machine::Qemu11, Front::Blk, nothing) };
    let mut guest = Guest::without_disk("cloud-hypervisor in QEMU 11".into(), OFF, |folder| {
        // The printed line gives the inner guest 1 GiB.
        let mut command = emulator("qemu11", "max,+svm,+npt", 3072);
        serial_ports(&mut command, folder);
        command.arg("-no-reboot").arg("-kernel").arg(cache.kernel()).arg("-initrd").arg(&initramfs);
        command.arg("-append").arg(boot.qemu_arguments());
        command
    });
    guest.sh("cd /tmp && set -o pipefail && test -c /dev/kvm");
    guest
}

/// Serves a disk in the outer guest, and boots the inner one with it. Until that one is off, commands are its shell's.
fn attaches(guest: &mut Guest, front: Front, cache: &str, queues: u32, write_cache: &str) {
    let begin = Instant::now();
    let options = front.options().join(" ");
    let queues_option = if front.is_ata() { String::new() } else { format!(",queues={queues}") };
    let image = format!("disk.img,size={BYTES},cache={cache}{queues_option}");
    guest.sh("rm -f disk.img disk.sock");
    guest.sh(&format!("blk-host serve {options} disk.sock --image {image} >served 2>&1 & server=$!"));
    let printed =
        guest.sh("until grep -q ' ready ' served; do kill -0 $server || break; sleep 0.1; done; cat served");
    let line = line_for("cloud-hypervisor:", &printed);

    // The kernel's messages go where the outer one's go. The shell is on the virtio console, since cloud-hypervisor's serial port
    // loses bytes of input. `cat`, because a terminal would become that of a session of its own, and be hung up at the end.
    let inner =
        Boot { filesystem: "", ..Boot::new(Machine::Qemu11, front, Path::new("")) }.kernel_arguments("hvc0");
    guest.start(&format!(
        "{line} --cpus boot={queues} --kernel /kernel --initramfs /initramfs --cmdline 'console=ttyS0 {inner}' \
         --serial file=/dev/ttyS0 --console tty 2>/dev/ttyS0 | cat"
    ));
    guest.ready();
    guest.await_disk(front);
    let (name, disk) = (front.name(), front.disk());
    assert_eq!(guest.cat(&format!("/sys/block/{disk}/queue/write_cache")), write_cache, "{name}, {cache}");
    assert_eq!(guest.cat(&format!("/sys/block/{disk}/size")), (BYTES / 512).to_string(), "{name}");
    let hardware_queues = guest.sh(&format!("ls /sys/block/{disk}/mq | wc -l"));
    assert_eq!(hardware_queues.trim(), queues.to_string(), "queues of {name}");
    let compare = format!("agent compare /dev/{disk} {BYTES} 65536 32 7");
    let compared = guest.sh_within(&compare, Duration::from_secs(600));
    assert_eq!(compared, format!("=COMPARED {BYTES} 0"), "{name}");
    buffered(guest, disk, BYTES);
    let inner_hash = first_word(&guest.sh(&format!("sha256sum </dev/{disk}")));
    guest.start(OFF);
    let ended = guest.finish(SOON);
    assert_eq!(ended.status, 0, "cloud-hypervisor: {}", ended.text());

    guest.sh("kill $server; wait $server");
    let outer_hash = first_word(&guest.sh("sha256sum <disk.img"));
    assert_eq!(outer_hash, inner_hash, "the hash of {name}'s image, and of the disk in the guest");
    say!(
        "{name:14} on cloud-hypervisor: attached by the line as it is printed, {cache} is {write_cache}, {} MiB compared ({} s)",
        BYTES >> 20,
        begin.elapsed().as_secs()
    );
}

#[test]
fn attach_cloud_hypervisor_as_printed() {
    let Some(program) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) else {
        return say!(
            "skipped: cloud-hypervisor is no Debian package; to try it, give its path in {VARIABLE}"
        );
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let mut guest = outer(Path::new(&program), folder.path());
    attaches(&mut guest, Front::Blk, "writeback", 2, "write back");
    attaches(&mut guest, Front::Blk, "writethrough", 1, "write through");
    attaches(&mut guest, Front::BlkPci, "writeback", 1, "write back");
    attaches(&mut guest, Front::Ahci, "writeback", 1, "write back");
    guest.power_off();
}
