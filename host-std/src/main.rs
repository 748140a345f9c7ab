//! `blk-host`: shows, for every front end and cache mode, what reaches the host and what survives a power cut.

mod cli;
mod table;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use clap::Parser as _;

use crate::cli::{Args, Command, ProbeArgs};

/// A cell that must be safe is not, or a stack is known to be unsafe.
const EXIT_UNSAFE: u8 = 1;
/// The operator asked for something that cannot be done.
const EXIT_USAGE: u8 = 2;
/// Stopped by SIGINT or SIGTERM, as shells report it for SIGINT.
const EXIT_STOPPED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("BLK_HOST_LOG"))
        .with_writer(std::io::stderr)
        .init();
    let outcome = match args.command {
        Some(Command::Probe(probe)) => run_probe(&probe),
        None => run_table(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("blk-host: {error:#}");
        ExitCode::from(EXIT_USAGE)
    })
}

fn run_table(args: &Args) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(EXIT_STOPPED), Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot install the signal handlers")?;
    }
    let table = table::run(args, &stop)?;
    if stop.load(Ordering::Relaxed) {
        eprintln!("blk-host: stopped before the table was complete");
        return Ok(ExitCode::from(EXIT_STOPPED));
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&table)?);
    } else {
        table::render::print(&table);
    }
    Ok(if table.as_it_must_be { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNSAFE) })
}

fn run_probe(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let report = host_std::probe::probe(&args.path)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(ExitCode::from(report.verdict.exit_status()))
}
