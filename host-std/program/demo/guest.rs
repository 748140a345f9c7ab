//! The guest's first process: this program, which its kernel starts from the files of the machine that it runs on.
//!
//! It says what it does on console 1, and then waits for its end, which is a power cut. Should the console go instead, because
//! `blk-host demo` has gone, it powers off.

use std::fs::{self, File as StdFile, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot, uname};

use super::files::{FILES, File, Found, Said};
use crate::cli::{DemoGuestArgs, DemoTask};

const CONSOLE: &str = "/dev/tty1";
const DISK: &str = "/dev/vda";
/// On the one file system that a guest can write to: that of its devices.
const MOUNT_POINT: &str = "/dev/disk";

/// How long the disk may take to appear.
const DISK_TIMEOUT: Duration = Duration::from_secs(20);

/// Does what `args` says, and returns only if this is no guest.
pub(crate) fn run(args: &DemoGuestArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        std::process::id() == 1 && is_user_mode_linux(),
        "demo-guest: what `blk-host demo` runs in its guests, and nobody elsewhere; give `blk-host demo`"
    );
    let mut console = OpenOptions::new().read(true).write(true).open(CONSOLE).context(CONSOLE)?;
    let done = work(args, &mut console);
    let last = done.map_or_else(|error| Said::Failed(format!("{error:#}")), |()| Said::Done);
    // Whoever listens has gone, or cuts the power now.
    let _ = say(&mut console, &last).and_then(|()| console.read_to_end(&mut Vec::new()));
    reboot(RebootCommand::PowerOff).context("cannot power off")?;
    Ok(ExitCode::SUCCESS)
}

fn is_user_mode_linux() -> bool {
    // It is mounted already where this is no guest.
    let _ = mount("proc", "/proc", "proc", MountFlags::empty(), None);
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("User Mode Linux"))
}

fn say(console: &mut StdFile, said: &Said) -> io::Result<()> {
    console.write_all(format!("{said}\n").as_bytes())
}

fn work(args: &DemoGuestArgs, console: &mut StdFile) -> anyhow::Result<()> {
    if let Some(folder) = &args.modules {
        load_driver(folder)?;
    }
    let deadline = Instant::now() + DISK_TIMEOUT;
    while !Path::new(DISK).exists() {
        ensure!(
            Instant::now() < deadline,
            "the kernel finds no disk {DISK}; has it virtio_uml and virtio_blk?"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::create_dir(MOUNT_POINT).context(MOUNT_POINT)?;
    match (args.task, mount(DISK, MOUNT_POINT, "ext4", MountFlags::empty(), None)) {
        (DemoTask::Write, mounted) => {
            mounted.context("cannot mount the new file system")?;
            write_files(console)
        }
        (DemoTask::Check, Ok(())) => check_files(console),
        (DemoTask::Check, Err(errno)) => {
            Ok(say(console, &Said::Unmountable(io::Error::from(errno).to_string()))?)
        }
    }
}

/// Where the kernel has no module of that name, the driver is part of it.
fn load_driver(folder: &Path) -> anyhow::Result<()> {
    let release = uname().release().to_string_lossy().into_owned();
    let path = folder.join(release).join("kernel/drivers/block/virtio_blk.ko");
    let Ok(module) = StdFile::open(&path) else { return Ok(()) };
    finit_module(&module, c"", 0).with_context(|| format!("cannot load {}", path.display()))
}

fn write_files(console: &mut StdFile) -> anyhow::Result<()> {
    let folder = StdFile::open(MOUNT_POINT)?;
    for file in FILES {
        let mut written = StdFile::create_new(Path::new(MOUNT_POINT).join(file.name))?;
        written.write_all(&file.contents()).with_context(|| format!("cannot write {}", file.name))?;
        if file.synced {
            // Its name is in the folder.
            let synced = written.sync_all().and_then(|()| folder.sync_all());
            synced.with_context(|| format!("cannot sync {}", file.name))?;
        }
        say(console, &if file.synced { Said::Synced(file) } else { Said::Written(file) })?;
    }
    Ok(())
}

fn check_files(console: &mut StdFile) -> anyhow::Result<()> {
    FILES.into_iter().try_for_each(|file| Ok(say(console, &Said::Found(file, find(file)))?))
}

fn find(file: File) -> Found {
    match fs::read(Path::new(MOUNT_POINT).join(file.name)) {
        Ok(bytes) if bytes == file.contents() => Found::Whole,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Missing,
        Ok(_) | Err(_) => Found::Damaged,
    }
}
