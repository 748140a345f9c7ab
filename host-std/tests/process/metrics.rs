//! What an exporter says, beside what a guest did.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Server, blk_host, text, wait_for};

/// `blk-host metrics`, and where it listens.
struct Exporter {
    child: Child,
    address: String,
    _out: BufReader<ChildStdout>,
}

impl Exporter {
    fn start(listen: &str, controls: &[&str]) -> Self {
        let mut command = blk_host();
        command.args(["metrics", "--listen", listen]).stdout(Stdio::piped());
        command.args(controls.iter().flat_map(|control| ["--control", control]));
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut address = String::new();
        out.read_line(&mut address).unwrap();
        Self { child, address: address.trim().to_owned(), _out: out }
    }

    /// The head and the body of the answer.
    fn ask(&self, request: &str) -> (String, String) {
        let mut answer = String::new();
        match self.address.strip_prefix("unix:") {
            Some(path) => {
                let mut stream = UnixStream::connect(path).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                stream.read_to_string(&mut answer).unwrap();
            }
            None => {
                let address = self.address.trim_start_matches("http://").trim_end_matches("/metrics");
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(request.as_bytes()).unwrap();
                stream.read_to_string(&mut answer).unwrap();
            }
        }
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        (head.into(), body.into())
    }

    fn scrape(&self) -> String {
        let (head, body) = self.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert!(head.contains(kind), "{head}");
        body
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The value of the one sample whose line begins with `name{` and has all `labels`.
fn value(text: &str, name: &str, labels: &[&str]) -> f64 {
    let is_it = |line: &&str| {
        line.starts_with(&format!("{name}{{")) && labels.iter().all(|label| line.contains(label))
    };
    let found: Vec<_> = text.lines().filter(is_it).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].rsplit(' ').next().unwrap().parse().unwrap()
}

/// What the grammar demands of each line: a family is declared before its samples, once, and they follow each other.
fn check_grammar(text: &str) {
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let (mut family, mut kind) = ("", "");
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            (family, kind) = declared.split_once(' ').unwrap();
            assert!(seen.insert(family), "{family} is declared twice");
        } else if let Some(declared) = line.strip_prefix("# UNIT ") {
            let (named, unit) = declared.split_once(' ').unwrap();
            assert!(named == family && family.ends_with(unit), "{line}");
        } else if !line.starts_with("# HELP ") {
            let suffix = line.split('{').next().unwrap().strip_prefix(family);
            let suffixes: &[_] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_sum", "_count", "_bucket"],
                _ => &[""],
            };
            assert!(suffix.is_some_and(|suffix| suffixes.contains(&suffix)), "{line} in {family}");
        }
    }
    assert!(seen.len() > 20, "{text}");
}

#[test]
fn a_scrape_counts_what_the_guest_did() {
    let server = Server::logged(&["image"]);
    let mut client = server.client();
    for n in 0..5 {
        client.write(n * 8, &[7; 4096]).unwrap();
    }
    client.flush().unwrap();
    let control = server.path("control").display().to_string();
    let exporter = Exporter::start("127.0.0.1:0", &[&control]);
    // A busy machine may take longer than a scrape waits.
    let scraped = wait_for("a scrape", || Some(exporter.scrape()).filter(|text| text.contains("_uptime_")));
    check_grammar(&scraped);
    let control = format!("control=\"{control}\"");
    let of = [control.as_str(), "device=\"disk0\""];
    assert_eq!(value(&scraped, "blk_host_up", &of[..1]), 1.0);
    assert_eq!(value(&scraped, "blk_host_client_connected", &of), 1.0);
    for (name, more, expected) in [
        ("queue_requests_total", ["queue=\"0\"", "operation=\"write\""], 5.0),
        ("queue_requests_total", ["queue=\"0\"", "operation=\"flush\""], 1.0),
        ("queue_bytes_total", ["queue=\"0\"", "operation=\"write\""], 5.0 * 4096.0),
        ("image_operations_total", ["image=\"image\"", "operation=\"write\""], 5.0),
        ("image_bytes_total", ["image=\"image\"", "operation=\"write\""], 5.0 * 4096.0),
        ("image_operation_duration_seconds_count", ["image=\"image\"", "operation=\"write\""], 5.0),
        ("image_operation_duration_seconds_bucket", ["le=\"+Inf\"", "operation=\"write\""], 5.0),
    ] {
        let labels = [of.as_slice(), &more].concat();
        assert_eq!(value(&scraped, &format!("blk_host_{name}"), &labels), expected, "{name}");
    }
    client.write(0, &[7; 4096]).unwrap();
    let writes = |text: &str| value(text, "blk_host_image_operations_total", &["operation=\"write\""]);
    let later = wait_for("a scrape", || Some(exporter.scrape()).filter(|text| text.contains("_uptime_")));
    assert_eq!(writes(&later), 6.0);
    let once = server.ctl(&["metrics"]);
    assert_eq!(once.status.code(), Some(0), "{}", text(&once.stderr));
    check_grammar(&text(&once.stdout));
    assert_eq!(writes(&text(&once.stdout)), 6.0);
    assert!(exporter.ask("GET / HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 404 "));
    assert!(exporter.ask("POST /metrics HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 405 "));
    // Who says nothing keeps nobody out.
    let _silent =
        TcpStream::connect(exporter.address.trim_start_matches("http://").trim_end_matches("/metrics"));
    exporter.scrape();
}

#[test]
fn a_server_that_is_silent_is_down_and_the_others_are_not() {
    let server = Server::logged(&["image"]);
    let silent = server.path("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let controls = [server.path("control"), silent, server.path("missing")];
    let controls = controls.each_ref().map(|path| path.to_str().unwrap());
    let listen = format!("unix:{}", server.path("metrics").display());
    let mut exporter = Exporter::start(&listen, &controls);
    assert_eq!(exporter.address, listen);
    let up = |text: &str, n: usize| value(text, "blk_host_up", &[&format!("control=\"{}\"", controls[n])]);
    let scraped = wait_for("a scrape", || {
        let began = Instant::now();
        let text = exporter.scrape();
        let at_once = began.elapsed() < Duration::from_millis(1500);
        (up(&text, 0) == 1.0 && at_once).then_some(text)
    });
    assert_eq!((up(&scraped, 1), up(&scraped, 2)), (0.0, 0.0));
    kill_process(Pid::from_child(&exporter.child), Signal::HUP).unwrap();
    assert_eq!(wait_for("its end", || exporter.child.try_wait().unwrap()).code(), Some(0));
    assert!(!server.path("metrics").exists());
}

#[test]
fn nobody_outside_is_listened_to() {
    let output = blk_host().args(["metrics", "--control", "c", "--listen", "0.0.0.0:9185"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(
        said.contains("0.0.0.0:9185") && said.contains("--listen") && said.contains("unix:PATH"),
        "{said}"
    );
}
