//! The arguments of `demo`, and of what it runs in its guests.

use std::path::PathBuf;

use clap::{Args, Subcommand};

const EXAMPLES: &str = "\
Examples:
  blk-host demo            with the User-Mode Linux that is installed
  blk-host demo --fetch    with Debian's, which is unpacked into ~/.cache/blk-host-guests first
  blk-host demo --seed 7   another of the states that a power cut can leave

It needs User-Mode Linux (package user-mode-linux) and mkfs.ext4 (package e2fsprogs), no root and no
hardware virtualisation.

Exit status: 0 cache=none lost nothing that was synced, 1 it did, 2 wrong usage or an error, 130 stopped by a signal.";

/// Cut the power under a Linux guest that writes and syncs files on two disks, one with cache=unsafe and one with cache=none.
/// What does the guest find when it comes back?
///
/// The disks are served as `serve` does it, and recorded. To kill a server loses nothing that the host's page cache holds, so the
/// power cut is made of the recording: of what was not yet stable all is lost.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DemoArgs {
    /// Make the disks in a new folder here instead of in TMPDIR or /var/tmp.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// The kernel, where it is not linux.uml in PATH.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) uml: Option<PathBuf>,

    /// Fetch User-Mode Linux if it was not yet: Debian's packages, with apt-get, unpacked and not installed.
    #[arg(long, conflicts_with = "uml")]
    pub(crate) fetch: bool,

    /// Lose some of what was not yet stable instead of all of it; the same seed loses the same.
    #[arg(long, value_name = "SEED")]
    pub(crate) seed: Option<u64>,

    /// Keep the folder: disks, recordings, what the kernels said.
    #[arg(long)]
    pub(crate) keep: bool,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Tell no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What the first process of a guest does.
#[derive(Debug, Args)]
pub(crate) struct DemoGuestArgs {
    #[command(subcommand)]
    pub(crate) task: DemoTask,

    /// The folder with the modules of the kernel's versions.
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) modules: Option<PathBuf>,
}

/// What the guest is there for.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum DemoTask {
    /// Write files, and sync them.
    Write,
    /// Look at what is there of them.
    Check,
}
