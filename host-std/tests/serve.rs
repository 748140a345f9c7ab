//! `blk-host serve` and `blk-host ctl`, as a supervisor, an operator and a vhost-user client meet them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use host_std::testing::client::{Blk, ClientError, Options, Payload, Request, Ticket};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

const IMAGE_BYTES: u64 = 16 << 20;
/// How long anything may take on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long something is seen not to happen.
const QUIET: Duration = Duration::from_millis(300);

fn blk_host() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blk-host"));
    command.stdin(Stdio::null()).env_remove("BLK_HOST_LOG");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with an image and a server on it.
struct Server {
    dir: TempDir,
    child: Child,
}

impl Server {
    /// Serves `image` with these options, and more arguments.
    fn start(image_options: &str, arguments: &[&str]) -> Self {
        Self::start_with(image_options, arguments, |_, _| {})
    }

    fn start_with(
        image_options: &str,
        arguments: &[&str],
        prepare: impl FnOnce(&Path, &mut Command),
    ) -> Self {
        let dir = TempDir::new().unwrap();
        fs::File::create(dir.path().join("image")).unwrap().set_len(IMAGE_BYTES).unwrap();
        let mut command = blk_host();
        command.current_dir(dir.path()).args(["serve", "--quiet", "--control", "control"]);
        command.args(["--image", &format!("image{image_options}")]).args(arguments);
        prepare(dir.path(), &mut command);
        let child = command.spawn().unwrap();
        let server = Self { dir, child };
        wait_for("the control socket", || UnixStream::connect(server.path("control")).ok());
        server
    }

