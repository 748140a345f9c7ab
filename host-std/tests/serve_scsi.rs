//! `blk-host serve --device virtio-scsi`, as a supervisor, an operator and a driver meet it.

mod common;
mod serving;

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command as Program;
use std::time::Duration;

use common::{Images, Loop};
use host_std::testing::client::{ClientError, Command, Options, Scsi, ScsiPayload, cdb};
use scsi_model::front::virtio_scsi::Address;
use scsi_model::front::virtio_scsi::wire::{Response, event};
use serving::{Disk, Server};

const BLOCK: usize = 512;
const MIB: u64 = 1 << 20;

fn connect(server: &Server) -> Scsi {
    let timeout = Duration::from_secs(60);
    Scsi::connect(server.socket(), Options { queues: 3, timeout, ..Options::default() }).unwrap()
}

const fn unit(target: u8, lun: u16) -> Address {
    Address { target, lun }
}

/// Blocks that a unit has.
fn capacity(host: &mut Scsi, to: Address) -> u64 {
    let block = cdb::read_capacity_16(32);
    let ticket = host.perform(&Command::new(to, &block, ScsiPayload::In(32))).unwrap();
    let mut last = [0; 8];
    host.data(ticket, &mut last);
    u64::from_be_bytes(last) + 1
}

/// The numbers of a target's units.
fn luns(host: &mut Scsi, to: Address) -> Vec<u8> {
    let block = cdb::report_luns(256);
    let ticket = host.submit(Scsi::QUEUE, &Command::new(to, &block, ScsiPayload::In(256))).unwrap();
    let done = host.wait_for(ticket).unwrap();
    assert!(done.is_good(), "{done:?}");
    let mut list = vec![0; 256 - done.residual as usize];
    host.data(ticket, &mut list);
    list[8..].chunks(8).map(|lun| lun[1]).collect()
}

fn write(host: &mut Scsi, to: Address, lba: u64, fill: u8) {
    let block = cdb::write_16(lba, 1, false);
    host.perform(&Command::new(to, &block, ScsiPayload::Out(&[fill; BLOCK]))).unwrap();
}

fn holds(host: &mut Scsi, to: Address, lba: u64) -> u8 {
    let mut back = [0; BLOCK];
    host.read(to, lba, BLOCK as u32, &mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == back[0]));
    back[0]
}

#[test]
fn each_image_is_a_unit_with_a_capacity_and_contents_of_its_own() {
    let (disk, other) = (Disk::new(MIB), Disk::new(3 * MIB));
    let second = format!("{},lun=2:5", other.image().display());
    let server = disk.serve_as("virtio-scsi", "", &["--image", &second], None);
    let mut host = connect(&server);
    let units = [(unit(0, 0), MIB), (unit(2, 5), 3 * MIB)];
    for (at, bytes) in units {
        host.ready(at).unwrap();
        assert_eq!(capacity(&mut host, at), bytes / BLOCK as u64);
        write(&mut host, at, 7, at.target + 1);
    }
    for (at, _) in units {
        assert_eq!(holds(&mut host, at, 7), at.target + 1);
        host.flush(at).unwrap();
    }
    assert_eq!((luns(&mut host, unit(0, 0)), luns(&mut host, unit(2, 5))), (vec![0], vec![5]));
    let images = disk.stats()["images"].clone();
    assert_eq!((&images[0]["lun"], &images[1]["lun"]), (&"0:0".into(), &"2:5".into()));
    for image in 0..2 {
        assert_eq!(images[image]["host"]["bytes_written"], BLOCK);
    }
    let nobody = Command::new(unit(9, 0), &cdb::TEST_UNIT_READY, ScsiPayload::None);
    let Err(ClientError::Refused { done, .. }) = host.perform(&nobody) else { panic!("there is one") };
    assert_eq!(done.response, Response::BadTarget as u8);
}

