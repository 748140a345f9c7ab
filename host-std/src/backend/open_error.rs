//! Why an image cannot be opened, or cannot have the size that it is to have.

use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

/// An image could not be opened. The text names the file, what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel refused.
    #[error("{path}: cannot {what}: {errno}{remedy}")]
    System {
        /// The image.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The kernel's error.
        errno: Errno,
        /// What to do, after a semicolon.
        remedy: &'static str,
    },
    /// Neither a regular file nor a block device.
    #[error("{path}: neither a regular file nor a block device; give the path of an image or a disk")]
    NotADisk {
        /// The path.
        path: PathBuf,
    },
    /// Nothing in it.
    #[error("{path}: has no capacity; give it one, for example: truncate -s 1G {path}")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// It cannot be made, or extended, to the size of the options.
    #[error("{path}: cannot be made or extended to size={}: {errno}; {remedy}", size_text(*.bytes))]
    Size {
        /// The image.
        path: PathBuf,
        /// The size.
        bytes: u64,
        /// The kernel's error.
        errno: Errno,
        /// What to do.
        remedy: &'static str,
    },
    /// The size is not a multiple of a block.
    #[error(
        "{path}: {bytes} bytes are not a multiple of {unit}, {why}; extend it: truncate -s %{unit} {path}{or}"
    )]
    OddSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// What it has to be a multiple of.
        unit: u32,
        /// What that unit is.
        why: &'static str,
        /// Another remedy; empty where there is none.
        or: &'static str,
    },
    /// Another program uses the image.
    #[error("{path}: in use by another program ({detail}{}); stop that program{or}", after(.waited))]
    InUse {
        /// The image.
        path: PathBuf,
        /// How it is known.
        detail: &'static str,
        /// How long it was waited for.
        waited: Duration,
        /// Another remedy; empty where there is none.
        or: &'static str,
    },
    /// A live resize would cut data off.
    #[error(
        "{path}: has {now} bytes, and a resize to {bytes} would cut data off; shrink it yourself while the device is paused: truncate -s {bytes} {path}, then resize without a size"
    )]
    Shrinks {
        /// The image.
        path: PathBuf,
        /// The size that was asked for.
        bytes: u64,
        /// The size that it has.
        now: u64,
    },
    /// The file of records is none, or damaged.
    #[error("{path}: {what}; {remedy}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// An option's value cannot be.
    #[error("{path}: {option}={value} is not possible; {remedy}")]
    Option {
        /// The image.
        path: PathBuf,
        /// The field of [`FileOptions`](super::FileOptions), as an operator of `blk-host` types it.
        option: &'static str,
        /// Its value.
        value: u64,
        /// What is possible.
        remedy: &'static str,
    },
}

/// A size in the largest unit of which it is a multiple, as an operator gives it.
pub(crate) fn size_text(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let unit = units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    unit.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

fn after(waited: &Duration) -> String {
    if waited.is_zero() { String::new() } else { format!(", after waiting for {waited:?}") }
}
