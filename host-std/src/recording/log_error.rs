//! Why a recording cannot be read, or not be used as it was asked for.

use std::path::PathBuf;

use super::format::VERSION;

/// A recording could not be read. The text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The kernel refused.
    #[error("{path}: cannot {what}: {error}; {remedy}")]
    System {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's error.
        error: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Another kind of file.
    #[error("{path}: not a recording; give a file that `blk-host serve --record` has written")]
    NotARecording {
        /// The file.
        path: PathBuf,
    },
    /// Another version.
    #[error(
        "{path}: a recording of version {version}, and this program reads version {VERSION}; use the one that wrote it"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u16,
    },
    /// What is in the file was not written like this.
    #[error(
        "{path}: damaged at byte {offset}: {what}; copy it again, or keep what is whole: truncate -s {offset} {path}"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins that is wrong.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The image that the recording began with is needed.
    #[error(
        "{log}: the recording begins with an image that was not empty; give a copy of what it was then: --base IMAGE"
    )]
    BaseMissing {
        /// The recording.
        log: PathBuf,
    },
    /// Another image.
    #[error("{base}: not the image that {log} begins with ({why}); give --base a copy of what it was then")]
    BaseDiffers {
        /// The file given.
        base: PathBuf,
        /// The recording.
        log: PathBuf,
        /// How it is known.
        why: &'static str,
    },
    /// Nothing is overwritten.
    #[error("{path}: exists already; give --out, or --out-dir, another name")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no such position.
    #[error("{log}: there is no position {position}; give one from 0 to {last}")]
    NoPosition {
        /// The recording.
        log: PathBuf,
        /// What was asked for.
        position: u64,
        /// The last position.
        last: u64,
    },
}
