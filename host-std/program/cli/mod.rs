//! The command line.

mod metrics;
mod sandbox;
mod serve;

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use blk_core::storage::CacheMode;
use host_std::proof::Front;

pub(crate) use metrics::{ListenArg, MetricsArgs};
pub(crate) use serve::{CtlArgs, CtlCommand, ServeArgs, SizeArg};

const EXAMPLES: &str = "\
Examples:
  blk-host                                 the whole table, in about a minute
  blk-host --image /mnt/data/test.img      the same on the filesystem that matters to you
  blk-host --front virtio-blk --mode none  one cell
  blk-host --exhaustive --prove-only       every program of four steps: an hour; ten minutes for one front
  blk-host --json | jq .cells              for other programs
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
(probe: unsafe; serve: a last flush failed; ctl: refused), 2 wrong usage or an error, 3 probe cannot tell, 130 stopped
by a signal. If the reader of standard output has closed it, as `head` does, the program ends quietly with 0.";

/// Disk device models whose every cache mode survives a power cut, shown and proven.
///
/// Without a command: drives each front end with real requests against a real image file in each cache mode, counts
/// the flushes that reach the kernel, explores every schedule and crash point of small guest programs, and prints one table.
#[derive(Debug, Parser)]
#[command(name = "blk-host", version, about, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Make the image here instead of in TMPDIR or /var/tmp. The path must not exist; it is gone again at once, and the image
    /// with the program, whatever ends it.
    #[arg(long, value_name = "PATH")]
    pub(crate) image: Option<PathBuf>,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print all columns, in more than 80.
    #[arg(long, conflicts_with = "json")]
    pub(crate) wide: bool,

    /// Only this front end (may be given several times).
    #[arg(long, value_enum, value_name = "FRONT")]
    pub(crate) front: Vec<FrontArg>,

    /// Only this cache mode (may be given several times).
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) mode: Vec<ModeArg>,

    /// Explore every guest program of up to this many steps.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) length: u8,

    /// Explore every program of up to four steps.
    #[arg(long, conflicts_with = "length")]
    pub(crate) exhaustive: bool,

    /// Only explore: write no image.
    #[arg(long, conflicts_with = "image")]
    pub(crate) prove_only: bool,

    /// Only drive the image: explore and prove nothing.
    #[arg(long, conflicts_with_all = ["prove_only", "exhaustive"])]
    pub(crate) run_only: bool,

    /// Tell no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
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

/// [`Front`] as an argument.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrontArg(pub(crate) Front);

impl ValueEnum for FrontArg {
    fn value_variants<'a>() -> &'a [Self] {
        const {
            &[
                Self(Front::ALL[0]),
                Self(Front::ALL[1]),
                Self(Front::ALL[2]),
                Self(Front::ALL[3]),
                Self(Front::ALL[4]),
                Self(Front::ALL[5]),
                Self(Front::ALL[6]),
            ]
        }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self.0 {
            Front::IdePio => "ide-pio",
            Front::PciIde => "pci-ide",
            Front::Ahci => "ahci",
            Front::AhciNcq => "ahci-ncq",
            Front::Scsi => "scsi",
            Front::VirtioBlk => "virtio-blk",
            Front::VirtioScsi => "virtio-scsi",
        }))
    }
}

/// [`CacheMode`] as an argument.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModeArg(pub(crate) CacheMode);

impl ValueEnum for ModeArg {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [CacheMode; 5] = CacheMode::ALL;
        const { &[Self(ALL[0]), Self(ALL[1]), Self(ALL[2]), Self(ALL[3]), Self(ALL[4])] }
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.name()))
    }
}
