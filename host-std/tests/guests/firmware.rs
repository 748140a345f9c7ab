//! Firmware finds our disks, and starts what is on them: SeaBIOS a boot sector, OVMF an EFI program that is a kernel, whose root
//! file system is on the same disk.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cache::{Cache, run, script};
use crate::drivers::sha256;
use crate::guest::{Boot, Front, Guest, Machine, SOON};
use crate::machine::{qemu, vfio_user};
use crate::say;
use crate::server::{Serve, Server};

const SECTOR: u64 = 512;
const MIB: u64 = 1 << 20;

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("firmware").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder")
}

fn served(front: Front, image: &Path) -> Server {
    Server::start(Serve { image: Some(image.to_owned()), ..Serve::new(front, "writeback", 0) })
}

/// What the boot sector compares sectors 1 to 8 with.
fn pattern() -> Vec<u8> {
    (0..8 * 256_u32).flat_map(|word| ((word * 0x5a35 + 1) as u16).to_le_bytes()).collect()
}

/// The machine code of `boot.s`.
fn boot_sector(folder: &Path) -> Vec<u8> {
    let (object, binary) = (folder.join("boot.o"), folder.join("boot"));
    run(Command::new("as").args(["--32", "-o"]).arg(&object).arg(script("boot.s")));
    let link = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"];
    run(Command::new("ld").args(link).arg(&binary).arg(&object));
    let code = std::fs::read(binary).expect("a boot sector");
    assert_eq!(code.len(), 512);
    code
}

