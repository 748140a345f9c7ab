//! The log: lines on standard error that cost no thread its work.
//!
//! ```text
//! tracing -> filter (BLK_HOST_LOG) -> rate limit per cause -> line -> queue -> thread "log" -> standard error
//! ```
//!
//! - Nothing here panics, and a thread that logs waits for nothing but a short lock: a standard error that is full, closed,
//!   or read by nobody costs lines.
//! - Lines that were lost are counted ([`lines_lost`]), and a line says so once standard error takes lines again.
//! - A cause that repeats itself is cut short: `rate` has the numbers.
//! - Before [`start_thread`] lines are written by the thread that logs, if standard error takes them at once.
//!
//! Nothing else knows the crate `tracing-subscriber`.

mod descriptor;
mod queue;
mod rate;

use std::io::{IsTerminal as _, Write};
use std::sync::LazyLock;
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

use self::queue::QUEUE;
use self::rate::RateLimit;
use super::config::LogFormat;

pub use self::descriptor::{Broken, write_within};

/// The variable whose filter goes before the default level.
const FILTER: &str = "BLK_HOST_LOG";
/// How long the end of the process may be delayed by lines that wait.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(800);

static RATE_LIMIT: LazyLock<RateLimit> = LazyLock::new(RateLimit::default);

/// Sends what is logged to standard error: what passes the filter in `BLK_HOST_LOG`, or else `level` and above. The first call
/// counts.
pub fn init(level: &str, format: LogFormat) {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| level.into());
    let escapes =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    // What the log cannot do it must not say by a macro that panics.
    let lines = fmt::layer().log_internal_errors(false).with_ansi(escapes).with_writer(|| Line);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Text => Box::new(lines),
        LogFormat::Json => Box::new(lines.json()),
    };
    let subscriber = Registry::default().with(filter).with(&*RATE_LIMIT).with(lines);
    // A second one changes nothing.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Has a thread write the lines from now on. It inherits the confinement of the caller. Without it, as when there are too many
/// threads, lines are written as before.
pub fn start_thread() {
    let run = || QUEUE.write_for_ever(|| RATE_LIMIT.tell());
    if let Err(error) = std::thread::Builder::new().name("log".into()).spawn(run) {
        tracing::warn!("cannot start the log's thread: {error}; raise the limit on processes");
    }
}

/// Waits until the lines so far are written, for less than a second: for the end of the process.
pub fn flush() {
    RATE_LIMIT.tell();
    QUEUE.flush(FLUSH_TIMEOUT);
}

/// Lines that standard error did not take.
#[must_use]
pub fn lines_lost() -> u64 {
    QUEUE.lost()
}

/// Takes one line, which the formatter writes at once.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        QUEUE.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
