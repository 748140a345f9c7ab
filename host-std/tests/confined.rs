//! `blk-host serve` confined: what its threads have given up, and that it serves all the same.

mod serving;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command as Program, Output};
use std::time::Duration;

use host_std::testing::client::vfio_user::CONFIG;
use host_std::testing::client::vfio_user::VfioUser;
use host_std::testing::client::{Blk, Options, Scsi};
use scsi_model::front::virtio_scsi::Address;
use serving::{Disk, Server};

const MIB: u64 = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);
const NOBODY: u32 = 65534;

fn options() -> Options {
    Options { timeout: TIMEOUT, ..Options::default() }
}

/// What each thread of a process has given up: its name, and the lines of its status.
fn given_up(process: u32) -> Vec<(String, [String; 3])> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    // One may end meanwhile.
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let value = |status: &str, key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    statuses
        .map(|status| {
            (value(&status, "Name"), ["Seccomp", "NoNewPrivs", "CapEff"].map(|key| value(&status, key)))
        })
        .filter(|(name, _)| !name.starts_with("iou-"))
        .collect()
}

#[track_caller]
fn assert_confined(server: &Server, threads_at_least: usize) {
    let threads = given_up(server.id());
    assert!(threads.len() >= threads_at_least, "{threads:?}");
    for (name, values) in threads {
        assert_eq!(values, ["2", "1", "0000000000000000"], "thread {name}");
    }
}

#[test]
fn every_thread_of_a_server_under_load_is_confined() {
    for cache in ["cache=writeback", "cache=none", "cache=writeback,engine=threads"] {
        let disk = Disk::within(Path::new("."), MIB);
        let server = disk.serve(cache, &["--sandbox", "require"]);
        let mut guest = Blk::connect(server.socket(), options()).unwrap();
        let mut back = vec![0; 4096];
        for round in 0..32 {
            guest.write(round * 8, &[round as u8 + 1; 4096]).unwrap();
            guest.flush().unwrap();
            guest.read(round * 8, &mut back).unwrap();
            assert_eq!(back, [round as u8 + 1; 4096], "{cache}");
        }
        // Main, signals, serve, watch, control, a queue, a flusher, four workers.
        assert_confined(&server, 11);
        guest.discard(0, 8).unwrap();
        guest.write_zeroes(8, 8, true).unwrap();
        let report = disk.ctl(&["stats"]);
        assert!(report.contains("sandbox=require") && report.contains("system calls confined"), "{report}");
        disk.ctl(&["drain"]);
        disk.ctl(&["resume"]);
        let larger = (2 * MIB).to_string();
        disk.ctl(&["resize", &larger]);
        assert_eq!(fs::metadata(disk.image()).unwrap().len(), 2 * MIB, "{cache}");
        guest.write(MIB / 512, &[7; 512]).unwrap();
    }
}

#[test]
fn every_thread_of_a_virtio_scsi_server_is_confined() {
    let disk = Disk::new(MIB);
    let server = disk.serve_as("virtio-scsi", "", &["--sandbox", "require"], None);
    let mut host = Scsi::connect(server.socket(), Options { queues: 3, ..options() }).unwrap();
    let unit = Address { target: 0, lun: 0 };
    host.ready(unit).unwrap();
    host.read(unit, 0, 512, &mut [0; 512]).unwrap();
    host.flush(unit).unwrap();
    assert_confined(&server, 11);
}

#[test]
fn every_thread_of_an_ahci_server_is_confined() {
    let disk = Disk::new(MIB);
    let socket = disk.image().with_file_name("vfio");
    let mut program = Program::new(env!("CARGO_BIN_EXE_blk-host"));
    program.args(["serve", "--quiet", "--sandbox", "require", "--device", "ahci", "--vfio-user"]);
    program.arg(&socket).arg("--image").arg(disk.image()).env("BLK_HOST_LOG", "warn");
    let server = Server::start(&mut program, &socket).unwrap();
    until(|| socket.exists());
    let mut client = VfioUser::connect(&socket, TIMEOUT).unwrap();
    for _ in 0..100 {
        assert_eq!(client.read_bytes(CONFIG, 0, 4).unwrap(), [0x86, 0x80, 0x22, 0x29]);
    }
    assert_confined(&server, 10);
}

#[test]
fn a_server_without_a_sandbox_is_left_as_it_is() {
    let disk = Disk::new(MIB);
    let server = disk.serve("", &["--sandbox", "off"]);
    let mut guest = Blk::connect(server.socket(), options()).unwrap();
    guest.flush().unwrap();
    assert!(given_up(server.id()).iter().all(|(_, values)| values[0] != "2"));
}

