//! Opening an image that may be in use for a moment longer.

use std::path::Path;
use std::time::{Duration, Instant};

use super::signals;
use crate::backend::{FileBackend, FileOptions, OpenError};

/// How long an image may still be locked by a server that was killed: until the last of its operations has ended.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How often it is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// A signal has ended the wait.
#[derive(Debug, thiserror::Error)]
#[error("stopped by a signal while it waited for the lock of an image")]
pub(super) struct Stopped;

/// Opens an image without its threads, and waits for its lock as long as no signal asks for the end.
pub(super) fn open(path: &Path, options: &FileOptions) -> anyhow::Result<FileBackend> {
    let began = Instant::now();
    let mut told = false;
    loop {
        match FileBackend::open_idle(path, &FileOptions { lock_wait: Duration::ZERO, ..options.clone() }) {
            Err(OpenError::InUse { .. }) if began.elapsed() < LOCK_WAIT => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        "the image is in use by another program; waiting for {LOCK_WAIT:?} at most"
                    );
                }
                if signals::comes_within(PAUSE) {
                    return Err(Stopped.into());
                }
            }
            Err(OpenError::InUse { path, detail, or, .. }) => {
                return Err(OpenError::InUse { path, detail, waited: LOCK_WAIT, or }.into());
            }
            result => return Ok(result?),
        }
    }
}
