//! The servers, and the images that they serve.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, fcntl_lock};
use tempfile::TempDir;

/// Bytes of an image.
pub(crate) const IMAGE_BYTES: u64 = 256 << 20;
/// TMPFS_MAGIC of Linux.
const TMPFS: libc::__fsword_t = 0x0102_1994;

/// Where images are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// Through the page cache, which is all that there is.
    Tmpfs(PathBuf),
    /// Past the page cache.
    Disk(PathBuf),
}

impl Place {
    pub(crate) fn tmpfs(dir: &Path) -> anyhow::Result<Self> {
        let found = rustix::fs::statfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
        if found.f_type != TMPFS {
            bail!("{} is not on tmpfs; name a directory that is, with --tmpfs", dir.display());
        }
        Ok(Self::Tmpfs(dir.to_owned()))
    }

    pub(crate) fn disk(dir: &Path) -> anyhow::Result<Self> {
        let found = rustix::fs::statfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
        if found.f_type == TMPFS {
            bail!(
                "{} is on tmpfs, which has no direct I/O; name a directory on a disk, with --disk",
                dir.display()
            );
        }
        Ok(Self::Disk(dir.to_owned()))
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Tmpfs(_) => "tmpfs",
            Self::Disk(_) => "disk, direct I/O",
        }
    }

    pub(crate) fn is_direct(&self) -> bool {
        matches!(self, Self::Disk(_))
    }

    fn dir(&self) -> &Path {
        let (Self::Tmpfs(dir) | Self::Disk(dir)) = self;
        dir
    }
}

/// The image, which servers have one after the other. Two files of the same contents are not equally fast: where their pages lie
/// in memory made a tenth of the difference between large transfers.
pub(crate) struct Images {
    dir: TempDir,
    direct: bool,
}

impl Images {
    /// Writes an image, so that no run allocates.
    pub(crate) fn make(place: &Place) -> anyhow::Result<Self> {
        let dir = TempDir::new_in(place.dir())?;
        let this = Self { dir, direct: place.is_direct() };
        let mut file = File::create(this.image())?;
        let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at * 7) as u8 | 1).collect();
        for _ in 0..IMAGE_BYTES >> 20 {
            file.write_all(&block).context("cannot write an image; is there room?")?;
        }
        file.sync_all()?;
        Ok(this)
    }

    /// Where a server is to listen; what an earlier one left there is gone.
    fn socket(&self, contender: Contender) -> anyhow::Result<PathBuf> {
        let socket = self.dir.path().join(format!("{contender:?}.sock"));
        for stale in [&socket, &socket.with_extension("control")] {
            match std::fs::remove_file(stale) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| stale.display().to_string());
                }
                _ => {}
            }
        }
        Ok(socket)
    }

    /// An io_uring of a server that has ended keeps its image, and the lock on it, for a moment longer.
    fn wait_until_free(&self) -> anyhow::Result<()> {
        let image = File::options().write(true).open(self.image())?;
        let begun = Instant::now();
        while let Err(errno) = fcntl_lock(&image, FlockOperation::NonBlockingLockExclusive) {
            if begun.elapsed() > Duration::from_secs(10) {
                return Err(errno).context("the image is still locked");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Confined, as it is by default.
    Ours,
    Unconfined,
    Qemu,
}

impl Contender {
    /// Ours, confined and not, and what else there is.
    pub(crate) fn installed() -> Vec<Self> {
        let mut all = vec![Self::Ours, Self::Unconfined];
        let runs = Command::new("qemu-storage-daemon").arg("--version").stdout(Stdio::null()).status();
        match runs {
            Ok(status) if status.success() => all.push(Self::Qemu),
            _ => {
                eprintln!(
                    "serve: qemu-storage-daemon is not installed: there is no other server to compare with"
                );
            }
        }
        all
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "blk-host",
            Self::Unconfined => "blk-host --sandbox=off",
            Self::Qemu => "qemu-storage-daemon",
        }
    }

    pub(crate) fn start(self, images: &Images) -> anyhow::Result<Running> {
        images.wait_until_free()?;
        match self {
            Self::Ours | Self::Unconfined => Running::ours(images, self, ""),
            Self::Qemu => {
                let socket = images.socket(self)?;
                let mut command = Command::new("qemu-storage-daemon");
                let direct = if images.direct { "on" } else { "off" };
                let image = images.image();
                let (image, path) = (image.display(), socket.display());
                command.arg("--blockdev").arg(format!(
                    "driver=file,node-name=f,filename={image},aio=io_uring,cache.direct={direct}"
                ));
                command.arg("--export").arg(format!(
                    "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={path},writable=on,num-queues=1"
                ));
                Running::start(command, socket, None)
            }
        }
    }
}

/// A server that runs. It ends with this.
pub(crate) struct Running {
    process: Child,
    socket: PathBuf,
    control: Option<PathBuf>,
}

impl Running {
    /// Our server, confined or not. `options` follow the image's: `,fault=...`.
    pub(crate) fn ours(images: &Images, contender: Contender, options: &str) -> anyhow::Result<Self> {
        let socket = images.socket(contender)?;
        let control = socket.with_extension("control");
        let cache = if images.direct { "none" } else { "writeback" };
        let image = images.image();
        let sandbox = if contender == Contender::Unconfined { "off" } else { "auto" };
        let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
        command.args(["serve", "--sandbox", sandbox, "--device", "virtio-blk", "--socket"]).arg(&socket);
        command.arg("--control").arg(&control);
        command.arg("--image").arg(format!("{},cache={cache}{options}", image.display()));
        // Not each session that comes and goes, nor that faults are injected.
        command.env("BLK_HOST_LOG", "error");
        Self::start(command, socket, Some(control))
    }

    fn start(mut command: Command, socket: PathBuf, control: Option<PathBuf>) -> anyhow::Result<Self> {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { process, socket, control })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where ours answers questions.
    pub(crate) fn control(&self) -> Option<&Path> {
        self.control.as_deref()
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Processor time of all threads so far, from the scheduler's own account (`/proc/PID/task/TID/schedstat`).
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            // A thread that ends meanwhile is not one of those that serve.
            let Ok(line) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
            total += line.split_whitespace().next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(total))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