#[test]
fn a_unit_that_an_operator_plugs_in_resizes_and_takes_away_is_announced() {
    let (disk, more) = (Disk::new(MIB), Disk::new(2 * MIB));
    let folder = more.image().parent().unwrap().to_str().unwrap();
    let server = disk.serve_as("virtio-scsi", "", &["--hotplug-folder", folder], None);
    let mut host = connect(&server);
    let (first, plugged) = (unit(0, 0), unit(0, 3));
    host.ready(first).unwrap();
    let image = format!("{},lun=0:3", more.image().display());
    let answer = disk.ctl(&["--json", "hotplug", &image]);
    assert!(answer.contains(r#""lun": "0:3""#), "{answer}");
    let name = [1, 0, 0, 3, 0, 0, 0, 0];
    let told = host.event().unwrap();
    assert_eq!((told.event.get(), told.reason.get()), (event::TRANSPORT_RESET, event::RESCAN));
    assert_eq!(told.lun, name);
    host.ready(plugged).unwrap();
    write(&mut host, plugged, 1, 9);
    assert_eq!(holds(&mut host, plugged, 1), 9);
    assert_eq!(luns(&mut host, first), [0, 3]);
    // The place is taken.
    let refused = Program::new(env!("CARGO_BIN_EXE_blk-host"))
        .args(["ctl", "--control"])
        .arg(server.socket().with_file_name("control"))
        .args(["hotplug", &format!("{folder}/another,lun=0:3")])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && error.contains("lun is in use"), "{error}");
    disk.ctl(&["resize", "--image", "1", "+1M"]);
    let told = host.event().unwrap();
    assert_eq!((told.event.get(), told.lun), (event::PARAMETER_CHANGE, name));
    // Asc and ascq of CAPACITY DATA HAS CHANGED.
    assert_eq!(told.reason.get(), 0x092a);
    host.ready(plugged).unwrap();
    assert_eq!(capacity(&mut host, plugged), 3 * MIB / BLOCK as u64);
    disk.ctl(&["unplug", "0:3"]);
    let told = host.event().unwrap();
    assert_eq!((told.event.get(), told.reason.get()), (event::TRANSPORT_RESET, event::REMOVED));
    host.ready(first).unwrap();
    assert_eq!(luns(&mut host, first), [0]);
    let read = host.read(plugged, 0, BLOCK as u32, &mut [0; BLOCK]);
    assert!(matches!(read, Err(ClientError::Refused { .. })));
    // What was there is not locked any more.
    disk.ctl(&["hotplug", &image]);
    host.ready(plugged).unwrap();
    assert_eq!(holds(&mut host, plugged, 1), 9);
}

/// As a service manager does it: the socket is descriptor 3, and two variables say so.
#[test]
fn takes_its_sockets_from_a_service_manager() {
    let disk = Disk::new(MIB);
    let socket = disk.image().with_file_name("handed-over");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let script = format!(
        "exec 3<&{}; LISTEN_PID=$$ LISTEN_FDS=1 exec {} serve --quiet --device virtio-scsi --image {}",
        listener.as_fd().as_raw_fd(),
        env!("CARGO_BIN_EXE_blk-host"),
        disk.image().display()
    );
    let mut program = Program::new("bash");
    program.args(["-c", &script]).env("BLK_HOST_LOG", "off");
    let mut child = program.spawn().unwrap();
    drop(listener);
    let timeout = Duration::from_secs(60);
    let mut host = Scsi::connect(&socket, Options { queues: 3, timeout, ..Options::default() }).unwrap();
    host.ready(unit(0, 0)).unwrap();
    write(&mut host, unit(0, 0), 0, 5);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(socket.exists(), "a supervisor's socket is not ours to remove");
    assert_eq!(std::fs::read(disk.image()).unwrap()[..BLOCK], [5; BLOCK]);
}

/// The first image is made, and the first device is ready, by the time that another is refused.
#[test]
fn a_start_that_is_refused_leaves_no_image_behind() {
    let dir = tempfile::TempDir::new().unwrap();
    let old = dir.path().join("old");
    std::fs::write(&old, [1; 4096]).unwrap();
    let device = |name: &str, images: &[&str]| {
        let images =
            images.iter().map(|path| format!("[[device.image]]\npath = \"{path}\"\nsize = \"1M\"\n"));
        format!("[[device]]\ntype = \"virtio-scsi\"\nsocket = \"{name}\"\n") + &images.collect::<String>()
    };
    for config in
        [device("a", &["new", "old", "no/image"]), device("a", &["new", "old"]) + &device("b", &["no/image"])]
    {
        std::fs::write(dir.path().join("config"), config).unwrap();
        let mut program = Program::new(env!("CARGO_BIN_EXE_blk-host"));
        let output = program.current_dir(dir.path()).args(["serve", "--config", "config"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains("no/image") && text.contains("size=1M"), "{text}");
        assert!(!dir.path().join("new").exists());
        assert_eq!(old.metadata().unwrap().len(), 4096);
    }
}

/// Starts on an image and one that is missing, so that it is refused when all has been looked at. Returns what it says.
fn refused_start(folder: &Path, image: &str) -> String {
    let mut program = Program::new(env!("CARGO_BIN_EXE_blk-host"));
    program.args([
        "serve",
        "--device",
        "virtio-scsi",
        "--socket",
        "s",
        "--image",
        image,
        "--image",
        "no/image",
    ]);
    let output = program.current_dir(folder).output().unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One line for each thing to know, with the image and the remedy.
#[test]
fn a_start_warns_of_what_loses_data_and_refuses_a_foreign_format() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = dir.path().join("disk.img");
    let begins_with =
        |header: &[u8]| std::fs::write(&image, [header, &[0; 512]].concat()[..512].repeat(8)).unwrap();
    let vdi = [&[0; 0x40][..], &[0x7f, 0x10, 0xda, 0xbe]].concat();
    for (header, format) in [(&b"QFI\xfb"[..], "qcow2"), (b"KDMV", "VMDK"), (&vdi, "VDI")] {
        begins_with(header);
        let text = refused_start(dir.path(), "disk.img");
        let parts = ["image disk.img", format, "format=raw"];
        assert!(parts.iter().all(|part| text.contains(part)) && !text.contains("no/image"), "{text}");
        let raw = refused_start(dir.path(), "disk.img,format=raw");
        assert!(raw.contains("no/image") && !raw.contains(format), "{raw}");
    }
    let warns_once = |image: &str, parts: [&str; 2]| {
        let text = refused_start(dir.path(), image);
        let path = image.split(',').next().unwrap();
        let lines = text.lines().filter(|line| parts.iter().chain([&path]).all(|part| line.contains(part)));
        assert_eq!(lines.count(), 1, "{parts:?}: {text}");
        assert!(text.contains("no/image"), "{text}");
    };
    begins_with(b"LUKS\xba\xbe");
    warns_once("disk.img", ["has a LUKS header", "cryptsetup open"]);
    begins_with(b"");
    warns_once(
        "disk.img,cache=unsafe",
        ["cache=unsafe: a crash of the host loses", "give another cache mode"],
    );
    if let Some(device) = Loop::over(&image, 512) {
        warns_once("disk.img", ["is the backing file of a loop device", device.0.to_str().unwrap()]);
    }
    let room = rustix::fs::statvfs(dir.path()).unwrap();
    let size = room.f_blocks * room.f_frsize + MIB;
    // A file of 8 TiB is possible everywhere.
    if size < 1 << 43 {
        warns_once(
            &format!("new,size={size}"),
            ["size= is more than its file system has", "give a smaller one"],
        );
        assert!(!dir.path().join("new").exists());
    }
    if let Some(memory) = Images::in_memory() {
        let path = memory.image("image", 4096);
        warns_once(path.to_str().unwrap(), ["what is flushed may be lost", "tmpfs"]);
    }
    let text = refused_start(dir.path(), "disk.img");
    for doubt in ["LUKS", "cache=unsafe", "loop device", "size="] {
        assert!(!text.contains(doubt), "{text}");
    }
}

/// A hold that a layer does not pass on is one that is never released, or never kept.
#[test]
fn a_block_is_compared_and_written_again_and_again_through_every_layer() {
    let (disk, recording) = (Disk::new(MIB), tempfile::tempdir().unwrap());
    let log = recording.path().join("log");
    let layers = format!("iops=1000000,werror=stop,fault=read:1us,state=auto,record={}", log.display());
    let server = disk.serve_as("virtio-scsi", &layers, &[], None);
    let mut host = connect(&server);
    host.ready(unit(0, 0)).unwrap();
    let mut block = [0; 16];
    (block[0], block[9], block[13]) = (0x89, 5, 1);
    for turn in 0..5 {
        let data = [[turn; BLOCK], [turn + 1; BLOCK]].concat();
        host.perform(&Command::new(unit(0, 0), &block, ScsiPayload::Out(&data))).unwrap();
        let stale = host.perform(&Command::new(unit(0, 0), &block, ScsiPayload::Out(&data)));
        assert!(matches!(stale, Err(ClientError::Refused { .. })), "it compares");
    }
    assert_eq!(holds(&mut host, unit(0, 0), 5), 5);
    // Made beside the image at the start.
    assert!(disk.image().with_file_name("image.state").exists());
}
