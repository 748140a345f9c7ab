//! Standard output, which may be closed or full.
//!
//! - **Closed**, as by `head`: the program ends at once and quietly, with status 0, as ripgrep does. Whoever closed it has what he
//!   wanted.
//! - **Full, or broken:** an error like others, with status 2: what was printed is not all.
//!
//! Nothing in this program prints by a macro that panics.

use std::fmt;
use std::io::{self, Write};

/// Prints a line. `?` hands a failure on to `main`, which knows it by [`failure`].
macro_rules! outln {
    ($($text:tt)*) => { $crate::output::line(format_args!($($text)*)) };
}
pub(crate) use outln;

/// A write to standard output failed.
#[derive(Debug, thiserror::Error)]
#[error("standard output: cannot write: {0}; what was printed is not all")]
pub(crate) struct Failure(io::Error);

/// Prints a line.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    text_of(format_args!("{text}\n"))
}

/// Prints text that has its line ends.
pub(crate) fn text_of(text: fmt::Arguments<'_>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).map_err(Failure)
}

/// What `main` makes of an error: `Some(true)` if standard output was closed by its reader, `Some(false)` if it failed otherwise,
/// `None` for any other error.
pub(crate) fn failure(error: &anyhow::Error) -> Option<bool> {
    let Failure(error) = error.chain().find_map(|cause| cause.downcast_ref())?;
    Some(error.kind() == io::ErrorKind::BrokenPipe)
}

/// An error and its causes, those left out that it names itself.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

/// Says something on standard error, if it can be said there.
pub(crate) fn complain(text: fmt::Arguments<'_>) {
    let line = format!("blk-host: {text}\n");
    // There is nobody else to tell.
    let _ = host_std::serve::log::write_within(io::stderr(), line.as_bytes(), Some(PATIENCE));
}

/// How long a complaint may wait for a reader.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(500);