    /// The same on a socket called `s`.
    fn on_socket(image_options: &str) -> Self {
        Self::start(image_options, &["--socket", "s"])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client that flushes: writes are not stable when they complete.
    fn client(&self) -> Blk {
        let mut client =
            Blk::connect(self.path("s"), Options { timeout: PATIENCE, ..Options::default() }).unwrap();
        client.set_writeback(true).unwrap();
        client
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        blk_host().args(["ctl", "--control"]).arg(self.path("control")).args(arguments).output().unwrap()
    }

    fn ctl_json(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(&[&["--json"], arguments].concat());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn stats(&self) -> Value {
        self.ctl_json(&["stats"])["devices"][0].clone()
    }

    fn connect(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.path("control")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        BufReader::new(stream)
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

fn write(client: &mut Blk, sector: u64, fill: u8) -> Ticket {
    let request = Request::Write { sector, data: Payload::Bytes(&[fill; 4096]) };
    let ticket = client.submit(0, request).unwrap();
    client.session_mut().kick(0).unwrap();
    ticket
}

/// Nothing completes for a while.
fn stays_held(client: &mut Blk) {
    let start = Instant::now();
    while start.elapsed() < QUIET {
        assert!(client.poll(0).unwrap().is_none(), "a request that should be held has completed");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn an_image_in_use_is_refused() {
    let server = Server::on_socket("");
    let output = blk_host()
        .current_dir(server.dir.path())
        .args(["serve", "--socket", "other", "--image", "image"])
        .output()
        .unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("image: in use by another program"), "{error}");
}

#[test]
fn prints_the_lines_that_attach_a_guest() {
    let arguments = ["serve", "--socket", "/run/s", "--image", "image,queues=4", "--print-attach"];
    let output = blk_host().args(arguments).output().unwrap();
    let lines = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for part in [
        "share=on",
        "vhost-user-blk-pci,chardev=disk0,num-queues=4",
        "--disk vhost_user=true,socket=/run/s",
        "virtio_uml.device=/run/s:2",
    ] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
}

#[test]
fn makes_an_image_of_the_size_asked_for() {
    let server = Server::on_socket(",size=32M");
    assert_eq!(server.client().sectors(), (32 << 20) / 512);
    assert_eq!(fs::metadata(server.path("image")).unwrap().len(), 32 << 20);
}

#[test]
fn statistics_add_up_to_what_the_guest_did() {
    let server = Server::on_socket("");
    let mut client = server.client();
    let mut back = vec![0; 8192];
    for at in 0..10 {
        client.write(at * 16, &[at as u8; 4096]).unwrap();
    }
    for _ in 0..7 {
        client.read(0, &mut back).unwrap();
    }
    client.flush().unwrap();
    client.write_zeroes(0, 8, false).unwrap();
    client.discard(64, 8).unwrap();
    client.id().unwrap();
    let stats = server.stats();
    let queue = &stats["server"]["queues"][0];
    for (field, expected) in [
        ("reads", 7),
        ("read_bytes", 7 * 8192),
        ("writes", 10),
        ("written_bytes", 10 * 4096),
        ("flushes", 1),
        ("ranges", 2),
        ("others", 1),
        ("errors", 0),
        ("in_flight", 0),
    ] {
        assert_eq!(queue[field], expected, "{field}: {queue:#}");
    }
    let operations = &stats["images"][0]["operations"];
    for (kind, done, bytes) in
        [("read", 7, 7 * 8192), ("write", 10, 10 * 4096), ("flush", 1, 0), ("range", 2, 8192)]
    {
        let counted = &operations[kind];
        assert_eq!(
            (&counted["operations"], &counted["bytes"], &counted["errors"]),
            (&json!(done), &json!(bytes), &json!(0)),
            "{kind}: {operations:#}"
        );
        let buckets = counted["latency"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap());
        assert_eq!(buckets.sum::<u64>(), done, "{kind}");
    }
    assert_eq!(
        (&stats["state"], &stats["held"], &stats["server"]["connected"]),
        (&json!("running"), &json!(0), &json!(true))
    );
    assert_eq!(stats["images"][0]["bytes"], IMAGE_BYTES);
    assert!(matches!(client.read(IMAGE_BYTES / 512, &mut back), Err(ClientError::Failed { .. })));
    assert_eq!(server.stats()["server"]["queues"][0]["errors"], 1);
    let table = text(&server.ctl(&["stats"]).stdout);
    assert!(
        table.contains("disk0 (virtio-blk): client connected, 1 so far") && table.contains("40.00 KiB"),
        "{table}"
    );
}

#[test]
fn a_stop_completes_flushes_and_cleans_up() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::on_socket("");
        let mut client = server.client();
        client.write(0, &[7; 4096]).unwrap();
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0));
        assert!(!server.path("s").exists() && !server.path("control").exists());
        assert_eq!(fs::read(server.path("image")).unwrap()[..4096], [7; 4096]);
    }
}

#[test]
fn the_flush_of_a_stop_is_a_real_one_and_its_failure_is_told() {
    let mut server = Server::start("", &["--socket", "s", "--fault", "flush@2:eio;seed=1"]);
    let mut client = server.client();
    client.write(0, &[7; 4096]).unwrap();
    client.flush().unwrap();
    assert_eq!(server.stop().code(), Some(1));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Server::start("", &["--socket", "s", "--fault", "flush:600s;seed=1"]);
    let mut client = server.client();
    client.write(0, &[7; 4096]).unwrap();
    server.signal(Signal::TERM);
    // Within half a second it is the same stop.
    std::thread::sleep(3 * QUIET);
    assert!(server.child.try_wait().unwrap().is_none(), "it does not wait for the flush");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(130));
}

