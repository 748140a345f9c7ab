//! The arguments of the integrity table, and of the page that is made of it.

use std::path::PathBuf;

use blk_core::storage::CacheMode;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use host_std::proof::Front;

use crate::number::whole;

/// What is run and proven.
#[derive(Debug, Args)]
pub(crate) struct TableArgs {
    /// Make the image here instead of in TMPDIR or /var/tmp. The path must not exist; it is gone again at once, and the image
    /// with the program, whatever ends it.
    #[arg(long, value_name = "PATH")]
    pub(crate) image: Option<PathBuf>,

    /// Only this front end (may be given several times).
    #[arg(long, value_enum, value_name = "FRONT")]
    pub(crate) front: Vec<FrontArg>,

    /// Only this cache mode (may be given several times).
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) mode: Vec<ModeArg>,

    /// Explore every guest program of up to this many steps.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = whole::<u8>(1..=8), allow_negative_numbers = true)]
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

const EXAMPLES: &str = "\
Examples:
  blk-host report integrity.html                    run and prove all of it first, in about a minute
  blk-host --json > table.json
  blk-host report integrity.html --json table.json  from what was run before, at once
  cargo bench -p host-std --bench serve -- --json > bench.json
  blk-host report integrity.html --json table.json --bench bench.json
                                                    with the speed beside QEMU's storage daemon

Exit status: that of the table: 0 every cell is as it must be, 1 a cell that must be safe is not, 2 wrong usage or an error,
130 stopped by a signal; the page then shows what there is.";

/// Write the integrity table as one HTML file: the grid of 2009 and of today, each counterexample and each proof as a sequence
/// diagram, what is explored and what is not, and charts of the speed. It needs no network and runs no script.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    /// The file to write. One that exists is replaced only if it is such a report.
    #[arg(value_name = "OUT.html")]
    pub(crate) out: PathBuf,

    /// Take what `blk-host --json` has printed, instead of running and proving anew.
    #[arg(long, value_name = "FILE", conflicts_with = "TableArgs")]
    pub(crate) json: Option<PathBuf>,

    /// Show the speed from what the bench `serve` has printed with --json.
    #[arg(long, value_name = "FILE")]
    pub(crate) bench: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) table: TableArgs,
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
