//! The server, its clients, and the operator beside them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use blk_core::units::GuestAddr;
use host_std::memory::MappedMemory;
use host_std::serve::control::{Client, Reply, Report, Request};
use host_std::testing::client::vfio_user::VfioUser;
use tempfile::TempDir;

use crate::report::Budget;
use crate::{Case, Device, Memory};

/// Bytes of an image: room for two of the largest requests.
pub(crate) const IMAGE_BYTES: u64 = 512 << 20;
/// The guest's memory. Requests share their data's place.
pub(crate) const MEMORY_BYTES: usize = 8 << 20;
/// What the server needs for itself: its program, tables, stacks, buffers of workers and messages.
const BASE_BYTES: u64 = 48 << 20;
/// The longest that anything is waited for: on a machine that is slow, too.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs. It ends with this.
pub(crate) struct Served {
    dir: TempDir,
    process: Child,
}

impl Served {
    pub(crate) fn start(case: &Case, dir: &Path) -> anyhow::Result<Self> {
        let dir = TempDir::new_in(dir)?;
        let image = dir.path().join("image");
        let mut file = File::create(&image)?;
        let block: Vec<u8> = (0..1 << 20).map(|at: u32| (at * 7) as u8 | 1).collect();
        for _ in 0..IMAGE_BYTES >> 20 {
            file.write_all(&block).context("cannot write an image; is there room?")?;
        }
        let device = match case.device {
            Device::Ahci => "ahci",
            Device::VirtioBlk => "virtio-blk-pci",
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
        command.args(["serve", "--device", device, "--vfio-user"]).arg(dir.path().join("socket"));
        command.arg("--control").arg(dir.path().join("control"));
        let record = if case.is_recorded() { dir.path().join("record") } else { PathBuf::new() };
        let options = format!("cache={}{}{}", case.cache, case.options, record.display());
        command.arg("--image").arg(format!("{},{options}", image.display()));
        command.env("BLK_HOST_LOG", "error").stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { dir, process })
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// A client, with its memory.
    pub(crate) fn connect(&self, memory: Memory) -> anyhow::Result<VfioUser> {
        let socket = self.dir.path().join("socket");
        let deadline = Instant::now() + PATIENCE;
        let mut client = loop {
            match VfioUser::connect(&socket, PATIENCE) {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => return Err(error).context("the server"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        match memory {
            Memory::Shared => client.share(&MappedMemory::shared(&[(GuestAddr(0), MEMORY_BYTES)])?)?,
            Memory::Kept => client.keep(0, MEMORY_BYTES)?,
        }
        Ok(client)
    }

    /// What the server has used of its memory, and may.
    pub(crate) fn memory(&self, case: &Case, request_bytes: u64) -> anyhow::Result<Budget> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak: u64 = line.and_then(|line| line.split_whitespace().next()).context("VmHWM")?.parse()?;
        let mut client = Client::connect(&self.control())?;
        let report: Report = serde_json::from_value(ask(&mut client, &Request::Stats { device: None })?)?;
        let image = report.devices.first().and_then(|device| device.images.first()).context("no image")?;
        let shared = if case.memory == Memory::Shared { MEMORY_BYTES as u64 } else { 0 };
        Ok(Budget {
            resident_peak: peak * 1024,
            base: BASE_BYTES + shared,
            is_private: case.memory == Memory::Kept || case.is_recorded(),
            is_recorded: case.is_recorded(),
            image: image.budgets,
            request_bytes,
        })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn ask(client: &mut Client, request: &Request) -> anyhow::Result<serde_json::Value> {
    match client.ask_patiently(request, |_| {})? {
        Reply::Ok(value) => Ok(value),
        refused => bail!("{request:?}: {refused:?}"),
    }
}

/// An operator who goes on asking, and writes down how long each answer takes.
pub(crate) struct Operator {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Vec<Duration>>>,
}

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(2);
/// Every so many questions the device is paused and resumed.
const BETWEEN_PAUSES: usize = 50;

impl Operator {
    pub(crate) fn start(control: PathBuf) -> anyhow::Result<Self> {
        let mut client = Client::connect(&control).context("the control socket")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut times = Vec::new();
            let mut timed = |request: &Request| {
                let asked = Instant::now();
                ask(&mut client, request)?;
                times.push(asked.elapsed());
                std::thread::sleep(PAUSE);
                anyhow::Ok(())
            };
            let mut questions = 0_usize;
            while !told.load(Ordering::Relaxed) {
                questions += 1;
                timed(&Request::Stats { device: None })?;
                if questions.is_multiple_of(BETWEEN_PAUSES) {
                    timed(&Request::Pause { device: None })?;
                    timed(&Request::Resume { device: None })?;
                }
            }
            Ok(times)
        });
        Ok(Self { stop, thread })
    }

    /// Has it ask no more. Returns whether it has had its last answer.
    pub(crate) fn stop(&self) -> bool {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.is_finished()
    }

    pub(crate) fn end(self) -> anyhow::Result<Vec<Duration>> {
        self.thread.join().expect("the operator does not panic")
    }
}