#[test]
fn a_write_without_space_is_held_until_an_operator_resumes() {
    let server = Server::start("", &["--socket", "s", "--fault", "write@2-3:enospc;seed=1"]);
    let mut events = server.connect();
    events.get_mut().write_all(b"{\"command\":\"events\"}\n").unwrap();
    let mut next = || {
        let mut line = String::new();
        events.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    assert_eq!(next(), json!({ "ok": {} }));
    let mut client = server.client();
    client.write(0, &[1; 4096]).unwrap();
    let held = write(&mut client, 8, 2);
    let failed = next();
    assert_eq!(
        (&failed["event"], &failed["operation"], &failed["lba"], &failed["held"]),
        (&json!("failed"), &json!("write"), &json!(8), &json!(true)),
        "{failed}"
    );
    let paused = next();
    assert_eq!(paused["event"], "paused");
    assert!(
        paused["reason"].as_str().unwrap().contains("image: write at sector 8: no space left"),
        "{paused}"
    );
    stays_held(&mut client);
    let stats = server.stats();
    assert_eq!(
        (&stats["state"], &stats["held"], &stats["server"]["paused"]),
        (&json!("paused"), &json!(1), &json!(true))
    );
    assert!(text(&server.ctl(&["stats"]).stdout).contains("PAUSED: image: write at sector 8"));
    // Still no space: paused again.
    assert_eq!(server.ctl_json(&["resume"]), json!({ "retried": 1 }));
    assert_eq!(next()["event"], "resumed");
    assert_eq!((next()["event"].clone(), next()["event"].clone()), (json!("failed"), json!("paused")));
    // What comes while it is paused waits, too.
    let waiting = write(&mut client, 16, 3);
    stays_held(&mut client);
    assert_eq!(server.ctl_json(&["resume"]), json!({ "retried": 1 }));
    assert!(client.wait_for(held).unwrap().is_ok() && client.wait_for(waiting).unwrap().is_ok());
    let mut back = [0; 4096];
    client.read(8, &mut back).unwrap();
    assert_eq!(back, [2; 4096]);
    let stats = server.stats();
    assert_eq!(
        (&stats["state"], &stats["images"][0]["operations"]["retries"]),
        (&json!("running"), &json!(2))
    );
    assert_eq!(stats["server"]["queues"][0]["errors"], 0);
}

#[test]
fn what_the_policy_does_not_hold_is_told_to_the_guest() {
    let server =
        Server::start(",werror=report", &["--socket", "s", "--fault", "write@1:enospc;read@1:eio;seed=1"]);
    let mut client = server.client();
    assert!(client.write(0, &[1; 4096]).is_err());
    assert!(client.read(0, &mut [0; 4096]).is_err());
    client.write(0, &[1; 4096]).unwrap();
    assert_eq!(server.stats()["server"]["queues"][0]["errors"], 2);
}

#[test]
fn a_failed_flush_is_never_held_and_latches() {
    let mut server =
        Server::start(",rerror=stop,werror=stop", &["--socket", "s", "--fault", "flush@1:enospc;seed=1"]);
    let mut client = server.client();
    client.write(0, &[1; 4096]).unwrap();
    assert!(client.flush().is_err() && client.flush().is_err());
    assert!(client.write(0, &[1; 4096]).is_err());
    client.read(0, &mut [0; 4096]).unwrap();
    let stats = server.stats();
    assert!(stats["images"][0]["latched"].is_string(), "{stats:#}");
    assert_eq!(stats["state"], "running");
    assert!(text(&server.ctl(&["stats"]).stdout).contains("FAILED"));
    assert_eq!(server.stop().code(), Some(1));
}

#[test]
fn a_stopped_ring_ends_what_is_held_with_its_error() {
    let server = Server::start(",werror=stop", &["--socket", "s", "--fault", "write@1:eio;seed=1"]);
    let mut client = server.client();
    let held = write(&mut client, 8, 2);
    stays_held(&mut client);
    client.session_mut().stop_ring(0).unwrap();
    assert!(!client.wait_for(held).unwrap().is_ok());
    assert_eq!(server.stats()["held"], 0);
}

#[test]
fn a_client_that_goes_takes_what_is_held_along() {
    let server = Server::start(",werror=stop", &["--socket", "s", "--fault", "write@1:eio;seed=1"]);
    let mut client = server.client();
    write(&mut client, 8, 2);
    stays_held(&mut client);
    drop(client);
    wait_for("the end of the held request", || (server.stats()["held"] == 0).then_some(()));
    assert_eq!(server.ctl_json(&["resume"]), json!({ "retried": 0 }));
    server.client().write(8, &[3; 4096]).unwrap();
}

/// What no operator decides on any more is an error to the guest, which is told of it before the socket closes.
#[test]
fn a_stop_while_a_request_is_held_ends_it_with_its_error_and_does_not_hang() {
    let mut server = Server::start(",werror=stop", &["--socket", "s", "--fault", "write@1:eio;seed=1"]);
    let mut client = server.client();
    let held = write(&mut client, 8, 2);
    stays_held(&mut client);
    let begin = Instant::now();
    assert_eq!(server.stop().code(), Some(0));
    assert!(begin.elapsed() < PATIENCE / 4, "{:?}", begin.elapsed());
    assert!(!client.wait_for(held).unwrap().is_ok());
    assert_eq!(fs::read(server.path("image")).unwrap()[8 * 512..][..4096], [0; 4096]);
}

#[test]
fn paused_and_drained_a_device_takes_nothing_until_it_is_resumed() {
    let server = Server::on_socket("");
    let mut client = server.client();
    client.write(0, &[1; 4096]).unwrap();
    for command in ["pause", "drain"] {
        let flushes = server.stats()["images"][0]["host"]["fdatasync_calls"].as_u64().unwrap();
        assert_eq!(server.ctl_json(&[command]), json!({}));
        let ticket = write(&mut client, 8, 2);
        stays_held(&mut client);
        let stats = server.stats();
        let drained = u64::from(command == "drain");
        assert_eq!(stats["images"][0]["host"]["fdatasync_calls"], flushes + drained);
        assert_eq!((&stats["state"], &stats["reason"]), (&json!("paused"), &json!("an operator's command")));
        assert_eq!(server.ctl_json(&["resume"]), json!({ "retried": 0 }));
        assert!(client.wait_for(ticket).unwrap().is_ok());
    }
}

#[test]
fn a_live_resize_reaches_the_guest() {
    let server = Server::on_socket("");
    let mut client = server.client();
    let known = client.session().config_changes();
    assert_eq!(server.ctl_json(&["resize", "+1M"]), json!({ "bytes": IMAGE_BYTES + (1 << 20) }));
    assert!(client.session().wait_for_config_change(known, PATIENCE) > known);
    client.read_config().unwrap();
    assert_eq!(client.sectors(), (IMAGE_BYTES + (1 << 20)) / 512);
    client.write(IMAGE_BYTES / 512, &[9; 4096]).unwrap();
    let output = server.ctl(&["resize", "1M"]);
    let error = text(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains("would cut data off"), "{error}");
    let output = server.ctl(&["resize", "--image", "3"]);
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("no image 3"));
}