/// INT 13h, as old and as new as it gets, in both directions.
fn seabios(front: Front) {
    let begin = Instant::now();
    let folder = folder();
    let path = folder.path().join("image");
    let image = File::options().read(true).write(true).create_new(true).open(&path).expect("an image");
    image.set_len(16 * MIB).expect("a size");
    image.write_all_at(&boot_sector(folder.path()), 0).expect("written");
    image.write_all_at(&pattern(), SECTOR).expect("written");
    let server = served(front, &path);

    let said = folder.path().join("said");
    let mut command = qemu(Machine::Qemu11);
    vfio_user(&mut command, &server.socket());
    command.arg("-chardev").arg(format!("file,id=said,path={}", said.display()));
    command.args(["-device", "isa-debugcon,iobase=0xe9,chardev=said"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-no-reboot"]);
    let mut machine = command.stdin(Stdio::null()).spawn().expect("the emulator starts");
    let status = loop {
        if let Some(status) = machine.try_wait().expect("a child") {
            break Some(status);
        }
        if begin.elapsed() > SOON {
            machine.kill().expect("the emulator can be killed");
            machine.wait().expect("a child");
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = std::fs::read(said).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&said), "XRPrcwWC", "{}: steps; {}", front.name(), server.log());
    // The device that ends the emulator makes 2n+1 of n.
    assert_eq!(status.and_then(|status| status.code()), Some(3), "{}", front.name());
    let (status, _files) = server.stop();
    assert!(status.success(), "{status}");

    let read = |sector: u64, sectors: usize| {
        let mut bytes = vec![0; sectors * 512];
        image.read_exact_at(&mut bytes, sector * SECTOR).expect("the image can be read");
        bytes
    };
    let inverted: Vec<u8> = pattern().iter().map(|byte| !byte).collect();
    assert_eq!(read(1, 8), pattern(), "what it had read");
    assert_eq!(read(64, 8), inverted, "written by LBA");
    assert_eq!(read(32, 4), pattern()[..2048], "written by cylinder, head and sector");
    assert!(read(36, 28).iter().chain(&read(72, 1024)).all(|&byte| byte == 0), "and nothing else");
    say!("SeaBIOS on {:19}: INT 13h reads and writes ({:?})", front.name(), begin.elapsed());
}

#[test]
fn seabios_boots_from_ahci() {
    seabios(Front::Ahci);
}

#[test]
fn seabios_boots_from_ide() {
    seabios(Front::Ide);
}

#[test]
fn seabios_boots_from_virtio_blk_pci() {
    seabios(Front::BlkPci);
}

/// Where the partitions are: one with a FAT, for the firmware, and one for the root file system.
const ESP: (u64, u64) = (MIB, 96 * MIB);
const ROOT: (u64, u64) = (ESP.0 + ESP.1, 64 * MIB);

/// A master boot record with both (UEFI 2.10, 5.2.1: OSType EFh is an EFI system partition).
fn partition_table() -> [u8; 512] {
    let mut record = [0; 512];
    for (at, kind, (from, bytes)) in [(446, 0xef, ESP), (462, 0x83, ROOT)] {
        let entry: &mut [u8] = &mut record[at..at + 16];
        entry[1..4].fill(0xff);
        entry[4] = kind;
        entry[5..8].fill(0xff);
        entry[8..12].copy_from_slice(&((from / SECTOR) as u32).to_le_bytes());
        entry[12..16].copy_from_slice(&((bytes / SECTOR) as u32).to_le_bytes());
    }
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

/// A disk to boot from, and the hashes of what is on its root file system.
struct Bootable {
    image: PathBuf,
    hashes: String,
    _folder: TempDir,
}

impl Bootable {
    fn new(boot: &Boot<'_>) -> Self {
        let folder = folder();
        let (image, cache) = (folder.path().join("image"), Cache::get());
        let mut disk = File::create_new(&image).expect("an image");
        disk.set_len(ROOT.0 + ROOT.1 + MIB).expect("a size");
        disk.write_all(&partition_table()).expect("written");

        let program = folder.path().join("kernel.efi");
        // Some 40 MB, which OVMF reads from virtio-blk in one request.
        let stub = cache.file("firmware/unpacked/usr/lib/systemd/boot/efi/linuxx64.efi.stub");
        let mut uki = Command::new(script("uki"));
        uki.args([&stub, &cache.kernel(), &cache.initramfs]);
        run(uki.arg(boot.qemu_arguments()).arg(&program));
        let partition = format!("{}@@{}", image.display(), ESP.0);
        let mtools = |args: &[&str]| {
            let mut command = cache.program("firmware", "mtools");
            command.args(["-c", args[0], "-i", &partition]).args(&args[1..]);
            run(&mut command);
        };
        mtools(&["mformat", "-T", &(ESP.1 / SECTOR).to_string(), "::"]);
        mtools(&["mmd", "::/EFI", "::/EFI/BOOT"]);
        mtools(&["mcopy", program.to_str().expect("a path"), "::/EFI/BOOT/BOOTX64.EFI"]);

        let (root, file_system) = (folder.path().join("root"), folder.path().join("root.img"));
        let hashes = root_tree(&root);
        let mut mkfs = cache.program("tools", "mke2fs");
        mkfs.args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&file_system).arg((ROOT.1 >> 10).to_string());
        run(mkfs.env("MKE2FS_CONFIG", cache.file("tools/unpacked/etc/mke2fs.conf")));
        disk.seek(SeekFrom::Start(ROOT.0)).expect("a place in it");
        std::io::copy(&mut File::open(&file_system).expect("a file system"), &mut disk).expect("copied");
        std::fs::remove_file(file_system).expect("removed");
        Self { image, hashes, _folder: folder }
    }

    /// What a file of the root file system holds, copied out of the image.
    fn root_file(&self, name: &str) -> PathBuf {
        let (root, copy) = (self.image.with_file_name("after"), self.image.with_file_name("copied"));
        let mut disk = File::open(&self.image).expect("an image");
        disk.seek(SeekFrom::Start(ROOT.0)).expect("a place in it");
        let mut to = File::create(&root).expect("a file");
        std::io::copy(&mut std::io::Read::take(disk, ROOT.1), &mut to).expect("copied");
        run(Cache::get().program("tools", "e2fsck").arg("-fn").arg(&root));
        let mut debugfs = Cache::get().program("tools", "debugfs");
        run(debugfs.arg("-R").arg(format!("dump {name} {}", copy.display())).arg(&root));
        copy
    }
}

/// A small system: busybox, what Debian's packages of hdparm and smartmontools need, our agent, and the script that is the first
/// process. Returns what sha256sum says of its packages' files.
fn root_tree(root: &Path) -> String {
    let cache = Cache::get();
    std::fs::create_dir(root).expect("a folder");
    for folder in ["dev", "proc", "sys", "tmp", "mnt", "sbin"] {
        std::fs::create_dir(root.join(folder)).expect("a folder");
    }
    run(Command::new("cp").arg("-a").arg(cache.file("probe/unpacked/usr")).arg(root));
    std::fs::create_dir(root.join("bin")).expect("a folder");
    std::os::unix::fs::symlink("usr/lib64", root.join("lib64")).expect("a link");
    for (from, to) in [
        (cache.file("tools/unpacked/usr/bin/busybox"), "bin/busybox"),
        (cache.agent.clone(), "bin/agent"),
        (script("init"), "init"),
    ] {
        std::fs::copy(from, root.join(to)).expect("copied");
    }
    let find = "find usr bin/agent init -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum";
    let output = Command::new("sh").args(["-c", find]).current_dir(root).output().expect("a shell");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("names of Debian's files")
}

fn boot<'a>(front: Front, socket: &'a Path, arguments: &'a str, from_disk: bool) -> Boot<'a> {
    Boot { arguments, from_disk, ..Boot::new(Machine::Qemu11, front, socket) }
}

/// A kernel whose root file system is on our disk: everything that it runs comes from there. It boots, compares all of what the
/// host had put there, writes, syncs, compares, powers off; and what it wrote is there.
fn root_on_our_disk(front: Front, from_disk: bool) {
    let begin = Instant::now();
    let disk = front.disk();
    let arguments = format!("blk.root={disk}2");
    let bootable = Bootable::new(&boot(front, Path::new(""), &arguments, from_disk));
    let server = served(front, &bootable.image);

    let socket = server.socket();
    let mut guest = Guest::boot(&boot(front, &socket, &arguments, from_disk));
    let mounts = guest.cat("/proc/mounts");
    assert!(mounts.contains(&format!("/dev/{disk}2 / ext4 ")), "{mounts}");
    assert_eq!(guest.sh("! test -d /sys/firmware/efi || echo EFI"), if from_disk { "EFI" } else { "" });
    let files = bootable.hashes.lines().count();
    guest.sh("echo 3 >/proc/sys/vm/drop_caches");
    let hashes =
        guest.sh_within("cd / && find usr bin/agent init -type f | sort | xargs sha256sum", SOON * 3);
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&hashes), sorted(&bootable.hashes), "of {files} files");
    let print = guest.sh("/usr/sbin/smartctl --version");
    assert!(print.starts_with("smartctl "), "{print}");
    let written =
        guest.sh("dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null; sha256sum </tmp/data");
    guest.sh("cp /tmp/data /written && sync && echo 3 >/proc/sys/vm/drop_caches && cmp /tmp/data /written");
    guest.sh("mount -o remount,ro /");
    guest.power_off();
    say!(
        "{} on {:19}: {files} files of its root file system as they were ({:?})",
        if from_disk { "OVMF and Linux" } else { "Linux" },
        front.name(),
        begin.elapsed()
    );
    let (status, _files) = server.stop();
    assert!(status.success(), "{status}");
    assert_eq!(
        Some(sha256(&bootable.root_file("/written"), 0, 64 << 16).as_str()),
        written.split(' ').next()
    );
}

#[test]
fn ovmf_starts_a_kernel_from_ahci_whose_root_is_there() {
    root_on_our_disk(Front::Ahci, true);
}

#[test]
fn ovmf_starts_a_kernel_from_virtio_blk_pci_whose_root_is_there() {
    root_on_our_disk(Front::BlkPci, true);
}

#[test]
fn a_kernel_has_its_root_on_ide() {
    root_on_our_disk(Front::Ide, false);
}
