//! `blk-host`: shows, for every front end and cache mode, what reaches the host and what survives a power cut.

mod cli;
mod completions;
mod ctl;
mod exit;
mod man;
mod metrics;
mod output;
mod replay;
mod table;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use clap::Parser as _;

use host_std::serve::config::LogFormat;
use host_std::serve::listen::Inherited;
use host_std::serve::log;

use crate::cli::{Args, Command, ProbeArgs, ServeArgs};
use crate::exit::{EXIT_STOPPED, EXIT_UNSAFE, EXIT_USAGE};
use crate::output::outln;

fn main() -> ExitCode {
    // SAFETY: the first thing that is done: nothing has opened a descriptor.
    let inherited = unsafe { Inherited::at_start() };
    #[cfg(feature = "mutants")]
    switch_mutant_on();
    let args = Args::parse();
    let outcome = match args.command {
        Some(Command::Serve(serve)) => run_serve(&serve, inherited),
        Some(Command::Ctl(ctl)) => ctl::run(&ctl),
        Some(Command::Probe(probe)) => {
            log::init("error", LogFormat::Text);
            run_probe(&probe)
        }
        Some(Command::Replay(replay)) => {
            log::init("error", LogFormat::Text);
            replay::run(&replay)
        }
        Some(Command::Metrics(metrics)) => metrics::run(&metrics),
        Some(Command::Man(man)) => man::run(&man),
        Some(Command::Completions(completions)) => completions::run(&completions),
        None => {
            log::init("error", LogFormat::Text);
            run_table(&args)
        }
    };
    let status = outcome.unwrap_or_else(|error| {
        if output::failure(&error) == Some(true) {
            return ExitCode::SUCCESS;
        }
        log::flush();
        output::complain(format_args!("{error:#}"));
        ExitCode::from(EXIT_USAGE)
    });
    log::flush();
    status
}

/// For tests of what finds a defect in a server: the one named in `BLK_HOST_MUTANT` is switched on.
#[cfg(feature = "mutants")]
fn switch_mutant_on() {
    use blk_core::mutant::{Mutant, set_for_process};
    use host_std::server::{Mutant as OfServer, set_mutant};

    let Ok(name) = std::env::var("BLK_HOST_MUTANT") else { return };
    let device = Mutant::ALL.iter().find(|mutant| format!("{mutant:?}") == name);
    let server = OfServer::ALL.iter().find(|mutant| format!("{mutant:?}") == name);
    match (device, server) {
        (Some(&mutant), _) => set_for_process(mutant),
        // The server's threads take it over from the one that makes them.
        (None, Some(&mutant)) => set_mutant(Some(mutant)),
        (None, None) => panic!("BLK_HOST_MUTANT={name}: there is no such defect"),
    }
}

fn run_table(args: &Args) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(EXIT_STOPPED), Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot install the signal handlers")?;
    }
    let table = table::run(args, &stop)?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&table)?)?;
    } else {
        table::render::print(&table, args.wide)?;
    }
    Ok(match table.as_it_must_be {
        _ if table.stopped => ExitCode::from(EXIT_STOPPED),
        Some(false) => ExitCode::from(EXIT_UNSAFE),
        Some(true) | None => ExitCode::SUCCESS,
    })
}

fn run_probe(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let report = host_std::probe::probe(&args.path)?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        output::text_of(format_args!("{report}"))?;
    }
    Ok(ExitCode::from(report.verdict.exit_status()))
}

fn run_serve(args: &ServeArgs, inherited: Inherited) -> anyhow::Result<ExitCode> {
    let (config, place) = args.config()?;
    config.check(&place)?;
    if args.print_attach {
        for (index, device) in config.devices.iter().enumerate() {
            let name = device.name(index);
            let path = device
                .socket
                .as_ref()
                .with_context(|| format!("{name}: --print-attach wants --socket PATH"))?;
            let lines = host_std::serve::attach::lines(&name, device, path);
            output::text_of(format_args!("{lines}"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    log::init("info", config.log_format);
    let well = host_std::serve::run(&config, &place, inherited, !args.quiet)?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNSAFE) })
}