#[test]
fn the_first_client_is_the_last_where_that_is_asked_for() {
    let mut server = Server::start("", &["--socket", "s", "--once"]);
    server.client().write(0, &[1; 4096]).unwrap();
    assert_eq!(server.wait().code(), Some(0));
    let mut server = Server::start("", &["--socket", "s", "--once"]);
    assert_eq!(server.stop().code(), Some(0), "nobody came");
}

/// Hands a descriptor to a child, under its number here.
fn hand_over(fd: &impl AsFd) -> String {
    rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
    fd.as_fd().as_raw_fd().to_string()
}

#[test]
fn takes_its_socket_from_a_supervisor() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(dir.path().join("s")).unwrap();
    let mut server = Server::start("", &["--fd", &hand_over(&listener)]);
    drop(listener);
    let mut client =
        Blk::connect(dir.path().join("s"), Options { timeout: PATIENCE, ..Options::default() }).unwrap();
    client.write(0, &[1; 4096]).unwrap();
    drop(client);
    assert_eq!(server.stop().code(), Some(0));
    assert!(dir.path().join("s").exists(), "a supervisor's socket is not ours to remove");
    // A client that is connected already; it is over when that goes.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut server = Server::start("", &["--fd", &hand_over(&theirs)]);
    drop(theirs);
    drop(ours);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn tells_a_service_manager_when_it_is_ready_and_when_it_stops() {
    let mut notices = None;
    let mut server = Server::start_with("", &["--socket", "s"], |dir, command| {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        command.env("NOTIFY_SOCKET", path);
        notices = Some(socket);
    });
    let notices = notices.unwrap();
    let next = || {
        let mut text = [0; 256];
        let len = notices.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..len]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    assert_eq!(server.stop().code(), Some(0));
    assert_eq!(next(), "STOPPING=1");
}

