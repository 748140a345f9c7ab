//! `blk-host serve` against QEMU's storage daemon, two vhost-user servers, and against itself with `--sandbox=off`: one
//! client, one core.
//!
//! ```text
//! cargo bench -p host-std --bench serve                        the table: medians of alternated runs, and their ratios
//! cargo bench -p host-std --bench serve -- --quick             fewer and shorter runs
//! cargo bench -p host-std --bench serve -- --fio DIR/bin/fio   fio as the client (get-fio.sh DIR builds it)
//! cargo bench -p host-std --bench serve -- --help
//! ```
//!
//! Everything runs on one core, the client included: a server that wins by keeping another core busy wins nothing here,
//! and what is measured is the work that a request costs. All serve the same image, one after the other. Runs alternate
//! within a row, so that a disturbed machine disturbs all; a ratio is the median of the ratios of neighbours.
//!
//! It fails, whatever the machine's speed, if a request fails or comes back wrong, if flushes were fewer fdatasync calls than
//! flushes, or if the 99th percentile of reads beside a flush of 500 ms reaches 5 ms in each of three tries. Ratios fail it
//! only with `--at-least` and `--confined-at-least`.

mod delayed;
mod fio;
mod flushes;
mod report;
mod rows;
mod servers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use rows::{Row, Sample};
use servers::{Contender, Place};

/// Compares `blk-host serve` with qemu-storage-daemon on one core.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer and shorter runs.
    #[arg(long)]
    quick: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Use this fio, built with libblkio, as the client.
    #[arg(long, value_name = "FIO")]
    fio: Option<PathBuf>,
    /// Only rows whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Runs of each server for a row.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// A directory on tmpfs.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// A directory on a disk, for the rows with direct I/O.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    disk: PathBuf,
    /// The core to run on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    core: usize,
    /// Fail if a ratio to the other server is below this.
    #[arg(long, value_name = "RATIO")]
    at_least: Option<f64>,
    /// Fail if the server does less than this, confined, of what it does with --sandbox=off.
    #[arg(long, value_name = "RATIO")]
    confined_at_least: Option<f64>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("serve: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    pin(args.core)?;
    let plan = Plan::new(args);
    let mut report = report::Report::default();
    for place in [Place::tmpfs(&args.tmpfs)?, Place::disk(&args.disk)?] {
        let rows: Vec<Row> =
            rows::all(place.is_direct()).filter(|row| row.name().contains(&args.only)).collect();
        if rows.is_empty() {
            continue;
        }
        let images = servers::Images::make(&place)?;
        let contenders: Vec<Contender> = Contender::installed();
        for row in rows {
            let samples = plan.compare(args, row, &contenders, &images)?;
            report.add(place.name(), row, &contenders, samples);
            if !args.json {
                eprintln!("{}", report.last_line());
            }
            if row.operation == rows::Operation::WriteFlush {
                for &contender in contenders.iter().filter(|each| **each != Contender::Unconfined) {
                    let counted = flushes::count(&contender.start(&images)?)?;
                    report.add_flushes(place.name(), contender, counted);
                }
            }
        }
    }
    if "reads beside a flush".contains(&args.only) {
        let images = servers::Images::make(&Place::tmpfs(&args.tmpfs)?)?;
        report.beside_flush.push(delayed::by_the_program(&images, plan.time * 4)?);
        report.beside_flush.push(delayed::by_the_host(plan.time * 4)?);
    }
    if args.json {
        report.print_json()?
    } else {
        report.print()
    }
    let mut broken = report.broken();
    if let (Some(least), Some(ratio)) = (args.at_least, report.worst_ratio())
        && ratio < least
    {
        broken.push(format!("the ratio {ratio:.2} is below {least:.2}"));
    }
    if let (Some(least), Some(ratio)) = (args.confined_at_least, report.confined())
        && ratio < least
    {
        broken.push(format!("the ratio of confined to not is {ratio:.3}, below {least:.3}"));
    }
    for broken in &broken {
        eprintln!("serve: {broken}");
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs this process, and all that it starts, on one core.
fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot run on core {core}; see --core"))
}

/// How often and how long.
struct Plan {
    rounds: usize,
    time: Duration,
}

impl Plan {
    fn new(args: &Args) -> Self {
        let (rounds, time) = if args.quick { (3, 100) } else { (9, 400) };
        Self { rounds: args.rounds.unwrap_or(rounds), time: Duration::from_millis(time) }
    }

    /// Runs a row on each server in turn. The samples are by server, in the order of their runs.
    fn compare(
        &self,
        args: &Args,
        row: Row,
        contenders: &[Contender],
        images: &servers::Images,
    ) -> anyhow::Result<Vec<Vec<Sample>>> {
        let mut samples = vec![Vec::new(); contenders.len()];
        for round in 0..=self.rounds {
            let mut turn: Vec<_> = contenders.iter().zip(&mut samples).collect();
            // A run finds the processor's caches as the one before it left them.
            if round % 2 == 1 {
                turn.reverse();
            }
            for (contender, samples) in turn {
                let server = contender.start(images)?;
                let sample = match &args.fio {
                    Some(fio) => fio::run(fio, &server, row, self.time)?,
                    None => rows::run(&server, row, self.time)?,
                };
                // The first round warms up.
                if round != 0 {
                    samples.push(sample);
                }
            }
        }
        Ok(samples)
    }
}
