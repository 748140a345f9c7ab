//! The server's processes, one after the other, and the folder that they work in.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::calls::Plan;
use crate::history::History;
use crate::inside::{Inside, Seam};
use crate::tracer::{Exit, Seen, Traced, Watched};
use crate::{Cache, Front};

/// The size that the server makes the image, and the one that an operator grows it to.
pub(crate) const IMAGE_BYTES: u64 = 1 << 20;
pub(crate) const GROWN_BYTES: u64 = 2 << 20;

/// The control socket's file.
const CONTROL: &str = "control";

/// A folder with an image and the sockets of what serves it.
pub(crate) struct Place {
    folder: TempDir,
    front: Front,
    cache: Cache,
    mutant: Option<String>,
}

impl Place {
    /// A folder on the file system that the tests are built on: direct I/O wants a real one.
    pub(crate) fn new(front: Front, cache: Cache, mutant: Option<String>) -> Result<Self, String> {
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = std::fs::create_dir_all(parent).and_then(|()| TempDir::with_prefix_in("m", parent));
        let folder =
            folder.map_err(|error| format!("{}: cannot make a folder: {error}", parent.display()))?;
        Ok(Self { folder, front, cache, mutant })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.path("image")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
        let socket = if self.front == Front::Ahci { "--vfio-user" } else { "--socket" };
        command.args(["serve", "--device", self.front.name(), socket]).arg(self.socket());
        let options = format!("size={IMAGE_BYTES},workers=1,{}", self.cache.options());
        command.arg("--image").arg(format!("{},{options}", self.image().display()));
        command.arg("--control").arg(self.path(CONTROL));
        command.env_clear();
        if let Some(mutant) = &self.mutant {
            command.env("BLK_HOST_MUTANT", mutant);
        }
        command
    }

    /// Starts a server: the `generation`-th.
    pub(crate) fn start(
        &self,
        generation: u32,
        plan: Option<Plan>,
        history: &Arc<History>,
    ) -> Result<Server, String> {
        let log = self.path(&format!("log-{generation}"));
        let watched = Arc::new(Watched::default());
        if self.cache == Cache::Ring {
            let seam = Seam::new(plan, Arc::clone(history), Arc::clone(&watched));
            let (image, socket) = (self.image(), self.socket());
            let inside = Inside::start(self.front, [&image, &socket, &log], IMAGE_BYTES, seam)?;
            return Ok(Server { watched, process: Process::Inside(inside), log, socket });
        }
        let create = |path: &Path| File::create(path).map_err(|error| format!("{}: {error}", path.display()));
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(create(&self.path("out"))?).stderr(create(&log)?);
        let traced = Traced::start(command, plan, &self.image(), history, Arc::clone(&watched))?;
        Ok(Server { watched, process: Process::Traced(traced), log, socket: self.socket() })
    }
}

/// A server: a process, or threads of this one.
pub(crate) struct Server {
    watched: Arc<Watched>,
    process: Process,
    log: PathBuf,
    socket: PathBuf,
}

enum Process {
    Traced(Traced),
    Inside(Inside),
}

impl Server {
    /// Waits until it listens, or has ended.
    pub(crate) fn wait_listening(&self, limit: Duration) -> bool {
        self.watched.wait(limit, |seen| seen.listening.contains(&self.socket))
    }

    /// How it ended, if it does within the limit.
    pub(crate) fn wait_exit(&self, limit: Duration) -> Option<Exit> {
        self.watched.wait_exit(limit)
    }

    pub(crate) fn seen<R>(&self, look: impl FnOnce(&Seen) -> R) -> R {
        look(&self.watched.lock())
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        match &self.process {
            Process::Traced(traced) => traced.signal(Signal::SIGTERM),
            Process::Inside(inside) => inside.stop(),
        }
    }

    /// What it said to its operator.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Asks what an operator may ask.
    ///
    /// # Errors
    /// That there was no answer in time, or its refusal.
    pub(crate) fn ask(&self, request: &Value, limit: Duration) -> Result<Value, String> {
        match &self.process {
            Process::Traced(_) => ask(&self.socket.with_file_name(CONTROL), request, limit),
            Process::Inside(inside) => match request["bytes"].as_u64() {
                Some(bytes) => inside.resize(bytes).map(|()| Value::Null),
                None => Ok(Value::Null),
            },
        }
    }
}

/// Asks by the control socket.
fn ask(control: &Path, request: &Value, limit: Duration) -> Result<Value, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(control)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    let line = ask().map_err(|error| format!("control socket: {error}"))?;
    let answer: Value =
        serde_json::from_str(&line).map_err(|_| format!("control socket: no answer but {line:?}"))?;
    match answer.get("ok") {
        Some(value) => Ok(value.clone()),
        None => Err(format!("refused: {}", answer["error"])),
    }
}
