//! `blk-host serve` as a process, and its control socket.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guest::Front;

/// What to serve.
#[derive(Clone)]
pub(crate) struct Serve {
    pub(crate) front: Front,
    pub(crate) cache: &'static str,
    pub(crate) bytes: u64,
    /// A file or device that is there; otherwise a file of so many bytes is made.
    pub(crate) image: Option<PathBuf>,
    pub(crate) queues: u32,
    /// More options of the image, as `--image` takes them.
    pub(crate) options: String,
    /// More arguments of `blk-host serve`.
    pub(crate) arguments: &'static [&'static str],
    pub(crate) record: bool,
    /// A defect to switch on, by name.
    pub(crate) mutant: Option<&'static str>,
}

impl Serve {
    pub(crate) fn new(front: Front, cache: &'static str, bytes: u64) -> Self {
        Self {
            front,
            cache,
            bytes,
            image: None,
            queues: 1,
            options: String::new(),
            arguments: &[],
            record: false,
            mutant: None,
        }
    }
}

/// A server, its image, its sockets. It ends with its owner.
pub(crate) struct Server {
    serve: Serve,
    child: Child,
    /// Short: a socket's name has 107 bytes.
    sockets: TempDir,
    /// On a file system that knows O_DIRECT.
    files: TempDir,
}

impl Server {
    pub(crate) fn start(serve: Serve) -> Self {
        let files = tempfile::Builder::new().prefix("disk").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        let files = files.expect("a folder");
        if serve.image.is_none() {
            let image = File::create(files.path().join("image")).expect("an image");
            image.set_len(serve.bytes).expect("a size");
        }
        let sockets = tempfile::Builder::new().prefix("blk").tempdir().expect("a folder");
        let child = spawn(&serve, sockets.path(), files.path());
        let mut server = Self { serve, child, sockets, files };
        server.wait();
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.path().join("disk")
    }

    pub(crate) fn image(&self) -> PathBuf {
        image(&self.serve, self.files.path())
    }

    pub(crate) fn recording(&self) -> PathBuf {
        self.files.path().join("recording")
    }

    /// Waits until it takes connections.
    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(self.sockets.path().join("control")).is_err() {
            let status = self.child.try_wait().expect("a child");
            assert!(status.is_none(), "the server ended: {status:?}\n{}", self.log());
            assert!(Instant::now() < deadline, "the server takes no connections\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as nothing can prevent, and starts another one on the same image and sockets.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().expect("the server can be killed");
        self.child.wait().expect("a child");
        self.child = spawn(&self.serve, self.sockets.path(), self.files.path());
        self.wait();
    }

    /// Asks it to stop, and waits for that.
    pub(crate) fn stop(mut self) -> (ExitStatus, TempDir) {
        let process = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a process");
        rustix::process::kill_process(process, rustix::process::Signal::TERM)
            .expect("the server can be stopped");
        let status = self.child.wait().expect("a child");
        let empty = tempfile::Builder::new().prefix("gone").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        (status, std::mem::replace(&mut self.files, empty.expect("a folder")))
    }

    /// A command on the control socket, and its answer.
    pub(crate) fn control(&self, request: &Value) -> Value {
        let mut stream =
            UnixStream::connect(self.sockets.path().join("control")).expect("the control socket");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        writeln!(stream, "{request}").expect("the request is taken");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        answer.get("ok").unwrap_or_else(|| panic!("{request}: {answer}\n{}", self.log())).clone()
    }

    /// What `blk-host ctl` prints.
    pub(crate) fn ctl(&self, args: &[&str]) -> String {
        let control = self.sockets.path().join("control");
        let output = Command::new(env!("CARGO_BIN_EXE_blk-host"))
            .args(["ctl", "--control"])
            .arg(control)
            .args(args)
            .output();
        let output = output.expect("blk-host runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "blk-host ctl {args:?}: {errors}\n{}", self.log());
        String::from_utf8(output.stdout).expect("text")
    }

    pub(crate) fn mark(&self, text: &str) -> u64 {
        let answer = self.control(&json!({"command": "mark", "text": text}));
        answer["position"].as_u64().expect("a position")
    }

    /// The statistics of the only device.
    pub(crate) fn stats(&self) -> Value {
        self.control(&json!({"command": "stats"}))["devices"][0].clone()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.files.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        }
    }
}

fn image(serve: &Serve, files: &Path) -> PathBuf {
    serve.image.clone().unwrap_or_else(|| files.join("image"))
}

fn spawn(serve: &Serve, sockets: &Path, files: &Path) -> Child {
    let (path, Serve { cache, queues, options, .. }) = (image(serve, files), serve);
    let mut image = format!("{},cache={cache}{options}", path.display());
    if !serve.front.is_ata() {
        image += &format!(",queues={queues}");
    }
    if serve.record {
        image += &format!(",record={}", files.join("recording").display());
    }
    let log = File::options().create(true).append(true).open(files.join("log")).expect("a log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.arg("serve").args(serve.arguments).args(serve.front.options()).arg(sockets.join("disk"));
    command.arg("--control").arg(sockets.join("control"));
    command
        .arg("--image")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log);
    if let Some(mutant) = serve.mutant {
        command.env("BLK_HOST_MUTANT", mutant);
    }
    command.spawn().expect("blk-host starts")
}