/// The image is root's alone, and the folder too.
#[test]
fn a_server_that_becomes_another_user_serves_an_image_that_this_user_may_not_open() {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "ignored: only root becomes another user");
        eprintln!("ignored: only root becomes another user");
        return;
    }
    let disk = Disk::within(Path::new("."), MIB);
    fs::set_permissions(disk.image(), fs::Permissions::from_mode(0o600)).unwrap();
    for cache in ["cache=writeback", "cache=none", "cache=writeback,engine=threads"] {
        let user = format!("{NOBODY}:{NOBODY}");
        let server = disk.serve(cache, &["--user", &user]);
        let mut guest = Blk::connect(server.socket(), options()).unwrap();
        guest.write(0, &[9; 512]).unwrap();
        guest.flush().unwrap();
        disk.ctl(&["drain"]);
        disk.ctl(&["resume"]);
        guest.read(0, &mut [0; 512]).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
        assert!(status.contains(&format!("Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}")), "{status}");
    }
    assert_eq!(fs::read(disk.image()).unwrap()[..512], [9; 512]);
}

#[test]
fn what_a_server_makes_is_its_owner_s_alone_whatever_the_umask() {
    let disk = Disk::new(MIB);
    let [image, recording, socket, control] =
        ["made", "recording", "device", "ctl"].map(|name| disk.image().with_file_name(name));
    let mut program = Program::new(env!("CARGO_BIN_EXE_blk-host"));
    program.args(["serve", "--quiet", "--socket"]).arg(&socket).arg("--control").arg(&control);
    program.arg("--record").arg(&recording).arg("--image").arg(format!("{},size=1M", image.display()));
    program.env("BLK_HOST_LOG", "warn");
    // SAFETY: umask is a system call, and nothing else is done between fork and exec.
    unsafe {
        program.pre_exec(|| {
            rustix::process::umask(rustix::fs::Mode::empty());
            Ok(())
        });
    }
    let server = Server::start(&mut program, &socket).unwrap();
    until(|| socket.exists());
    let mut guest = Blk::connect(server.socket(), options()).unwrap();
    guest.write(0, &[1; 512]).unwrap();
    for path in [&image, &recording, &socket, &control] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600, "{}", path.display());
    }
}

#[test]
fn a_socket_has_the_permissions_that_the_operator_gives() {
    let disk = Disk::new(MIB);
    let server = disk.serve("", &["--socket-mode", "666"]);
    Blk::connect(server.socket(), options()).unwrap();
    assert_eq!(fs::metadata(server.socket()).unwrap().mode() & 0o777, 0o666);
}

#[test]
fn an_image_is_plugged_in_from_a_folder_that_was_named_and_from_no_other() {
    let (disk, inside, outside) = (Disk::new(MIB), Disk::new(MIB), Disk::new(MIB));
    let folder = inside.image().parent().unwrap().to_str().unwrap();
    let server = disk.serve_as("virtio-scsi", "", &["--hotplug-folder", folder], None);
    let mut host = Scsi::connect(server.socket(), Options { queues: 3, ..options() }).unwrap();
    host.ready(Address { target: 0, lun: 0 }).unwrap();
    let refused = ctl(&disk, &["hotplug", outside.image().to_str().unwrap()]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    let folder = outside.image().parent().unwrap().display().to_string();
    assert!(
        text.contains("the sandbox permits") && text.contains(&format!("--hotplug-folder {folder}")),
        "{text}"
    );
    let image = inside.image().to_str().unwrap();
    disk.ctl(&["hotplug", &format!("{image},lun=0:3")]);
    let plugged = Address { target: 0, lun: 3 };
    host.ready(plugged).unwrap();
    host.read(plugged, 0, 512, &mut [0; 512]).unwrap();
    host.flush(plugged).unwrap();
    assert_confined(&server, 16);
    // What was opened at the start may be opened again.
    disk.ctl(&["unplug", "0:0"]);
    until(|| ctl(&disk, &["hotplug", disk.image().to_str().unwrap()]).status.success());
}

#[test]
fn options_that_cannot_be_are_named_as_they_were_typed() {
    let disk = Disk::new(MIB);
    for (option, value, remedy) in [
        ("--sandbox", "on", "give off, auto or require"),
        ("--user", "no-such-user", "give the name or number of a user"),
        ("--socket-mode", "rw", "give three octal digits"),
        ("--socket-group", "no-such-group", "give the name or number of a group"),
        ("--hotplug-folder", "/no/such/folder", "give a folder that exists"),
    ] {
        let mut program = Program::new(env!("CARGO_BIN_EXE_blk-host"));
        program.args(["serve", "--quiet", "--socket"]).arg(disk.image().with_file_name("s"));
        program.arg("--image").arg(disk.image()).args([option, value]);
        let output = program.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(remedy), "{option}: {text}");
        assert!(text.contains(value), "{option}: {text}");
    }
}

fn ctl(disk: &Disk, arguments: &[&str]) -> Output {
    let mut program = Program::new(env!("CARGO_BIN_EXE_blk-host"));
    program.arg("ctl").arg("--control").arg(disk.image().with_file_name("control")).args(arguments);
    program.output().unwrap()
}

#[track_caller]
fn until(mut done: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < TIMEOUT, "it never happens");
        std::thread::sleep(Duration::from_millis(10));
    }
}
