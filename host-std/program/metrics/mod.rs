//! `blk-host metrics`: what servers count, for Prometheus, in OpenMetrics text.
//!
//! An exporter is a process of its own: no server has HTTP in it. It asks the control sockets anew for each scrape.

pub(crate) mod encode;
mod http;
mod listen;
mod scrape;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::cli::MetricsArgs;
use crate::output::{complain, outln};

use http::Answer;
use listen::{Connection, Listener};

/// Connections at a time; one more is closed.
const CONNECTIONS_MAX: usize = 8;
/// How long to wait after none could be taken, as without descriptors.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn run(args: &MetricsArgs) -> anyhow::Result<ExitCode> {
    let (stop, sender) = UnixStream::pair().context("cannot make a pair of sockets")?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let sender = sender.try_clone().context("cannot install the signal handlers")?;
        signal_hook::low_level::pipe::register(signal, sender)
            .context("cannot install the signal handlers")?;
    }
    let listener = Listener::bind(&args.listen)?;
    outln!("{}", listener.name()?)?;
    let controls: Arc<[_]> = args.controls.clone().into();
    let connections = Arc::new(AtomicUsize::new(0));
    while wait(&listener, &stop).context("cannot wait for connections")? {
        let connection = match listener.accept() {
            Ok(connection) => connection,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    complain(format_args!("cannot take a connection: {error}"));
                    thread::sleep(PAUSE);
                }
                continue;
            }
        };
        let place = Place::take(&connections);
        if place.number >= CONNECTIONS_MAX {
            continue;
        }
        let controls = Arc::clone(&controls);
        let answer = move || {
            let _place = place;
            // Who is gone misses nothing.
            let _ = serve(connection, &controls);
        };
        if let Err(error) = thread::Builder::new().name("scrape".into()).spawn(answer) {
            complain(format_args!("cannot start a thread: {error}; raise the limit on processes"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for a connection; false if it is to stop.
fn wait(listener: &Listener, stop: &UnixStream) -> io::Result<bool> {
    let mut polled =
        [PollFd::from_borrowed_fd(listener.fd(), PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
    match poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(polled[1].revents().is_empty()),
        Err(error) => Err(error.into()),
    }
}

fn serve(mut connection: Connection, controls: &[std::path::PathBuf]) -> io::Result<()> {
    let answer = match http::read_request(&mut connection)? {
        http::Request::Metrics => match encode::text(scrape::scrape(controls)) {
            Ok(text) => Answer::Metrics(text),
            Err(error) => Answer::Failed(error.to_string()),
        },
        http::Request::Wrong(answer) => answer,
    };
    connection.write_all(&answer.bytes())?;
    connection.flush()
}

/// One of the connections.
struct Place {
    all: Arc<AtomicUsize>,
    /// How many were there before it.
    number: usize,
}

impl Place {
    fn take(all: &Arc<AtomicUsize>) -> Self {
        Self { all: Arc::clone(all), number: all.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}
