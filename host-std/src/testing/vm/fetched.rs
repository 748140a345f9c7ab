//! Debian's packages that guests are made of: downloaded, unpacked into a folder for caches, and not installed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The script that does it. Its trees are named there.
const SCRIPT: &str = include_str!("../../../guests/fetch");

/// A tree cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The script cannot be started.
    #[error("cannot start bash, which fetches the packages: {0}; install bash")]
    Start(io::Error),
    /// It has said why, on standard error.
    #[error("the packages were not fetched ({0}); what is missing is said above")]
    Failed(ExitStatus),
}

/// The folder: `BLK_HOST_CACHE`, or one in the user's folder for caches. `None` if there is no such folder.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = || {
        let caches = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(caches.join("blk-host-guests"))
    };
    variable("BLK_HOST_CACHE").or_else(user)
}

/// Fetches those of the trees into `folder` that are not there; all of them if none is named. Progress goes to standard error.
///
/// # Errors
/// [`FetchError`].
pub fn fetch(folder: &Path, trees: &[&str]) -> Result<(), FetchError> {
    let mut command = Command::new("bash");
    command.args(["-c", SCRIPT, "fetch"]).arg(folder).args(trees);
    let status = command.stdout(io::stderr()).status().map_err(FetchError::Start)?;
    if status.success() { Ok(()) } else { Err(FetchError::Failed(status)) }
}

/// Of the tree `uml` in `folder`: the kernel.
#[must_use]
pub fn uml(folder: &Path) -> PathBuf {
    folder.join("uml/unpacked/usr/bin/linux.uml")
}
