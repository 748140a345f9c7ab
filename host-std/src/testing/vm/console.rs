//! A guest's console: lines in both directions, with deadlines.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Lines kept for the report of a failure.
const TAIL: usize = 40;

/// Why there is no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Not in time.
    Late,
    /// The guest has ended.
    Gone,
}

/// A guest's console, seen from outside.
#[derive(Debug)]
pub struct Console {
    stream: UnixStream,
    lines: Receiver<String>,
    tail: VecDeque<String>,
}

impl Console {
    /// The console at the other end of `stream`.
    ///
    /// # Errors
    /// The kernel's: no more descriptors, no more threads.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        let (sender, lines) = channel();
        let reader = BufReader::new(stream.try_clone()?);
        std::thread::Builder::new().name("console".into()).spawn(move || {
            // What a guest says before it is ours need not be UTF-8.
            for line in reader.split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { stream, lines, tail: VecDeque::new() })
    }

    /// Types a line.
    ///
    /// # Errors
    /// The kernel's: nobody is at the other end.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.keep(format!("> {line}"));
        writeln!(self.stream, "{line}")
    }

    /// The next line.
    ///
    /// # Errors
    /// [`Silence`] if there is none by `deadline`.
    pub fn line(&mut self, deadline: Instant) -> Result<String, Silence> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let line = self.lines.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => Silence::Late,
            RecvTimeoutError::Disconnected => Silence::Gone,
        })?;
        self.keep(line.clone());
        Ok(line)
    }

    fn keep(&mut self, line: String) {
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// What was said last, by both.
    #[must_use]
    pub fn tail(&self) -> String {
        self.tail.iter().map(|line| format!("  | {line}\n")).collect()
    }
}
