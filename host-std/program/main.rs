//! `blk-host`: shows, for every front end and cache mode, what reaches the host and what survives a power cut.

mod cli;
mod completions;
mod ctl;
mod demo;
mod exit;
mod man;
mod metrics;
mod number;
mod output;
mod replay;
mod report;
mod table;
mod temporary;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use clap::Parser as _;

use host_std::serve::attach::{self, Attachment};
use host_std::serve::config::LogFormat;
use host_std::serve::listen::Inherited;
use host_std::serve::log;

use crate::cli::{Args, Command, ProbeArgs, ReportArgs, ServeArgs};
use crate::exit::{EXIT_STOPPED, EXIT_UNSAFE, EXIT_USAGE};
use crate::output::outln;

fn main() -> ExitCode {
    // SAFETY: the first thing that is done: nothing has opened a descriptor.
    let inherited = unsafe { Inherited::at_start() };
    #[cfg(feature = "mutants")]
    switch_mutant_on();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(wrong) if wrong.use_stderr() => {
            output::complain(format_args!("{}", cli::complaint(&wrong)));
            return ExitCode::from(EXIT_USAGE);
        }
        Err(help) => {
            // Whoever closes standard output has what he wanted.
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
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
        Some(Command::Report(report)) => {
            log::init("error", LogFormat::Text);
            run_report(&report)
        }
        Some(Command::Demo(demo)) => {
            log::init("error", LogFormat::Text);
            stop_on_signal().and_then(|stop| demo::run(&demo, &stop))
        }
        Some(Command::DemoGuest(guest)) => demo::guest::run(&guest),
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
        output::complain(format_args!("{}", output::causes(&error)));
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
    let table = table::run(&args.table, &stop_on_signal()?)?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&table)?)?;
    } else {
        table::render::print(&table, args.wide)?;
    }
    Ok(status(&table))
}

fn run_report(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let stop = stop_on_signal()?;
    let table = report::write(args, || table::run(&args.table, &stop))?;
    outln!("{}: {}", args.out.display(), table::render::conclusion(&table))?;
    Ok(status(&table))
}

/// Set by SIGINT and SIGTERM. A second one ends the program at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(EXIT_STOPPED), Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .context("cannot install the signal handlers")?;
    }
    Ok(stop)
}

/// What the exit status says of a table.
fn status(table: &table::Table) -> ExitCode {
    match table.as_it_must_be {
        _ if table.stopped => ExitCode::from(EXIT_STOPPED),
        Some(false) => ExitCode::from(EXIT_UNSAFE),
        Some(true) | None => ExitCode::SUCCESS,
    }
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
        let names: Vec<_> = config.devices.iter().enumerate().map(|(at, device)| device.name(at)).collect();
        let mut devices = Vec::new();
        for (name, device) in names.iter().zip(&config.devices) {
            let socket = device.socket.as_ref();
            let path = socket
                .with_context(|| format!("--print-attach: {name} has no socket; give --socket PATH"))?;
            devices.push(Attachment::new(name, device, path));
        }
        output::text_of(format_args!("{}", attach::lines(&devices)))?;
        return Ok(ExitCode::SUCCESS);
    }
    log::init("info", config.log_format);
    let well = host_std::serve::run(&config, &place, inherited, !args.quiet)?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNSAFE) })
}
