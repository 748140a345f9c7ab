//! The process around the disks: its log, its output, its signals, its operator, who starts and measures it. None of them costs a guest anything.

mod log;
mod metrics;
mod operator;
mod output;
mod signals;
mod systemd;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use host_std::testing::client::{Blk, Options};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 16 << 20;
/// How long anything may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

fn blk_host() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.stdin(Stdio::null()).env_remove("BLK_HOST_LOG").env_remove("NO_COLOR");
    // Tests that run under nohup ignore it, and what they start would.
    // SAFETY: `signal` is one system call, which may be made between fork and exec, and SIG_DFL is no handler.
    let listen = || match unsafe { libc::signal(libc::SIGHUP, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: `listen` makes one system call.
    unsafe { command.pre_exec(listen) };
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with an image.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    File::create(dir.path().join("image")).unwrap().set_len(IMAGE_BYTES).unwrap();
    dir
}

/// `blk-host serve`, on a socket called `s`.
fn serve(dir: &TempDir, arguments: &[&str]) -> Command {
    let mut command = blk_host();
    command.current_dir(dir.path()).args(["serve", "--socket", "s", "--control", "control"]).args(arguments);
    command
}

/// A server in its folder.
struct Server {
    dir: TempDir,
    child: Child,
}

impl Server {
    /// Starts what `serve` made, and waits until it can be asked.
    fn start(dir: TempDir, command: &mut Command) -> Self {
        let server = Self { dir, child: command.spawn().unwrap() };
        wait_for("the control socket", || UnixStream::connect(server.path("control")).ok());
        server
    }

    /// With what it logs in the file `log`.
    fn logged(arguments: &[&str]) -> Self {
        let dir = folder();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = serve(&dir, &[&["--quiet", "--image"], arguments].concat());
        Self::start(dir, command.stderr(log))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self) -> String {
        text(&fs::read(self.path("log")).unwrap())
    }

    fn client(&self) -> Blk {
        let options = Options { timeout: PATIENCE, ..Options::default() };
        let mut client = Blk::connect(self.path("s"), options).unwrap();
        client.set_writeback(true).unwrap();
        client
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        blk_host().args(["ctl", "--control"]).arg(self.path("control")).args(arguments).output().unwrap()
    }

    fn report(&self) -> serde_json::Value {
        let output = self.ctl(&["--json", "stats"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        wait_for("the end of the server", || self.child.try_wait().unwrap())
    }

    fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = f() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}