#[test]
fn the_control_socket_is_its_owners_and_survives_garbage() {
    let server = Server::on_socket("");
    let mode = fs::metadata(server.path("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let mut connection = server.connect();
    let mut ask = |line: &[u8]| {
        connection.get_mut().write_all(line).unwrap();
        let mut answer = String::new();
        connection.read_line(&mut answer).unwrap();
        serde_json::from_str::<Value>(&answer).unwrap()
    };
    for garbage in [
        &b"\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"{\"command\":\"format\"}\n",
        b"{\"command\":\"stats\",\"x\":1}\n",
        b"[1,2]\n",
    ] {
        assert!(ask(garbage)["error"].as_str().unwrap().contains("not a request"), "{}", text(garbage));
    }
    assert!(
        ask(b"{\"command\":\"stats\",\"device\":\"nobody\"}\n")["error"].as_str().unwrap().contains("disk0")
    );
    assert!(ask(b"{\"command\":\"mark\",\"text\":\"x\"}\n")["error"].as_str().unwrap().contains("--record"));
    assert!(
        ask(b"{\"command\":\"hotplug\",\"image\":\"more\"}\n")["error"]
            .as_str()
            .unwrap()
            .contains("virtio-scsi")
    );
    assert!(ask(b"{\"command\":\"stats\"}\n")["ok"]["devices"].is_array());
    // Without an end: an error, and the connection is over.
    let mut endless = server.connect();
    let _ = endless.get_mut().write_all(&vec![b'x'; 70_000]);
    let mut answer = String::new();
    endless.read_line(&mut answer).unwrap();
    assert!(answer.contains("bytes at most"), "{answer}");
    assert!(!matches!(endless.read(&mut [0]), Ok(1..)), "more came");
    // Of more than there may be the oldest go.
    let mut many: Vec<_> = (0..20).map(|_| server.connect()).collect();
    assert!(server.ctl(&["stats"]).status.success());
    assert!(!matches!(many[0].read(&mut [0]), Ok(1..)), "it has been told something");
}

#[test]
fn a_recording_takes_marks() {
    let mut server = Server::start("", &["--socket", "s", "--record", "log"]);
    server.client().write(0, &[1; 4096]).unwrap();
    let first = server.ctl_json(&["mark", "fsync 1"])["position"].as_u64().unwrap();
    let second = server.ctl_json(&["mark", "fsync 2"])["position"].as_u64().unwrap();
    assert!(second > first && first > 0, "{first} {second}");
    assert!(fs::read(server.path("log")).unwrap().windows(7).any(|bytes| bytes == b"fsync 2"));
    assert_eq!(server.stop().code(), Some(0));
    let summary = blk_host().args(["replay", "--json"]).arg(server.path("log")).output().unwrap();
    let summary: Value = serde_json::from_slice(&summary.stdout).unwrap();
    assert_eq!((&summary["sessions"], &summary["ended"]), (&json!(1), &json!(1)), "it stopped in order");
}

#[test]
fn a_file_serves_several_devices() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    let config = "control = \"control\"\nlog-format = \"json\"\n\
        [[device]]\nname = \"one\"\ntype = \"virtio-blk\"\nsocket = \"s1\"\nimage = [{ path = \"a\", size = \"16M\", serial = \"A\" }]\n\
        [[device]]\nname = \"two\"\ntype = \"virtio-blk\"\nsocket = \"s2\"\nqueues = 2\nimage = [{ path = \"b\", size = \"1M\", serial = \"B\" }]\n";
    fs::write(path.join("disks.toml"), config).unwrap();
    let mut command = blk_host();
    command
        .current_dir(path)
        .args(["serve", "--config", "disks.toml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut server = Server { dir, child: command.spawn().unwrap() };
    wait_for("the control socket", || UnixStream::connect(server.path("control")).ok());
    for (socket, sectors, serial) in [("s1", 32768, "A"), ("s2", 2048, "B")] {
        let mut client =
            Blk::connect(server.path(socket), Options { timeout: PATIENCE, ..Options::default() }).unwrap();
        assert_eq!((client.sectors(), client.id().unwrap().as_str()), (sectors, serial));
    }
    let refused = server.ctl(&["pause"]);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("one, two"));
    assert_eq!(server.ctl_json(&["--device", "two", "pause"]), json!({}));
    let report = server.ctl_json(&["stats"]);
    assert_eq!(
        (&report["devices"][0]["state"], &report["devices"][1]["state"]),
        (&json!("running"), &json!("paused"))
    );
    assert_eq!(server.stop().code(), Some(0));
    let (mut out, mut log) = (String::new(), String::new());
    server.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    server.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(out.contains("path=s1") && out.contains("path=s2"), "{out}");
    assert!(
        log.lines().count() > 2 && log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{log}"
    );
}
