//! Servers as processes of their own, for tests that end them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

pub mod garbage;
pub mod vfio_garbage;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use host_std::testing::client::Blk;
use host_std::testing::client::vfio_user::VfioUser;
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server process, killed when it is dropped.
pub struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    /// QEMU's storage daemon on an image, or `None` where it is not installed.
    pub fn qemu_storage_daemon(socket: &Path, image: &Path, queues: u16) -> Option<Self> {
        let node = format!(
            "driver=file,node-name=f,filename={},aio=io_uring,cache.direct=off,discard=unmap",
            image.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on,num-queues={queues}",
            socket.display()
        );
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--blockdev", &node, "--export", &export]);
        Self::start(&mut command, socket)
    }

    /// Starts a server that listens on `socket`, or returns `None` if there is no such program.
    pub fn start(command: &mut Command, socket: &Path) -> Option<Self> {
        let _ = std::fs::remove_file(socket);
        let process = match command.stdin(Stdio::null()).spawn() {
            Ok(process) => process,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => panic!("cannot start {command:?}: {error}"),
        };
        Some(Self { process, socket: socket.to_owned() })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A connection to the socket.
    pub fn connect(&self) -> UnixStream {
        self.connect_by(|socket| UnixStream::connect(socket))
    }

    /// A vfio-user client.
    pub fn connect_vfio_user(&self) -> VfioUser {
        self.connect_by(|socket| VfioUser::connect(socket, PATIENCE))
    }

    /// Tries until it can: a server that has just been started may not listen yet.
    fn connect_by<T, E: std::fmt::Display>(&self, connect: impl Fn(&Path) -> Result<T, E>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match connect(&self.socket) {
                Ok(connected) => return connected,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has now.
    pub fn holds(&self) -> Holdings {
        let count = |what| std::fs::read_dir(format!("/proc/{}/{what}", self.id())).unwrap().count();
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says");
        let memory_kib = line.trim().trim_end_matches(" kB").parse().expect("a number");
        Holdings { memory_kib, descriptors: count("fd"), threads: count("task") }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill().expect("the process is ours");
        self.process.wait().expect("the process is ours");
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let process = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("the process is ours");
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait().expect("the process is ours")
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.try_wait().expect("the process is ours").is_none()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a server holds of the host.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    pub memory_kib: u64,
    pub descriptors: usize,
    pub threads: usize,
}

/// An image, and the sockets of what serves it.
pub struct Disk {
    dir: TempDir,
    image: PathBuf,
}

impl Disk {
    pub fn new(bytes: u64) -> Self {
        Self::within(&std::env::temp_dir(), bytes)
    }

    /// A sparse image in `dir`.
    pub fn within(dir: &Path, bytes: u64) -> Self {
        let dir = TempDir::new_in(dir).unwrap();
        let image = dir.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        Self { dir, image }
    }

    pub fn image(&self) -> &Path {
        &self.image
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Starts `blk-host serve` on it, as virtio-blk: options of the image, and more arguments.
    pub fn serve(&self, image_options: &str, arguments: &[&str]) -> Server {
        self.serve_as("virtio-blk", image_options, arguments, None)
    }

    /// The same as another device, with a defect switched on by its name, if there is to be one.
    pub fn serve_as(
        &self,
        device: &str,
        image_options: &str,
        arguments: &[&str],
        mutant: Option<&str>,
    ) -> Server {
        let socket = self.dir.path().join("socket");
        let _ = std::fs::remove_file(self.control());
        let comma = if image_options.is_empty() { "" } else { "," };
        let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
        let pci = ["ahci", "ide", "virtio-blk-pci", "virtio-scsi-pci"].contains(&device);
        let protocol = if pci { "--vfio-user" } else { "--socket" };
        command.args(["serve", "--quiet", "--device", device, protocol]).arg(&socket);
        command.arg("--image").arg(format!("{}{comma}{image_options}", self.image.display()));
        command.arg("--control").arg(self.control()).args(arguments);
        command.env("BLK_HOST_LOG", "off");
        if let Some(mutant) = mutant {
            command.env("BLK_HOST_MUTANT", mutant);
        }
        Server::start(&mut command, &socket).expect("blk-host was built")
    }

    /// The same as a PCI device.
    pub fn serve_pci(&self, device: &str, image_options: &str) -> Server {
        let socket = self.dir.path().join("socket");
        let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
        command.args(["serve", "--quiet", "--device", device, "--vfio-user"]).arg(&socket);
        command.arg("--image").arg(format!("{},{image_options}", self.image.display()));
        command.arg("--control").arg(self.control()).env("BLK_HOST_LOG", "off");
        let server = Server::start(&mut command, &socket).expect("blk-host was built");
        while !socket.exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        server
    }

    /// Runs `blk-host ctl`, and returns what it prints.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
        command.args(["ctl", "--control"]).arg(self.control()).args(arguments);
        let output = command.output().expect("blk-host was built");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command:?}: {printed}{}", String::from_utf8_lossy(&output.stderr));
        printed
    }

    /// The statistics of the device.
    pub fn stats(&self) -> serde_json::Value {
        let printed: serde_json::Value = serde_json::from_str(&self.ctl(&["--json", "stats"])).expect("JSON");
        printed["devices"][0].clone()
    }
}

/// What a guest wrote, block by block, and what it may find.
pub struct Shadow {
    block_bytes: usize,
    /// The writes of each block so far: the one acknowledged last, and the one submitted last.
    blocks: Vec<(u32, u32)>,
}

impl Shadow {
    pub fn new(bytes: usize, block_bytes: usize) -> Self {
        Self { block_bytes, blocks: vec![(0, 0); bytes / block_bytes] }
    }

    /// Contents for the next write of a block: no other write's.
    pub fn next(&mut self, block: usize) -> Vec<u8> {
        self.blocks[block].1 += 1;
        self.contents(block, self.blocks[block].1)
    }

    /// The write that was submitted last has been acknowledged.
    pub fn acknowledge(&mut self, block: usize) {
        self.blocks[block].0 = self.blocks[block].1;
    }

    fn contents(&self, block: usize, version: u32) -> Vec<u8> {
        if version == 0 {
            return vec![0; self.block_bytes];
        }
        let seed = (block as u64) << 32 | u64::from(version);
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..)).take(self.block_bytes).collect()
    }

    /// Reads every block that was written: it is what was acknowledged last, or what was submitted since.
    pub fn verify(&self, guest: &mut Blk) {
        self.verify_by(|sector, back| guest.read(sector, back).unwrap());
    }

    /// The same, by a reader that is told the sector.
    pub fn verify_by(&self, mut read: impl FnMut(u64, &mut [u8])) {
        for (block, &(acknowledged, submitted)) in self.blocks.iter().enumerate() {
            if submitted == 0 {
                continue;
            }
            let mut back = vec![0; self.block_bytes];
            read((block * self.block_bytes / 512) as u64, &mut back);
            let version = (acknowledged..=submitted).find(|&version| self.contents(block, version) == back);
            assert!(version.is_some(), "block {block} is none of the writes {acknowledged} to {submitted}");
        }
    }
}

