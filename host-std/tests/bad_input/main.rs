//! What an operator mistypes, and what he is told: the thing as he typed it, what is wrong with it, and what to do, on three lines at
//! most. A start that is refused leaves nothing behind.

mod rows;
mod serve_rows;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rows::{CONTROL, DEVICE, FILES, OTHERS, RECORDED, Row};
use serve_rows::SERVE;
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 1 << 20;
/// What no operator wrote: names and forms of the program's own code.
const OF_THE_CODE: [&str; 15] = [
    "Some(",
    "None)",
    "Err(",
    "Os {",
    "\\\"",
    "panicked",
    "u16",
    "u32",
    "u64",
    "struct ",
    "read_only",
    "_bytes",
    "digit found",
    "queue_size",
    ", expected",
];

fn blk_host(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.current_dir(folder).stdin(Stdio::null()).env_remove("BLK_HOST_LOG").env_remove("LISTEN_FDS");
    command
}

/// What an operator has around: images, links to them, other files, sockets.
struct Folder {
    dir: TempDir,
    /// Its socket is `taken`.
    _taken: UnixListener,
}

impl Folder {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, bytes) in [
            ("disk.img", IMAGE_BYTES),
            ("other.img", IMAGE_BYTES),
            ("odd.img", 1000),
            ("block.img", 2560),
            ("empty.img", 0),
        ] {
            fs::File::create(at(name)).unwrap().set_len(bytes).unwrap();
        }
        fs::write(at("notes.txt"), "precious").unwrap();
        fs::write(at("foreign.img"), [&b"QFI\xfb"[..], &[0; 508]].concat()).unwrap();
        fs::create_dir(at("dir")).unwrap();
        fs::hard_link(at("disk.img"), at("hard.img")).unwrap();
        std::os::unix::fs::symlink("disk.img", at("link.img")).unwrap();
        std::os::unix::fs::symlink("gone", at("dangling.img")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        // A listener that is dropped leaves its file.
        drop(UnixListener::bind(at("stale")).unwrap());
        let taken = UnixListener::bind(at("taken")).unwrap();
        let closing = taken.try_clone().unwrap();
        // It is no control socket: it hears a line, and hangs up.
        thread::spawn(move || {
            for stream in closing.incoming().flatten() {
                let _ = BufReader::new(stream).read_line(&mut String::new());
            }
        });
        Self { dir, _taken: taken }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn names(&self) -> BTreeSet<std::ffi::OsString> {
        fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    /// Runs the program, and says what is wrong with what it says.
    fn check(&self, Row(status, line, words): Row) -> Vec<String> {
        let words_of_line = line.split(' ').filter(|word| !word.is_empty());
        let arguments = words_of_line.map(|word| if word == "''" { "" } else { word });
        self.run(blk_host(self.path()).args(arguments), status, line, words)
    }

    fn run(&self, command: &mut Command, status: i32, what: &str, words: &[&str]) -> Vec<String> {
        let before = self.names();
        let output = command.output().expect("the program runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let mut wrong = Vec::new();
        let mut check = |right: bool, why: String| {
            if !right {
                wrong.push(format!("{what}\n  {why}\n  {said}"));
            }
        };
        check(output.status.code() == Some(status), format!("{}", output.status));
        check(output.stdout.is_empty(), "prints results".into());
        check(said.lines().count() <= 3, "more than three lines".into());
        check(said.lines().any(|line| line.starts_with("blk-host: ")), "does not say who speaks".into());
        for word in words {
            check(said.contains(word), format!("says nothing of {word:?}"));
        }
        for word in OF_THE_CODE {
            check(!said.contains(word), format!("says {word:?}"));
        }
        check(self.names() == before, "leaves or takes a file".into());
        wrong
    }
}

fn assert_none(wrong: impl Iterator<Item = Vec<String>>) {
    let wrong: Vec<_> = wrong.flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn bad_arguments_are_named_with_a_remedy() {
    let folder = Folder::new();
    assert_none(SERVE.iter().chain(OTHERS).map(|row| folder.check(*row)));
    assert_eq!(fs::read(folder.path().join("notes.txt")).unwrap(), b"precious");
    assert_eq!(fs::read(folder.path().join("disk.img")).unwrap(), vec![0; IMAGE_BYTES as usize]);
}

#[test]
fn bad_configuration_files_are_named_with_line_and_column() {
    let folder = Folder::new();
    assert_none(FILES.iter().map(|(text, words)| {
        let text = text.replace("DEVICE", DEVICE);
        fs::write(folder.path().join("c.toml"), &text).unwrap();
        folder.run(blk_host(folder.path()).args(["serve", "--config", "c.toml"]), 2, &text, words)
    }));
}

struct Server(Child);

impl Server {
    fn start(folder: &Folder, arguments: &[&str]) -> Self {
        let mut command = blk_host(folder.path());
        command.args(["serve", "--quiet", "--control", "ctl"]).args(arguments).stderr(Stdio::piped());
        let server = Self(command.spawn().unwrap());
        let began = Instant::now();
        while UnixStream::connect(folder.path().join("ctl")).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "no server");
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Stops it in order; returns what it said.
    fn stop(mut self) -> String {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn bad_commands_to_a_server_are_refused_with_a_remedy() {
    let folder = Folder::new();
    let server =
        Server::start(&folder, &["--socket", "served", "--device", "virtio-scsi", "--image", "disk.img"]);
    assert_none(CONTROL.iter().map(|row| folder.check(*row)));
    drop(server);
}

/// It is no error, since a server is started with the same options after its image has grown.
#[test]
fn a_size_that_is_less_than_the_image_has_is_told() {
    let folder = Folder::new();
    let server = Server::start(&folder, &["--socket", "served", "--image", "disk.img,size=512K"]);
    let said = server.stop();
    assert!(
        said.contains("size=512K is less than the image has, 1M") && said.contains("give size=1M"),
        "{said}"
    );
    assert_eq!(fs::metadata(folder.path().join("disk.img")).unwrap().len(), IMAGE_BYTES);
}

#[test]
fn what_a_recording_does_not_have_is_named_with_a_remedy() {
    let folder = Folder::new();
    Server::start(&folder, &["--socket", "served", "--image", "disk.img", "--record", "rec"]).stop();
    assert_none(RECORDED.iter().map(|row| folder.check(*row)));
}
