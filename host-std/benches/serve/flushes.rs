//! Whether a flush is one: the fdatasync calls of a server while a client flushes, counted by the kernel and, where it counts
//! them itself, by the server.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use host_std::serve::control;
use host_std::testing::client::{Blk, Options, Payload, Request};

use crate::servers::Running;

/// Write and flush pairs of the run, which nobody times.
const PAIRS: u64 = 200;

/// What became of the flushes.
pub(crate) struct Flushes {
    pub(crate) asked: u64,
    /// fdatasync and fsync, called or through an io_uring; `Err`: why the kernel could not be asked.
    pub(crate) kernel: Result<u64, String>,
    /// What the server says: ours does.
    pub(crate) server: Option<u64>,
}

impl Flushes {
    /// Whether there was one for each flush, as far as that is known.
    pub(crate) fn are_real(&self) -> bool {
        let counts = [self.kernel.as_ref().ok().copied(), self.server];
        counts.into_iter().flatten().all(|count| count >= self.asked)
    }

    pub(crate) fn in_words(&self) -> String {
        let kernel = match &self.kernel {
            Ok(count) => format!("{count} seen by the kernel"),
            Err(why) => format!("not seen, {why}"),
        };
        let server = self.server.map_or(String::new(), |count| format!(", {count} by its own statistics"));
        format!("{} flushes, fdatasync: {kernel}{server}", self.asked)
    }
}

/// Writes and flushes, one after the other, so that no two flushes can share an fdatasync.
pub(crate) fn count(server: &Running) -> anyhow::Result<Flushes> {
    let mut disk = Blk::connect(server.socket(), Options::default())?;
    let before = own_count(server)?;
    let trace = Trace::start(server.id()).map_err(|error| format!("{error:#}"));
    for pair in 0..PAIRS {
        for request in [Request::Write { sector: pair * 8, data: Payload::Whatever(4096) }, Request::Flush] {
            disk.submit(0, request)?;
            ensure!(disk.wait(0)?.is_ok(), "a request failed");
        }
    }
    let kernel = trace.and_then(|trace| trace.events().map_err(|error| format!("{error:#}")));
    let server = own_count(server)?.zip(before).map(|(after, before)| after - before);
    Ok(Flushes { asked: PAIRS, kernel, server })
}

/// The server's own count of fdatasync calls, by its control socket.
fn own_count(server: &Running) -> anyhow::Result<Option<u64>> {
    let Some(socket) = server.control() else { return Ok(None) };
    let mut client = control::Client::connect(socket).context("the control socket")?;
    match client.ask(&control::Request::Stats { device: None })? {
        control::Reply::Ok(stats) => {
            let count = &stats["devices"][0]["images"][0]["host"]["fdatasync_calls"];
            Ok(Some(count.as_u64().context("the statistics have no fdatasync_calls")?))
        }
        refused => bail!("the control socket: {refused:?}"),
    }
}

/// An instance of kernel tracing of its own. Dropped, it is gone.
struct Trace {
    instance: PathBuf,
    /// Where tracefs is not mounted.
    _mount: Option<OwnedFd>,
}

impl Trace {
    /// Counts for a process and the threads that it starts.
    fn start(process: u32) -> anyhow::Result<Self> {
        let (tracefs, mount) = host_std::trace::tracefs()?;
        let instance = tracefs.join(format!("instances/blk-host-bench-{}", std::process::id()));
        fs::create_dir(&instance).context("tracing needs root")?;
        let trace = Self { instance, _mount: mount };
        // Without its context an event's line begins with its name; nothing else is in the trace.
        trace.write("options/context-info", "0")?;
        trace.write("options/event-fork", "1")?;
        let threads: Vec<String> = fs::read_dir(format!("/proc/{process}/task"))?
            .flatten()
            .map(|task| task.file_name().to_string_lossy().into_owned())
            .collect();
        trace.write("set_event_pid", &threads.join(" "))?;
        // IORING_OP_FSYNC is 3 (Linux, include/uapi/linux/io_uring.h).
        trace.write("events/io_uring/io_uring_submit_req/filter", "opcode == 3")?;
        for event in
            ["syscalls/sys_enter_fdatasync", "syscalls/sys_enter_fsync", "io_uring/io_uring_submit_req"]
        {
            trace.write(&format!("events/{event}/enable"), "1")?;
        }
        Ok(trace)
    }

    fn events(self) -> anyhow::Result<u64> {
        self.write("tracing_on", "0")?;
        let text = fs::read(self.instance.join("trace")).context("the trace")?;
        let text = String::from_utf8_lossy(&text);
        let is_event = |line: &&str| !line.trim().is_empty() && !line.starts_with('#');
        Ok(text.lines().filter(is_event).count() as u64)
    }

    fn write(&self, name: &str, value: &str) -> anyhow::Result<()> {
        fs::write(self.instance.join(name), value).with_context(|| format!("tracing: {name}"))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.write("events/enable", "0");
        let _ = fs::remove_dir(&self.instance);
    }
}