/// A small file system. Unmounted when it is dropped.
pub struct SmallFs {
    dir: TempDir,
    /// Where it lies, if it is one of a disk.
    _medium: Option<TempDir>,
}

impl SmallFs {
    /// A tmpfs. `None` where one may not mount.
    pub fn mount(bytes: u64) -> Option<Self> {
        let size = format!("size={bytes}");
        Self::mounted(None, &["-t", "tmpfs", "-o", &size, "tmpfs"])
    }

    /// An ext4 on a loop device. `None` where one may not mount, or cannot make one.
    pub fn ext4(bytes: u64) -> Option<Self> {
        let medium = TempDir::new().unwrap();
        let disk = medium.path().join("disk");
        std::fs::File::create(&disk).unwrap().set_len(bytes).unwrap();
        let made = Command::new("mkfs.ext4").args(["-qF", "-O", "^has_journal"]).arg(&disk).status();
        let disk = made.is_ok_and(|status| status.success()).then(|| disk.display().to_string())?;
        Self::mounted(Some(medium), &["-t", "ext4", "-o", "loop", &disk])
    }

    fn mounted(_medium: Option<TempDir>, arguments: &[&str]) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mounted = Command::new("mount").args(arguments).arg(dir.path()).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self { dir, _medium })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.dir.path()).status();
    }
}
