//! The command line.

mod demo;
mod metrics;
mod sandbox;
mod serve;
mod table;
mod usage;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use clap_complete::Shell;

pub(crate) use demo::{DemoArgs, DemoGuestArgs, DemoTask};
pub(crate) use metrics::{ListenArg, MetricsArgs};
pub(crate) use serve::{CtlArgs, CtlCommand, ServeArgs, SizeArg};
pub(crate) use table::{ReportArgs, TableArgs};
pub(crate) use usage::complaint;

const EXAMPLES: &str = "\
Examples:
  blk-host                                 the whole table, in about a minute
  blk-host --image /mnt/data/test.img      the same on the filesystem that matters to you
  blk-host --front virtio-blk --mode none  one cell
  blk-host --exhaustive --prove-only       every program of four steps: an hour; ten minutes for one front
  blk-host --json | jq .cells              for other programs
  blk-host report integrity.html           the same as a page to look at
  blk-host demo                            a power cut under a real Linux guest: files lost, files kept
  blk-host probe /var/lib/images           is my stack safe?
  blk-host serve --socket disk.sock --image disk.img,cache=none,size=10G
                                           a virtio-blk disk for QEMU, cloud-hypervisor or User-Mode Linux
  blk-host replay disk.rec --crash-states 1000 --list
                                           what power cuts could have left of a disk served with --record
  blk-host metrics --control ctl.sock --listen 127.0.0.1:9185
                                           what servers count, for Prometheus
  blk-host man /usr/local/share/man/man1   manual pages
  blk-host completions bash > /etc/bash_completion.d/blk-host

Exit status: 0 every cell is as it must be (probe: safe; serve: stopped in order), 1 a cell that must be safe is not
(probe: unsafe; serve: a last flush failed; ctl: refused; demo: a synced file was lost), 2 wrong usage or an error,
3 probe cannot tell, 130 stopped by a signal. If the reader of standard output has closed it, as `head` does, the program ends quietly with 0.";

/// Disk device models whose every cache mode survives a power cut, shown and proven.
///
/// Without a command: drives each front end with real requests against a real image file in each cache mode, counts
/// the flushes that reach the kernel, explores every schedule and crash point of small guest programs, and prints one table.
#[derive(Debug, Parser)]
#[command(name = "blk-host", version, about, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) table: TableArgs,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print all columns, in more than 80.
    #[arg(long, conflicts_with = "json")]
    pub(crate) wide: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Is my stack safe? Looks at everything between a path and the medium, layer by layer.
    Probe(ProbeArgs),
    /// Serve disks to virtual machines of other programs, by vhost-user.
    Serve(ServeArgs),
    /// Ask or command a server by its control socket.
    Ctl(CtlArgs),
    Metrics(MetricsArgs),
    /// What was recorded: the image at any point, and what power cuts could have left.
    Replay(crate::replay::ReplayArgs),
    /// Write the integrity table as an HTML page, with each counterexample as a sequence diagram.
    Report(ReportArgs),
    Demo(DemoArgs),
    #[command(hide = true)]
    DemoGuest(DemoGuestArgs),
    /// Write the manual pages, one for each command.
    Man(ManArgs),
    /// Print a script that completes this program's arguments in a shell.
    Completions(CompletionsArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// The folder to write them to. It is made if it is not there.
    pub(crate) dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ProbeArgs {
    /// An image file, a block device, or a directory where images are to be created.
    pub(crate) path: PathBuf,

    /// Print JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}
